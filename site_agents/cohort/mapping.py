"""A hospital's mapping: its rows become the contract's rows, batch by batch; what does not fit is left to be refused.

Nothing here quotes a value: a value that cannot be converted leaves its column in a type that the contract's type rule
refuses by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from schemas.contract import Column, DataContract
from schemas.errors import SiteDataError
from schemas.mapping import ColumnMapping, SiteMapping
from schemas.yaml_files import read_yaml

if TYPE_CHECKING:
    import pyarrow as pa

_ONLY = {
    "number": {"unit", "molar_mass", "scale", "decimal_comma"},
    "code": {"codes"},
    "boolean": {"true", "false"},
    "time": {"formats"},
    "identifier": set[str](),
}


def read_mapping(path: Path) -> SiteMapping:
    """Reads a mapping file.

    Raises:
        SiteDataError: `yaml-unreadable`, `yaml-fields`, naming every field that does not fit.
    """
    return read_yaml(SiteMapping, path, SiteDataError)


def verify_mapping(contract: DataContract, mapping: SiteMapping) -> None:
    """Refuses a mapping that cannot fill this contract, before any row is read.

    Raises:
        SiteDataError: `mapping-contract`, `mapping-columns`, `mapping-field`, `mapping-codes`, `mapping-unit`,
            `mapping-date-format`, `mapping-rows`, or `label-leak` where a feature is filled from an outcome.
    """
    from site_agents.cohort.converting import verify_format
    from site_agents.cohort.units import conversion

    for said, expected, what in (
        (mapping.contract, contract.name, "contract"),
        (mapping.version, contract.version, "version"),
    ):
        if said and said != expected:
            raise _refusal(
                "mapping-contract",
                f"The mapping is for {what} {said}, and the study's is {expected}.",
                "Review the mapping against the study's contract, then change the name or version in it.",
            )
    derived = {c.name for c in contract.derived}
    unknown = sorted(set(mapping.columns) - ({c.name for c in contract.columns} - derived))
    if unknown:
        raise _refusal(
            "mapping-columns",
            f"The mapping fills columns that the contract has not or derives itself: {', '.join(unknown)}.",
            "Remove or rename them.",
        )
    for column in contract.columns:
        if column.name not in derived:
            given = mapping.of(column.name)
            _verify_fields(column, given)
            for form in given.formats:
                verify_format(column.name, form)
            if column.kind == "number":
                conversion(column, given)
    _verify_no_leak(contract, mapping)
    if mapping.rows.keep != "all" and contract.column_with_role("time") is None:
        raise _refusal(
            "mapping-rows",
            f"rows: keep {mapping.rows.keep} needs an order, and the contract has no column with role time.",
            "Select one row per patient in the source, or ask for a contract with a time column.",
        )


def map_batches(
    contract: DataContract,
    mapping: SiteMapping | None,
    batches: Iterable[pa.RecordBatch],
    places: dict[str, int] | None = None,
) -> Iterator[pa.RecordBatch]:
    """Brings raw batches into the contract's columns and types, adds derived columns and keeps the cohort's rows.

    A column that is absent, named twice or cannot be converted is absent or keeps a type that the contract check
    refuses; batches may then differ in type (`tasks.contract.arrow.collect_table`). At least one batch comes, possibly
    without rows, so that a table without rows is still checked for its columns.

    Args:
        mapping: None for a table that has the contract's names, units and codes.
        places: Filled with column -> the source's first row (from 1) that could not be converted, for the steward.

    Raises:
        SiteDataError: as `verify_mapping`.
    """
    from site_agents.cohort.grouping import keep_one_row

    mapping = mapping or SiteMapping()
    verify_mapping(contract, mapping)
    tables = _map_each(contract, mapping, batches, {} if places is None else places)
    if mapping.rows.keep != "all":
        tables = keep_one_row(contract, tables, mapping.rows.keep)
    for table in tables:
        yield from table.combine_chunks().to_batches() or [_empty_batch(table)]


def _map_each(
    contract: DataContract, mapping: SiteMapping, batches: Iterable[pa.RecordBatch], places: dict[str, int]
) -> Iterator[pa.Table]:
    import pyarrow as pa

    from site_agents.cohort.converting import BatchConverter
    from tasks.contract.selection import select_cohort

    converter = BatchConverter(contract, mapping, places)
    nothing = True
    for batch in batches:
        nothing = False
        yield select_cohort(contract, converter.convert(batch))
    if nothing:
        empty = pa.RecordBatch.from_pylist([], schema=pa.schema([]))
        yield select_cohort(contract, converter.convert(empty))


def _empty_batch(table: pa.Table) -> pa.RecordBatch:
    import pyarrow as pa

    return pa.RecordBatch.from_arrays([pa.array([], f.type) for f in table.schema], schema=table.schema)


def _verify_fields(column: Column, given: ColumnMapping) -> None:
    allowed = _ONLY[column.kind]
    wrong = sorted(name for kind in _ONLY.values() for name in kind - allowed if getattr(given, name))
    if wrong:
        raise _refusal(
            "mapping-field",
            f"Column {column.name} is of kind {column.kind} and cannot have {', '.join(wrong)}.",
            "Remove them from the mapping.",
        )
    if len(given.source) > 1 and column.kind != "identifier":
        raise _refusal("mapping-field", f"Column {column.name} has several sources.", "Only an identifier may.")
    if given.absent and (given.source or column.role not in ("feature", "outcome", "support")):
        raise _refusal(
            "mapping-field", f"Column {column.name} cannot be absent.", "Name the column that it is filled from."
        )
    unlisted = set(given.codes.values()) - set(column.codes)
    if unlisted:
        raise _refusal(
            "mapping-codes",
            f"Column {column.name} is mapped to codes that the contract does not list: {', '.join(sorted(unlisted))}.",
            f"Map to {', '.join(column.codes)}, or list the value under missing.",
        )
    if bool(given.true) != bool(given.false) or {w.lower() for w in given.true} & {w.lower() for w in given.false}:
        raise _refusal(
            "mapping-field",
            f"Column {column.name} needs words for both true and false, and none for both.",
            "Write for example true: [J] and false: [N].",
        )


def _verify_no_leak(contract: DataContract, mapping: SiteMapping) -> None:
    derived = {c.name for c in contract.derived}
    outcomes = {name.lower() for name in contract.outcomes}
    for column in contract.columns:
        if column.role in ("label", "outcome"):
            outcomes.add(column.name.lower())
            outcomes |= {name.lower() for name in mapping.of(column.name).source if column.name not in derived}
    for column in contract.features:
        if any(name.lower() in outcomes for name in mapping.of(column.name).source):
            raise _refusal(
                "label-leak",
                f"Feature {column.name} is filled from an outcome column: a model would learn the answer.",
                "Fill it from a column that was known before the outcome.",
            )


def _refusal(code: str, message: str, remedy: str) -> SiteDataError:
    return SiteDataError(code, message, remedy)
