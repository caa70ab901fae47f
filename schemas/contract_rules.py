"""What makes a contract one that can be checked: every rule refuses by name, with the column and the remedy."""

from __future__ import annotations

import math
import re
from datetime import datetime
from typing import TYPE_CHECKING

from schemas.conditions import ORDERED, UNARY, Condition
from schemas.errors import PlanError

if TYPE_CHECKING:
    from schemas.contract import Column, DataContract

_DECIMAL = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?(e-?[0-9]+)?")
_CORRECT = "Correct the contract."
_COMPARABLE = {
    "equals": ("number", "code", "boolean", "time"),
    "not_equals": ("number", "code", "boolean", "time"),
    "one_of": ("code",),
} | dict.fromkeys(ORDERED, ("number", "time"))
_KINDS = {
    "label": ("boolean",),
    "held_out": ("boolean",),
    "patient_id": ("identifier",),
    "feature": ("number", "code", "boolean"),
    "time": ("time",),
    "key": ("identifier", "code", "number", "time"),
    "outcome": ("number", "code", "boolean", "time"),
    "support": ("number", "code", "boolean", "time"),
}


def verify_columns(contract: DataContract) -> None:
    """Refuses columns that nobody could check or that give the outcome away.

    Raises:
        PlanError: `contract-roles`, `contract-missing`, `contract-range`, `contract-codes`, `label-leak`.
    """
    for column in contract.columns:
        _verify_kind(column)
        _verify_missing(column)
        _verify_values(column)
        if column.role == "feature" and column.name in contract.outcomes:
            raise PlanError(
                "label-leak",
                f"Column {column.name} is a feature and a declared outcome: a model would learn the answer.",
                "Remove it from the features, or from the outcomes if it is known before the outcome.",
            )


def verify_rules(contract: DataContract) -> None:
    """Refuses rules about columns that are not there, or that compare what cannot be compared.

    Raises:
        PlanError: `contract-label`, `contract-split`, `contract-keys`, `contract-cohort`, `contract-rules`.
    """
    columns = {c.name: c for c in contract.columns}
    if contract.label_rule is not None:
        _verify_conditions(contract.label_rule.when, columns, "contract-label", "the label rule")
        for condition in contract.label_rule.when:
            if any(columns[name].role != "outcome" for name in condition.columns):
                raise PlanError(
                    "contract-label",
                    f"The label rule uses {condition.column}, which is no outcome column.",
                    "Give its columns the role outcome, so that none of them becomes a feature.",
                )
    _verify_split(contract)
    for key in contract.row_keys:
        if not key or len(set(key)) != len(key) or any(columns.get(name) is None for name in key):
            raise PlanError("contract-keys", "A key names no column, one twice, or one that is not there.", _CORRECT)
        if any(float(columns[name].max_missing) > 0 or columns[name] in contract.derived for name in key):
            raise PlanError(
                "contract-keys", f"The key {', '.join(key)} has a column that may be missing or is derived.", _CORRECT
            )
    if len(set(contract.row_keys)) != len(contract.row_keys):
        raise PlanError("contract-keys", "The contract gives the same key twice.", "Remove one.")
    _verify_conditions(contract.cohort, columns, "contract-cohort", "the cohort")
    names = [rule.name for rule in contract.rules]
    if len(set(names)) != len(names):
        raise PlanError("contract-rules", "Two cross-column rules have the same name.", "Rename one.")
    for rule in contract.rules:
        _verify_conditions((*rule.when, rule.then), columns, "contract-rules", f"rule {rule.name}")
        if any(c.other for c in rule.when) or (rule.then.other and rule.then.op == "not_equals"):
            raise PlanError(
                "contract-rules",
                f"In rule {rule.name}, two columns are compared where the check cannot compare them.",
                "Compare columns outside of when, and by another operation than not_equals.",
            )


