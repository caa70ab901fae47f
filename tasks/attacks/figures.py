"""What attacks reached, as a plain report that MLflow shows beside epsilon. No evidence; nothing heavy to import."""

from __future__ import annotations

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
