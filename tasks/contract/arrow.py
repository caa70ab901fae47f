"""From a data contract to Arrow: the schema, and a site's table brought into it without losing anything."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from schemas.contract import Column, DataContract

if TYPE_CHECKING:
    import pyarrow as pa


def arrow_schema(contract: DataContract) -> pa.Schema:
    """Returns the Arrow schema: number float64, boolean bool, code and identifier string, time timestamp in
    microseconds without zone; null means missing."""
    import pyarrow as pa

    return pa.schema([pa.field(c.name, _arrow_type(c)) for c in contract.columns])


def conform_table(contract: DataContract, table: pa.Table) -> pa.Table:
    """Returns the contract's columns that the table has, in contract order, cast where the cast loses nothing.

    Columns that the contract does not name are dropped: what a study has no use for is not read further. A column whose
    cast would lose something keeps its type, so that the contract's type rule fails by name.
    """
    import pyarrow as pa

    schema = arrow_schema(contract)
    present = [c.name for c in contract.columns if table.column_names.count(c.name) == 1]
    columns = {name: _cast(table.column(name), schema.field(name).type) for name in present}
    return pa.table(columns) if columns else pa.table({})


def collect_table(contract: DataContract, batches: Iterable[pa.RecordBatch]) -> pa.Table:
    """Joins canonical batches into one table.

    A column that had another type in any batch becomes one of no type that any contract has, so that the type rule
    fails; its values are not kept.
    """
    import pyarrow as pa

    collected = list(batches)
    schema = arrow_schema(contract)
    columns = {}
    for name in schema.names:
        parts = [batch.column(name) for batch in collected if name in batch.schema.names]
        if len(parts) < len(collected) or not parts:
            continue
        if all(part.type == schema.field(name).type for part in parts):
            columns[name] = pa.chunked_array(parts)
        else:
            columns[name] = pa.chunked_array([pa.nulls(sum(len(part) for part in parts), pa.binary())])
    return pa.table(columns) if columns else pa.table({})


def join_values(parts: Sequence[pa.Array]) -> pa.Array:
    """Joins the texts of each row, so that no two different rows give the same text; null if any part is."""
    import pyarrow.compute as pc

    escaped = [pc.replace_substring(pc.replace_substring(p, "\x1e", "\x1e0"), "\x1f", "\x1e1") for p in parts]
    return pc.binary_join_element_wise(*escaped, "\x1f") if len(parts) > 1 else parts[0]


def _arrow_type(column: Column) -> pa.DataType:
    import pyarrow as pa

    if column.kind == "number":
        return pa.float64()
    if column.kind == "time":
        return pa.timestamp("us")
    return pa.bool_() if column.kind == "boolean" else pa.string()


def _cast(values: pa.ChunkedArray, target: pa.DataType) -> pa.ChunkedArray:
    import pyarrow as pa

    if not _is_lossless(values.type, target):
        return values
    try:
        return values.cast(target)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return values  # Arrow's message quotes the value; the type rule fails instead, by column name.


def _is_lossless(source: pa.DataType, target: pa.DataType) -> bool:
    import pyarrow as pa
    from pyarrow import types

    if types.is_dictionary(source):
        source = source.value_type
    if types.is_null(source) or source == target:
        return True
    if target == pa.float64():
        return bool(types.is_integer(source) or types.is_floating(source))
    if target == pa.timestamp("us"):
        return bool(types.is_date(source) or (types.is_timestamp(source) and source.tz is None))
    if target == pa.string():
        return bool(types.is_large_string(source) or types.is_string_view(source) or types.is_integer(source))
    return False
