"""What attacks reached, as plain reports. No evidence; nothing heavy to import.

`AttackReport` is about public patients, and MLflow shows it beside epsilon. `ReleasedMembership` is about a site's own:
exact figures that nobody paid for, so nothing that sends, logs or stores may take one.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class AttackReport(BaseModel):
    """What attacks on this plan's mechanism reach on public or simulated patients.

    Attributes:
        study: Plan digest.
        source: What the patients were, in words; never a site's own.
        figures: Metric name to value, e.g. ``membership_tpr_at_fpr_1pct``.
        not_run: Attack to the reason why it was not run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    study: str
    source: str
    models: int
    patients: int
    figures: dict[str, float]
    not_run: dict[str, str]


class RateFigure(BaseModel):
    """Membership at one false-positive rate; proportions with Wilson's 95 % interval.

    Attributes:
        allowed: The false-positive rate that is asked for.
        bound: Largest true-positive rate at it that epsilon allows, on average over the noise.
        tpr: (value, low, high), None if it cannot be measured.
        fpr: The rate that the threshold really has among the held-out patients, likewise.
        above_bound: Whether tpr's lower end is above what epsilon allows at fpr's upper end.
        not_measured: Why not, "" if it was.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    allowed: float
    bound: float
    tpr: tuple[float, float, float] | None
    fpr: tuple[float, float, float] | None
    above_bound: bool
    not_measured: str


class ReleasedMembership(BaseModel):
    """How well the loss of the released model tells a site's training patients from its held-out ones.

    Attributes:
        study: Plan digest.
        site: Whose patients.
        rounds_in: Opened training rounds whose sum holds this site's update, of `rounds`.
        members, others: Training and held-out patients.
        auc: (value, low, high), 95 % by DeLong; 0.5 is blind.
        auc_bound: Largest area that epsilon allows, on average over the noise.
        epsilon, delta: What the signed release says this study cost a patient of this site, collusion reading.
        leaves: Always False.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    study: str
    site: str
    rounds_in: int
    rounds: int
    members: int
    others: int
    auc: tuple[float, float, float]
    auc_bound: float
    rates: tuple[RateFigure, ...]
    epsilon: float
    delta: float
    leaves: Literal[False] = False
    notice: str
