"""The rules that follow from a contract, as plain values: names, engines, arguments, digest, remedies."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from schemas.canonical import digest_of
from schemas.contract import Column, ContractVerdict, DataContract

GATES = ("present", "type", "finite")
_REMEDIES = {
    "cohort": "the table has no row that the contract can use: give the site's cohort, or decline the study",
    "present": "the column is missing or named twice: rename or add it, or name its source in the mapping",
    "type": "the column has another type than the contract says: convert it, or give words or a format in the mapping",
    "finite": "the column holds NaN or infinity: write missing numbers as null",
    "split": "a patient has rows on both sides of the public split: give all rows of a patient the same side",
    "complete": "the column has missing values and the contract allows none: complete or exclude those rows",
    "missing": "more values are missing than the contract allows: complete the column, or ask for a new contract",
    "range": "a value lies outside the contract's public range: check the unit, correct the value or set it missing",
    "codes": "a code is not in the contract's list: map it to a listed code or set it missing",
    "unique": "a patient has more than one row and the contract wants one: select one row per patient",
    "future": "a time lies in the future: check the date format and the hospital's clock",
    "keys": "two rows have the same key: remove the duplicates",
    "rule": "rows contradict the contract's rule: correct the values or set them missing",
}


def suite_description(contract: DataContract) -> list[dict[str, Any]]:
    """Returns every rule as canonical plain values, in the order of the verdict: rule, engine, type and arguments."""
    rules = [_structural("cohort", "rows")]
    for column in contract.columns:
        rules += [_structural("present", column.name), _structural("type", column.name)]
        if column.kind == "number":
            rules.append(_structural("finite", column.name))
    split = contract.column_with_role("held_out")
    if split is not None and contract.rows_per_patient == "many":
        rules.append(_structural("split", split.name))
    for column in contract.columns:
        rules += _value_rules(contract, column)
    for key in contract.row_keys:
        rule = _expectation("keys", "+".join(key), "ExpectCompoundColumnsToBeUnique", column_list=list(key))
        rules.append(rule)
    for cross in contract.rules:
        # The rule itself is the argument: what the engine is told follows from it (`tasks.contract.engine`).
        rules.append(_expectation("rule", cross.name, "CrossRule", **cross.model_dump(mode="json")))
    return rules


def suite_digest(contract: DataContract) -> str:
    """Returns the digest of our own canonical description of the suite, independent of the engine's format."""
    return digest_of({"format": "consilium/suite/1", "rules": suite_description(contract)})


def columns_of(contract: DataContract, rule: str) -> tuple[str, ...]:
    """Returns the columns that a rule is about; none for the whole table."""
    kind, subject = rule.split(":")
    if kind == "rule":
        return next(cross.columns for cross in contract.rules if cross.name == subject)
    return () if kind == "cohort" else tuple(subject.split("+"))


def remedy_of(rule: str) -> str:
    """Returns what a steward can do about a rule that did not pass."""
    return _REMEDIES[rule.split(":", maxsplit=1)[0]]


def shown_failures(contract: DataContract, verdict: ContractVerdict) -> tuple[str, ...]:
    """Returns the rules that did not pass, without those that only follow from another one of their columns.

    If a column that decides who is in the cohort is absent or of another type, nothing else was judged on the cohort's
    rows: the structural rules alone are said.
    """
    failed = [r.rule for r in verdict.rules if not r.passed]
    structural = [rule for rule in failed if rule.split(":", maxsplit=1)[0] in GATES]
    deciding = {name for condition in contract.cohort for name in condition.columns}
    if "cohort:rows" in failed or any(deciding.intersection(columns_of(contract, rule)) for rule in structural):
        failed = structural or ["cohort:rows"]
    shown: list[str] = []
    stopped: set[str] = set()
    for rule in failed:
        columns = columns_of(contract, rule)
        if not stopped.intersection(columns):
            shown.append(rule)
        if rule in structural:
            stopped.update(columns)
    return tuple(shown)


def describe_failures(contract: DataContract, verdict: ContractVerdict) -> tuple[str, ...]:
    """Returns one line per rule that did not pass: the rule, its columns and the remedy.

    A rule that failed only because an earlier one of its columns did (a range of an absent column) is not repeated.
    """
    return tuple(f"{rule} ({_where(contract, rule)}{remedy_of(rule)})" for rule in shown_failures(contract, verdict))


def _where(contract: DataContract, rule: str) -> str:
    return f"columns {', '.join(columns_of(contract, rule))}: " if rule.startswith("rule:") else ""


def _structural(kind: str, subject: str) -> dict[str, Any]:
    return {"rule": f"{kind}:{subject}", "engine": "pyarrow", "type": kind, "arguments": {}}


def _value_rules(contract: DataContract, column: Column) -> list[dict[str, Any]]:
    allowed = Decimal(column.max_missing)
    name = column.name
    rules = []
    if allowed <= 0:
        rules.append(_expectation("complete", name, "ExpectColumnValuesToNotBeNull"))
    elif allowed < 1:
        mostly = str(1 - allowed)
        rules.append(_expectation("missing", name, "ExpectColumnValuesToNotBeNull", mostly=mostly))
    if column.kind == "number":
        bounds = {"min_value": str(column.minimum), "max_value": str(column.maximum)}
        rules.append(_expectation("range", name, "ExpectColumnValuesToBeBetween", **bounds))
    if column.kind == "time":
        rules.append(_expectation("future", name, "ExpectColumnValuesToBeBetween", max_value="now"))
        bounds = {"min_value": column.earliest, "max_value": column.latest}
        bounds = {end: date for end, date in bounds.items() if date}
        if bounds:
            rules.append(_expectation("range", name, "ExpectColumnValuesToBeBetween", **bounds))
    if column.kind == "code":
        rules.append(_expectation("codes", name, "ExpectColumnValuesToBeInSet", value_set=list(column.codes)))
    if column.role == "patient_id" and contract.rows_per_patient == "one":
        rules.append(_expectation("unique", name, "ExpectColumnValuesToBeUnique"))
    return rules


def _expectation(kind: str, subject: str, type_: str, **arguments: object) -> dict[str, Any]:
    return {"rule": f"{kind}:{subject}", "engine": "great-expectations", "type": type_, "arguments": arguments}
