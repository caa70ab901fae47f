"""A question about cohorts before a study: how many patients would qualify, and how one number is distributed."""

from __future__ import annotations

import math
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from schemas.canonical import Decimal, Extended, parse_canonical, parse_json
from schemas.conditions import Condition
from schemas.contract import DataContract
from schemas.contract_rules import verify_rules
from schemas.errors import PlanError
from schemas.plan import Agreement, StudyPlan, histogram_length, update_length

QUESTION_ROUND = 1
LAPLACE_BITS = range(8, 13)


class StatisticsQuery(Extended):
    """One encrypted sum over sites; its digest is what is reserved, so another name is another charge.

    Attributes:
        column: A number of the contract, or "" to count only.
        minimum, maximum: Public range of the number; values outside are clipped to it.
        bins: Histogram bins of equal width over the range; 0 without a column.
        noise_multiplier: Noise of the h honest shares together, in units of one patient's bound: the standard deviation
            (``gaussian``, L2 bound), or the scale b of the discrete Laplace (``laplace``, L1 bound, pure epsilon 1/b).
        scale_bits: One patient's bound is 2**scale_bits lattice units; 8 to 12 for ``laplace``.
        honest_noise_shares, k_min: As in a plan's threshold.
        noise: Which integer noise.
        conditions: A patient qualifies with at least one row of the cohort for which all of them hold.
    """

    LATER: ClassVar[tuple[str, ...]] = ("noise", "conditions")

    format: Literal["consilium/statistics/1"] = "consilium/statistics/1"
    name: str = Field(min_length=1, max_length=200)
    purpose: str = Field(min_length=1, max_length=2000)
    id_column: str
    column: str = ""
    minimum: Decimal = "0"
    maximum: Decimal = "1"
    bins: int = Field(default=0, ge=0, le=1000)
    noise_multiplier: Decimal
    scale_bits: int = Field(default=16, ge=8, le=24)
    honest_noise_shares: int = Field(ge=1, le=4096)
    k_min: int = Field(ge=1, le=4096)
    max_sites_per_patient: int = Field(default=2, ge=1, le=100)
    noise: Literal["gaussian", "laplace"] = "gaussian"
    conditions: tuple[Condition, ...] = Field(default=(), max_length=64)

    @model_validator(mode="after")
    def _check(self) -> Self:
        # Comparisons are written so that an infinite range, in which no value has a place, fails them.
        width = float(self.maximum) - float(self.minimum)
        if bool(self.column) != bool(self.bins) or not 0 < width < math.inf:
            raise PlanError("statistics-range", "Expected bins with a column and a minimum below the maximum.")
        if self.honest_noise_shares > self.k_min:
            raise PlanError("statistics-range", "Expected at most k_min honest noise shares.")
        if self.noise == "laplace" and self.scale_bits not in LAPLACE_BITS:
            raise PlanError("statistics-range", "Expected scale_bits from 8 to 12 for discrete Laplace noise.")
        return self

    @property
    def length(self) -> int:
        """Number of coefficients: the count; with a column also present, value and bins."""
        return 3 + self.bins if self.column else 1


class StatisticsPlan(Agreement):
    """One question that the coordinator and every site sign: one key ceremony, one encrypted sum, one answer.

    `budget` states what the question costs at most: pure epsilon for Laplace noise, (epsilon, delta) for Gaussian. The
    site's own budget decides whether it is answered.
    """

    format: Literal["consilium/question/1"] = "consilium/question/1"
    query: StatisticsQuery

    @model_validator(mode="after")
    def _check_query(self) -> Self:
        query, numbers = self.query, self.threshold
        patient = self.contract.column_with_role("patient_id")
        same = (
            (query.honest_noise_shares, numbers.honest_noise_shares),
            (query.k_min, numbers.k_min),
            (query.max_sites_per_patient, self.budget.max_sites_per_patient),
            (query.id_column, patient.name if patient else ""),
        )
        if any(left != right for left, right in same):
            raise PlanError(
                "question-mismatch",
                "Expected the query's honest shares, k_min, sites per patient and id column to be those of its plan.",
                "Write the question with `consilium statistics ask`.",
            )
        if query.column:
            _verify_column(self.contract, query.column, query.minimum, query.maximum)
        if query.conditions:
            verify_rules(self.contract.model_copy(update={"cohort": query.conditions}))
        return self


def _verify_column(contract: DataContract, name: str, low: str, high: str) -> None:
    column = next((c for c in contract.columns if c.name == name), None)
    if column is None or column.kind != "number" or column.minimum is None or column.maximum is None:
        raise PlanError(
            "question-column", f"Expected {name} to be a number of the contract.", "See the contract's columns."
        )
    if not float(column.minimum) <= float(low) < float(high) <= float(column.maximum):
        raise PlanError(
            "question-column",
            f"Expected a range of {name} within the contract's, {column.minimum} to {column.maximum}.",
            "Ask within the public range.",
        )


def parse_agreement(data: bytes, what: str) -> StudyPlan | StatisticsPlan:
    """Parses canonical bytes of a study's plan or of a question, by their format.

    Raises:
        EvidenceError: `not-canonical`, `malformed`.
        PlanError: a rule between its numbers.
    """
    plain = parse_json(data, what)
    if isinstance(plain, dict) and plain.get("format") == "consilium/question/1":
        return parse_canonical(StatisticsPlan, data, what)
    return parse_canonical(StudyPlan, data, what)


def coefficients(plan: Agreement, kind: str) -> int:
    """Returns how many coefficients a contribution of `kind` has: ``train``, ``evaluate`` or ``statistics``.

    Raises:
        PlanError: `wrong-kind` if the plan foresees no such sum.
    """
    if isinstance(plan, StatisticsPlan) and kind == "statistics":
        return plan.query.length
    if isinstance(plan, StudyPlan) and kind in ("train", "evaluate"):
        return update_length(plan) if kind == "train" else histogram_length(plan)
    raise PlanError("wrong-kind", f"The plan foresees no sum of kind {kind}.", "Ask for what was signed.")
