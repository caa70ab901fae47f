"""The only reader of patient rows. Whatever it reads goes to the contract check next, in the same process."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from schemas.contract import DataContract
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


def read_batches(local: LocalData | Path, contract: DataContract) -> Iterator[pa.RecordBatch]:
    """Yields the contract's columns batch by batch; other columns are not read.

    A value that does not parse as the contract's type leaves its column text, so that the check refuses it by name.

    Raises:
        SiteDataError: the source cannot be read, is not what its name says, or ends in a damaged row.
    """
    source = open_source(LocalData.of(local).data)
    names = {c.name for c in contract.columns}
    for batch in source.read(names):
        yield _parse(batch, contract)


def read_table(local: LocalData | Path, contract: DataContract) -> pa.Table:
    """Reads all of the contract's columns into memory, for training.

    Raises:
        SiteDataError: as `read_batches`.
    """
    import pyarrow as pa

    batches = list(read_batches(local, contract))
    if not batches:
        names = open_source(LocalData.of(local).data).column_names()
        return pa.table({c.name: pa.nulls(0, pa.string()) for c in contract.columns if names.count(c.name) == 1})
    if any(batch.schema != batches[0].schema for batch in batches):
        # A column that parsed in one block and not in another is text, as the check will say.
        fields = [_common_field(batches, name) for name in batches[0].schema.names]
        batches = [batch.cast(pa.schema(fields)) for batch in batches]
    return pa.Table.from_batches(batches)


def _common_field(batches: list[pa.RecordBatch], name: str) -> pa.Field:
    import pyarrow as pa

    types = {batch.schema.field(name).type for batch in batches} - {pa.null()}
    return pa.field(name, types.pop() if len(types) == 1 else pa.string())


def _parse(batch: pa.RecordBatch, contract: DataContract) -> pa.RecordBatch:
    import pyarrow as pa

    from tasks.contract.arrow import arrow_schema

    schema = arrow_schema(contract)
    columns = {}
    for name in batch.schema.names:
        values = batch.column(name)
        try:
            columns[name] = values.cast(schema.field(name).type) if values.type == pa.string() else values
        except pa.ArrowInvalid:
            columns[name] = values
    return pa.record_batch(columns)


def count_patients(contract: DataContract, table: pa.Table) -> int:
    """Counts the distinct patients of a table that passed its contract. The count stays at the site."""
    column = contract.column_with_role("patient_id")
    assert column is not None
    return len(table.column(column.name).unique())
