"""The data contract: what a site's table must look like, in public ranges and code lists, never in data statistics."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from schemas.canonical import Decimal, Extended, Strict
from schemas.conditions import Condition, CrossRule, LabelRule, Split
from schemas.contract_rules import verify_columns, verify_rules
from schemas.errors import PlanError, SiteDataError

Kind = Literal["number", "code", "boolean", "identifier", "time"]
Role = Literal["patient_id", "label", "held_out", "feature", "time", "key", "outcome", "support"]


class Column(Extended):
    """One column of the contract.

    Attributes:
        name: Column name in the canonical table.
        kind: ``number`` (float64), ``code`` (one of `codes`, as strings), ``boolean``, ``identifier`` (string) or
            ``time`` (microseconds, the hospital's clock).
        role: ``patient_id``, ``label`` (boolean outcome), ``held_out`` (boolean, public split) or ``feature``. The
            model sees features alone: ``time`` orders a patient's rows, ``key`` tells rows apart, ``outcome`` is what
            the label is derived from, and ``support`` serves cohort and cross-column rules.
        unit: Unit of a number, for people.
        minimum, maximum: Public clinical range of a number: values outside are refused, and features are scaled by
            it to [-1, 1].
        codes: Allowed codes of a code column, in encoding order.
        max_missing: Largest tolerated fraction of missing values, as a decimal string.
        earliest, latest: ISO dates that bound a time; a time in the future is refused in any case.
    """

    LATER: ClassVar[tuple[str, ...]] = ("earliest", "latest")

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")
    kind: Kind
    role: Role = "feature"
    unit: str = ""
    minimum: Decimal | None = None
    maximum: Decimal | None = None
    codes: tuple[str, ...] = ()
    max_missing: Decimal = "0"
    description: str = ""
    earliest: str = ""
    latest: str = ""


class DataContract(Extended):
    """Columns and cohort rules that every participating site's table must satisfy.

    Attributes:
        columns: The canonical table, in order.
        rows_per_patient: Whether a patient may have several rows.
        description: What the study is about, for people.
        label_rule: How the label is derived from outcome columns; without it the table has the label.
        split: How held-out patients are chosen; without it the table has the held_out column, or nobody is held out.
        row_keys: Column groups by which no two rows may be equal.
        cohort: Rows for which one of these does not hold are no part of the study.
        rules: Cross-column rules.
        outcomes: Further names of outcomes that no feature may have or be filled from.
    """

    LATER: ClassVar[tuple[str, ...]] = ("description", "label_rule", "split", "row_keys", "cohort", "rules", "outcomes")

    format: Literal["consilium/contract/1"] = "consilium/contract/1"
    name: str
    version: str
    columns: tuple[Column, ...] = Field(min_length=3)
    rows_per_patient: Literal["one", "many"] = "one"

    description: str = ""
    label_rule: LabelRule | None = None
    split: Split | None = None
    row_keys: tuple[tuple[str, ...], ...] = ()
    cohort: tuple[Condition, ...] = ()
    rules: tuple[CrossRule, ...] = ()
    outcomes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> DataContract:
        names = [c.name for c in self.columns]
        if len(set(names)) != len(names):
            raise PlanError("contract-columns", "The contract names a column twice.", "Rename or remove one.")
        for role in ("patient_id", "label"):
            if sum(c.role == role for c in self.columns) != 1:
                raise PlanError("contract-roles", f"Expected exactly one {role} column.", "Correct the contract.")
        for role in ("held_out", "time"):
            if sum(c.role == role for c in self.columns) > 1:
                raise PlanError("contract-roles", f"Expected at most one {role} column.", "Correct the contract.")
        verify_columns(self)
        verify_rules(self)
        return self

    def column_with_role(self, role: str) -> Column | None:
        """Returns the only column with `role`, or None."""
        return next((c for c in self.columns if c.role == role), None)

    @property
    def features(self) -> tuple[Column, ...]:
        """The feature columns in contract order."""
        return tuple(c for c in self.columns if c.role == "feature")

    @property
    def derived(self) -> tuple[Column, ...]:
        """The columns that follow from others and need not be in any table: a ruled label, a ruled split."""
        roles = {"label"} if self.label_rule else set()
        roles |= {"held_out"} if self.split else set()
        return tuple(c for c in self.columns if c.role in roles)


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


class ContractViolation(SiteDataError):
    """The site's table breaks rules of the contract.

    Args:
        verdict: Which rules; it may leave the site with the refusal.
    """

    def __init__(self, verdict: ContractVerdict, message: str, remedy: str) -> None:
        super().__init__("contract-violated", message, remedy)
        self.verdict = verdict
