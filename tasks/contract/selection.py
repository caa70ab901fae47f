"""What a contract says about rows, in Arrow: conditions, the derived label and split, and who is in the cohort."""

from __future__ import annotations

import hashlib
from fractions import Fraction
from functools import reduce
from typing import TYPE_CHECKING, Any

from schemas.conditions import Condition, Split
from schemas.contract import Column, DataContract
from tasks.contract.arrow import arrow_schema

if TYPE_CHECKING:
    import pyarrow as pa


def holds(condition: Condition, table: pa.Table, kind: str) -> pa.ChunkedArray:
    """Evaluates a condition per row: true, false, or null where a missing value leaves it open.

    Args:
        condition: On columns that `table` has, in the contract's types.
        kind: The kind of its column.
    """
    import pyarrow.compute as pc

    values = table.column(condition.column)
    if condition.op == "present":
        return pc.is_valid(values)
    if condition.op == "missing":
        return pc.is_null(values)
    if condition.op == "one_of":
        import pyarrow as pa

        listed = pc.is_in(values, value_set=pa.array(condition.values, values.type))
        return pc.if_else(pc.is_valid(values), listed, pa.scalar(None, pa.bool_()))
    right: Any = table.column(condition.other) if condition.other else scalar(condition.value, kind)
    compare = {
        "equals": pc.equal,
        "not_equals": pc.not_equal,
        "at_least": pc.greater_equal,
        "at_most": pc.less_equal,
        "above": pc.greater,
        "below": pc.less,
    }
    return compare[condition.op](values, right)


def scalar(value: str, kind: str) -> pa.Scalar:
    """Returns a contract's text as an Arrow scalar of the column's type."""
    import datetime as dt

    import pyarrow as pa

    if kind == "number":
        return pa.scalar(float(value), pa.float64())
    if kind == "time":
        return pa.scalar(dt.datetime.fromisoformat(value), pa.timestamp("us"))
    return pa.scalar(value == "true", pa.bool_()) if kind == "boolean" else pa.scalar(value, pa.string())


def select_cohort(contract: DataContract, table: pa.Table) -> pa.Table:
    """Adds the derived columns and keeps the rows that are part of the study; the result is in contract order.

    A row for which a cohort condition is open because of a missing value is not part of it. A condition on a column
    that is absent or of another type is passed over: the contract check refuses that column by name.
    """
    import pyarrow.compute as pc

    table = derive_columns(contract, table)
    usable = sound_columns(contract, table)
    asked = [c for c in contract.cohort if usable.issuperset(c.columns)]
    if asked and table.num_rows:
        kept = reduce(pc.and_kleene, (holds(c, table, _kind(contract, c)) for c in asked))
        table = table.filter(pc.fill_null(kept, False))
    return table.select([c.name for c in contract.columns if c.name in table.column_names])


def derive_columns(contract: DataContract, table: pa.Table) -> pa.Table:
    """Adds label and held_out where the contract derives them and can; replaces columns of their names."""
    import pyarrow.compute as pc

    usable = sound_columns(contract, table)
    label, held_out, patient = (contract.column_with_role(role) for role in ("label", "held_out", "patient_id"))
    if contract.label_rule is not None and label is not None:
        table = _without(table, label)
        if usable.issuperset(name for c in contract.label_rule.when for name in c.columns):
            parts = (holds(c, table, _kind(contract, c)) for c in contract.label_rule.when)
            table = table.append_column(label.name, reduce(pc.and_kleene, parts))
    if contract.split is not None and held_out is not None and patient is not None:
        table = _without(table, held_out)
        if patient.name in usable:
            table = table.append_column(held_out.name, split_patients(contract.split, table.column(patient.name)))
    return table


def split_patients(split: Split, patients: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns whether each patient is held out (bool; a missing id is not), by `schemas.conditions.Split`."""
    import pyarrow as pa

    limit = Fraction(split.share) * 2**64
    coded = pa.chunked_array([patients.combine_chunks()] if patients.num_chunks != 1 else patients.chunks)
    coded = coded.dictionary_encode()
    prefix = f"consilium/split/{split.salt}/"
    chunks = []
    for chunk in coded.chunks:
        sides = [_rank(prefix, patient) < limit for patient in chunk.dictionary.to_pylist()]
        chunks.append(pa.array(sides, pa.bool_()).take(chunk.indices).fill_null(False))
    return pa.chunked_array(chunks, pa.bool_())


def sound_columns(contract: DataContract, table: pa.Table) -> set[str]:
    """Returns the contract's columns that the table has once and in the contract's type."""
    schema = arrow_schema(contract)
    names = table.column_names
    return {
        c.name
        for c in contract.columns
        if names.count(c.name) == 1 and table.schema.field(c.name).type == schema.field(c.name).type
    }


def _rank(prefix: str, patient: str) -> int:
    return int.from_bytes(hashlib.sha256((prefix + patient).encode()).digest()[:8], "big")


def _without(table: pa.Table, column: Column) -> pa.Table:
    return table.drop_columns([column.name]) if column.name in table.column_names else table


def _kind(contract: DataContract, condition: Condition) -> str:
    return next(c.kind for c in contract.columns if c.name == condition.column)