def _verify_kind(column: Column) -> None:
    if column.kind in _KINDS[column.role]:
        return
    if column.role in ("label", "held_out"):
        raise PlanError("contract-roles", f"Column {column.name} with role {column.role} must be boolean.", _CORRECT)
    if column.role == "patient_id":
        raise PlanError(
            "contract-roles", f"Column {column.name} is the patient id and must be an identifier.", _CORRECT
        )
    article = "an identifier" if column.kind == "identifier" else f"a {column.kind}"
    raise PlanError("contract-roles", f"Column {column.name} is {article} and cannot be a {column.role}.", _CORRECT)


def _verify_missing(column: Column) -> None:
    may_be_missing = column.role in ("feature", "outcome", "support")
    if not 0 <= float(column.max_missing) <= 1 or (not may_be_missing and float(column.max_missing) != 0):
        raise PlanError(
            "contract-missing",
            f"Column {column.name} needs a max_missing between 0 and 1, and 0 for patient id, label and held_out, time "
            "and key.",
            _CORRECT,
        )


def _verify_values(column: Column) -> None:
    if column.kind == "number" and not _is_range(column.minimum, column.maximum):
        raise PlanError(
            "contract-range", f"Column {column.name} needs minimum < maximum.", "Give the public clinical range."
        )
    if column.kind == "code" and (len(column.codes) < 2 or len(set(column.codes)) != len(column.codes)):
        raise PlanError(
            "contract-codes", f"Column {column.name} needs at least two distinct codes.", "List all allowed codes once."
        )
    bounds = [date for date in (column.earliest, column.latest) if date]
    if bounds and (column.kind != "time" or not all(is_date(date) for date in bounds) or bounds != sorted(bounds)):
        raise PlanError(
            "contract-range",
            f"Column {column.name} has dates that do not bound a time.",
            "Write earliest and latest as 2024-01-31, the earlier one first, for columns of kind time.",
        )


def _verify_split(contract: DataContract) -> None:
    if contract.split is None:
        return
    if contract.column_with_role("held_out") is None:
        raise PlanError(
            "contract-split", "The contract has a split and no held_out column for it.", "Add a held_out column."
        )
    if not 0 < float(contract.split.share) < 1:
        raise PlanError("contract-split", "The held-out share must lie between 0 and 1.", _CORRECT)


def _verify_conditions(conditions: tuple[Condition, ...], columns: dict[str, Column], code: str, where: str) -> None:
    for condition in conditions:
        for name in condition.columns:
            if name not in columns:
                raise PlanError(code, f"In {where}: the contract has no column {name}.", _CORRECT)
        problem = _problem(condition, columns)
        if problem:
            raise PlanError(code, f"In {where}, {condition.column}: {problem}.", _CORRECT)


def _problem(condition: Condition, columns: dict[str, Column]) -> str:
    column = columns[condition.column]
    sides = (bool(condition.value), bool(condition.values), bool(condition.other))
    if condition.op in UNARY:
        return "takes nothing to compare with" if any(sides) else ""
    if sum(sides) != 1 or sides[1] != (condition.op == "one_of"):
        return f"{condition.op} needs exactly one thing to compare with"
    if column.kind not in _COMPARABLE[condition.op] or "key" in (
        column.role,
        columns.get(condition.other, column).role,
    ):
        # A cohort chosen by patient id or case number would be a question about one person.
        return f"{condition.op} does not go with the role {column.role} and the kind {column.kind}"
    if condition.other:
        return "" if columns[condition.other].kind == column.kind else "the other column is of another kind"
    wrong = [value for value in condition.values or (condition.value,) if not _is_value(column, value)]
    return "the value to compare with is none of this column's" if wrong else ""


def _is_value(column: Column, value: str) -> bool:
    if column.kind == "number":
        return _DECIMAL.fullmatch(value) is not None
    if column.kind == "boolean":
        return value in ("true", "false")
    return is_date(value) if column.kind == "time" else value in column.codes


def is_date(value: str) -> bool:
    """Tells whether `value` is a date as 2024-01-31."""
    try:
        return re.fullmatch(r"\d{4}-\d{2}-\d{2}", value) is not None and bool(datetime.fromisoformat(value))
    except ValueError:
        return False


def _is_range(low: str | None, high: str | None) -> bool:
    return low is not None and high is not None and -math.inf < float(low) < float(high) < math.inf
