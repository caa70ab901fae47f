"""Rows in files: Parquet (a file or a folder of them) and separated text. Nothing is held but one batch."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.errors import SiteDataError
from site_agents.cohort.sources.base import (
    BATCH_ROWS,
    foreign_source,
    missing_source,
    unreadable_source,
    wanted_columns,
)

if TYPE_CHECKING:
    import pyarrow as pa

_BLOCK_BYTES = 1 << 20
# What other programs write at the start of their files: Parquet, zip (also Excel), gzip, zstd, SQLite, old Excel.
_OTHER_PROGRAMS = (b"PAR1", b"PK\x03\x04", b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"SQLite format 3", b"\xd0\xcf\x11\xe0")


@dataclass(frozen=True)
class ParquetSource:
    """One Parquet file."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    def fingerprint(self) -> str:
        """Returns the SHA-256 of the file."""
        return file_digest(self.path)

    def column_names(self) -> tuple[str, ...]:
        """Returns the names in the file's schema."""
        import pyarrow.parquet as pq

        with _refusals(self.path, "Parquet"), pq.ParquetFile(self.path) as source:
            return tuple(source.schema_arrow.names)

    def read(self, columns: Collection[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Yields the wanted columns, page by page."""
        import pyarrow.parquet as pq

        # Pre-buffering would keep every byte of the file until it is closed.
        streaming = {"pre_buffer": False, "buffer_size": _BLOCK_BYTES}
        with _refusals(self.path, "Parquet"), pq.ParquetFile(self.path, **streaming) as source:
            wanted = wanted_columns(source.schema_arrow.names, columns)
            yield from source.iter_batches(BATCH_ROWS, columns=wanted, use_threads=False)


@dataclass(frozen=True)
class ParquetDataset:
    """A folder of Parquet files with one schema; ``key=value`` folders are columns."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    def fingerprint(self) -> str:
        """Returns the SHA-256 over names and contents of all files of the folder."""
        total = hashlib.sha256()
        for path in sorted(p for p in self.path.rglob("*") if p.is_file()):
            digest = file_digest(path)
            if not digest:
                return ""
            total.update(f"{path.relative_to(self.path).as_posix()}\0{digest}\n".encode())
        return total.hexdigest()

    def column_names(self) -> tuple[str, ...]:
        """Returns the names in the dataset's schema, folders included."""
        with _refusals(self.path, "Parquet"):
            return tuple(self._open().schema.names)

    def read(self, columns: Collection[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Yields the wanted columns, file after file."""
        with _refusals(self.path, "Parquet"):
            dataset = self._open()
            wanted = wanted_columns(dataset.schema.names, columns)
            # One file after the other: reading ahead would hold several row groups at once.
            yield from dataset.to_batches(
                columns=wanted, batch_size=BATCH_ROWS, batch_readahead=1, fragment_readahead=1, use_threads=False
            )

    def _open(self) -> Any:
        from pyarrow import dataset

        scanning = dataset.ParquetFragmentScanOptions(
            pre_buffer=False, use_buffered_stream=True, buffer_size=_BLOCK_BYTES
        )
        form = dataset.ParquetFileFormat(default_fragment_scan_options=scanning)
        found = dataset.dataset(self.path, format=form, partitioning="hive")
        if not found.files:
            raise missing_source(self.name)
        return found


@dataclass(frozen=True)
class CsvSource:
    """A file of separated values; every column is read as text and parsed by the site's mapping."""

    path: Path
    delimiter: str = ","
    encoding: str = "utf8"
    header: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.path.name

    def fingerprint(self) -> str:
        """Returns the SHA-256 of the file."""
        return file_digest(self.path)

    def column_names(self) -> tuple[str, ...]:
        """Returns the header line, or the names that the site gave."""
        return self.header or self._read_header()

    def read(self, columns: Collection[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Yields the wanted columns block by block; a damaged last row is found when it is reached.

        Raises:
            SiteDataError: `data-row` where a row has not as many fields as the header, or a quote does not end.
        """
        import pyarrow as pa
        from pyarrow import csv

        names = self.column_names()
        wanted = wanted_columns(names, columns)
        convert = csv.ConvertOptions(
            include_columns=wanted,
            column_types={name: pa.string() for name in wanted},
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=True,
        )
        with _refusals(self.path, "CSV"), self._open(convert) as stream:
            try:
                for batch in stream:
                    for start in range(0, batch.num_rows, BATCH_ROWS):
                        part = batch.slice(start, BATCH_ROWS)
                        # Without a wanted column Arrow yields all of them.
                        yield part if wanted else part.select([])
            except pa.ArrowInvalid:
                raise SiteDataError(
                    "data-row",
                    f"{self.name} has a row that does not fit its header line, or text that is not {self.encoding}.",
                    "Look for a separator or quote inside a field, or a cut-off last row; export the table again.",
                ) from None

    def _read_header(self) -> tuple[str, ...]:
        from pyarrow import csv

        with _refusals(self.path, "CSV"):
            self._verify_text()
            with self._open(csv.ConvertOptions()) as stream:
                return tuple(stream.schema.names)

    def _open(self, convert: Any) -> Any:
        from pyarrow import csv

        return csv.open_csv(
            self.path,
            read_options=csv.ReadOptions(
                use_threads=False, block_size=_BLOCK_BYTES, encoding=self.encoding, column_names=list(self.header)
            ),
            parse_options=csv.ParseOptions(delimiter=self.delimiter, newlines_in_values=True),
            convert_options=convert,
        )

    def _verify_text(self) -> None:
        with self.path.open("rb") as source:
            head = source.read(4096)
        if head.startswith(_OTHER_PROGRAMS) or (b"\0" in head and self.encoding.lower().startswith("utf8")):
            raise foreign_source(self.name, "CSV")


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file, "" for anything that is not a readable file: reading it will say what is wrong."""
    try:
        with path.open("rb") as source:
            return hashlib.file_digest(source, "sha256").hexdigest()
    except OSError:
        return ""


@contextmanager
def _refusals(path: Path, expected: str) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError, LookupError):
        raise foreign_source(path.name, expected) from None
    except FileNotFoundError:
        raise missing_source(path.name) from None
    except OSError:
        raise unreadable_source(path.name) from None
