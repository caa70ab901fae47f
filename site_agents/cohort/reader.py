"""The only reader of patient rows. Whatever it reads goes to the contract check next, in the same process."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from schemas.contract import DataContract
from schemas.mapping import SiteMapping
from site_agents.cohort.sources.base import Source, wanted_columns
from site_agents.cohort.sources.files import file_digest
from site_agents.cohort.sources.opening import open_source

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class LocalData:
    """Where a site's rows are and how they become the contract's.

    Attributes:
        data: A .parquet or .csv file, a folder of Parquet files, or a source.yaml (`site_agents.cohort.sources`).
        mapping: The site's mapping file, "" if the columns are the contract's already.
    """

    data: str
    mapping: str = ""

    @classmethod
    def of(cls, local: LocalData | Path) -> LocalData:
        """Returns `local`; a path alone is a table that needs no mapping."""
        return local if isinstance(local, LocalData) else cls(str(local))

    def fingerprint(self) -> str:
        """Returns a digest of the bytes of rows and mapping, "" if either cannot be hashed: nothing is remembered."""
        parts = [open_source(self.data).fingerprint()]
        if Path(self.data).suffix in (".yaml", ".yml"):
            parts.append(file_digest(Path(self.data)))
        if self.mapping:
            parts.append(file_digest(Path(self.mapping)))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest() if all(parts) else ""


def read_batches(
    local: LocalData | Path, contract: DataContract, places: dict[str, int] | None = None
) -> Iterator[pa.RecordBatch]:
    """Yields the site's cohort in the contract's columns, batch by batch; other columns are not read.

    A value that does not fit leaves its column in a type that the contract check refuses by name.

    Args:
        places: Filled with the first row of each column that does not fit (`site_agents.cohort.mapping.map_batches`).

    Raises:
        SiteDataError: the source cannot be read, is not what its name says, or ends in a damaged row; the mapping
            cannot be read or does not fit the contract.
    """
    from site_agents.cohort.mapping import map_batches, read_mapping

    local = LocalData.of(local)
    mapping = read_mapping(Path(local.mapping)) if local.mapping else SiteMapping()
    yield from map_batches(contract, mapping, _read(open_source(local.data), mapping.source_columns(contract)), places)


def _read(source: Source, columns: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
    """Yields a source's batches; of one without rows, a batch that tells which columns it has."""
    import pyarrow as pa

    empty = True
    for batch in source.read(columns):
        empty = False
        yield batch
    if empty:
        names = wanted_columns(source.column_names(), columns)
        yield pa.record_batch([pa.nulls(0)] * len(names), names=names)


def read_table(local: LocalData | Path, contract: DataContract) -> pa.Table:
    """Reads the site's cohort into memory, for training.

    Raises:
        SiteDataError: as `read_batches`.
    """
    from tasks.contract.arrow import collect_table

    return collect_table(contract, read_batches(local, contract))


def count_patients(contract: DataContract, table: pa.Table) -> int:
    """Counts the distinct patients of a table that passed its contract. The count stays at the site."""
    column = contract.column_with_role("patient_id")
    assert column is not None
    return len(table.column(column.name).unique())
