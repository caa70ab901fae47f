"""A question about cohorts before a study: how many patients would qualify, and how one number is distributed."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from schemas.canonical import Decimal, Strict
from schemas.errors import PlanError


class StatisticsQuery(Strict):
    """One encrypted sum over sites; its digest is what is reserved, so another name is another charge.

    Attributes:
        column: A number of the contract, or "" to count only.
        minimum, maximum: Public range of the number; values outside are clipped to it.
        bins: Histogram bins of equal width over the range; 0 without a column.
        noise_multiplier: sigma for the h honest shares together, in units of one patient's bound.
        honest_noise_shares, k_min: As in a plan's threshold.
    """

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

    @model_validator(mode="after")
    def _check(self) -> StatisticsQuery:
        if bool(self.column) != bool(self.bins) or not float(self.minimum) < float(self.maximum) < float("inf"):
            raise PlanError("statistics-range", "Expected bins with a column and a minimum below the maximum.")
        if self.honest_noise_shares > self.k_min:
            raise PlanError("statistics-range", "Expected at most k_min honest noise shares.")
        return self
