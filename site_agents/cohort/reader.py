"""The only reader of patient rows. Whatever it reads goes to the contract check next, in the same process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from schemas.contract import DataContract
from schemas.errors import SiteDataError

if TYPE_CHECKING:
    import pyarrow as pa


def read_table(path: Path, contract: DataContract) -> pa.Table:
    """Reads the contract's columns of a Parquet or CSV file; other columns are not read.

    In a CSV file an empty field is a missing value; a column that does not parse as the contract's type stays text, so
    that the contract check refuses it by name. Arrow's own messages quote values and are never passed on.

    Raises:
        SiteDataError: `data-missing`, `data-format` (not what its name says), `data-unreadable`.
    """
    if not path.is_file():
        raise SiteDataError("data-missing", f"Expected the site's table at {path.name}.", "Correct the data path.")
    readers = {".parquet": _read_parquet, ".csv": _read_csv}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise SiteDataError("data-format", f"Expected a .parquet or .csv file, got {path.name}.", "Convert the table.")
    import pyarrow as pa

    try:
        return reader(path, contract)
    except pa.ArrowInvalid:
        raise SiteDataError(
            "data-format", f"{path.name} is not what its name says.", "Export the table again as Parquet or CSV."
        ) from None
    except OSError:
        raise SiteDataError(
            "data-unreadable", f"{path.name} cannot be read.", "Check its permissions and the disk."
        ) from None


def _read_parquet(path: Path, contract: DataContract) -> pa.Table:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as source:
        wanted = [n for n in source.schema_arrow.names if n in _names(contract)]
        return source.read(columns=wanted, use_threads=False)


def _read_csv(path: Path, contract: DataContract) -> pa.Table:
    import pyarrow as pa
    from pyarrow import csv

    from tasks.contract.arrow import arrow_schema

    with csv.open_csv(path, read_options=csv.ReadOptions(use_threads=False)) as head:
        header = head.schema.names
    wanted = [name for name in header if name in _names(contract)]
    if len(set(wanted)) != len(wanted):
        wanted = [name for name in wanted if wanted.count(name) == 1]  # The check reports the absent column.
    table = csv.read_csv(
        path,
        read_options=csv.ReadOptions(use_threads=False),
        convert_options=csv.ConvertOptions(
            include_columns=wanted,
            column_types={name: pa.string() for name in wanted},
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=True,
        ),
    )
    schema = arrow_schema(contract)
    return pa.table({name: _parse(table.column(name), schema.field(name).type) for name in wanted})


def _parse(values: pa.ChunkedArray, target: pa.DataType) -> pa.ChunkedArray:
    import pyarrow as pa

    try:
        return values.cast(target)
    except pa.ArrowInvalid:
        return values


def _names(contract: DataContract) -> set[str]:
    return {c.name for c in contract.columns}


def count_patients(contract: DataContract, table: pa.Table) -> int:
    """Counts the distinct patients of a table that passed its contract. The count stays at the site."""
    column = contract.column_with_role("patient_id")
    assert column is not None
    return len(table.column(column.name).unique())
