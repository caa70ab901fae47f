"""The data contract: what a site's table must look like, in public ranges and code lists, never in data statistics."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from schemas.canonical import Decimal, Extended, Strict
from schemas.errors import PlanError

ColumnName = str


class Column(Extended):
    """One column of the contract.

    Attributes:
        name: Column name in the canonical table.
        kind: ``number`` (float64), ``code`` (one of `codes`, as strings), ``boolean`` or ``identifier`` (string).
        role: ``patient_id``, ``label`` (boolean outcome), ``held_out`` (boolean, public split) or ``feature``.
        unit: Unit of a number, for people.
        minimum, maximum: Public clinical range of a number: values outside are refused, and features are scaled by
            it to [-1, 1].
        codes: Allowed codes of a code column, in encoding order.
        max_missing: Largest tolerated fraction of missing values, as a decimal string.
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")
    kind: Literal["number", "code", "boolean", "identifier"]
    role: Literal["patient_id", "label", "held_out", "feature"] = "feature"
    unit: str = ""
    minimum: Decimal | None = None
    maximum: Decimal | None = None
    codes: tuple[str, ...] = ()
    max_missing: Decimal = "0"
    description: str = ""


class DataContract(Extended):
    """Columns and cohort rules that every participating site's table must satisfy."""

    format: Literal["consilium/contract/1"] = "consilium/contract/1"
    name: str
    version: str
    columns: tuple[Column, ...] = Field(min_length=3)
    rows_per_patient: Literal["one", "many"] = "one"

    @model_validator(mode="after")
    def _check(self) -> DataContract:
        names = [c.name for c in self.columns]
        if len(set(names)) != len(names):
            raise PlanError("contract-columns", "The contract names a column twice.", "Rename or remove one.")
        for role in ("patient_id", "label"):
            if sum(c.role == role for c in self.columns) != 1:
                raise PlanError("contract-roles", f"Expected exactly one {role} column.", "Correct the contract.")
        if sum(c.role == "held_out" for c in self.columns) > 1:
            raise PlanError("contract-roles", "Expected at most one held_out column.", "Correct the contract.")
        for column in self.columns:
            _check_column(column)
        return self

    def column_with_role(self, role: str) -> Column | None:
        """Returns the only column with `role`, or None."""
        return next((c for c in self.columns if c.role == role), None)

    @property
    def features(self) -> tuple[Column, ...]:
        """The feature columns in contract order."""
        return tuple(c for c in self.columns if c.role == "feature")


def _check_column(column: Column) -> None:
    if column.role in ("label", "held_out") and column.kind != "boolean":
        raise PlanError("contract-roles", f"Column {column.name} with role {column.role} must be boolean.")
    if column.role == "patient_id" and column.kind != "identifier":
        raise PlanError("contract-roles", f"Column {column.name} is the patient id and must be an identifier.")
    if column.role == "feature" and column.kind == "identifier":
        raise PlanError("contract-roles", f"Column {column.name} is an identifier and cannot be a feature.")
    if not 0 <= float(column.max_missing) <= 1 or (column.role != "feature" and float(column.max_missing) != 0):
        raise PlanError(
            "contract-missing",
            f"Column {column.name} needs a max_missing between 0 and 1, and 0 for patient id, label and held_out.",
            "Correct the contract.",
        )
    if column.kind == "number" and not _is_range(column.minimum, column.maximum):
        raise PlanError(
            "contract-range", f"Column {column.name} needs minimum < maximum.", "Give the public clinical range."
        )
    if column.kind == "code" and (len(column.codes) < 2 or len(set(column.codes)) != len(column.codes)):
        raise PlanError(
            "contract-codes", f"Column {column.name} needs at least two distinct codes.", "List all allowed codes once."
        )


def _is_range(low: str | None, high: str | None) -> bool:
    return low is not None and high is not None and -math.inf < float(low) < float(high) < math.inf


class RuleVerdict(Strict):
    """Pass or fail of one rule; nothing about rows."""

    rule: str
    passed: bool


class ContractVerdict(Strict):
    """What may leave a site about its data: verdicts per rule, and which suite was run."""

    suite_digest: str
    engine_version: str
    rules: tuple[RuleVerdict, ...]

    @property
    def passed(self) -> bool:
        return bool(self.rules) and all(rule.passed for rule in self.rules)
