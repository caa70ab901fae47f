"""A reviewer's decision about a released candidate, signed with the reviewer's own key."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from schemas.canonical import Digest, Name
from schemas.envelope import Predicate


class ReviewDecision(Predicate):
    """A reviewer named in the plan approves or rejects a candidate. Signed by the reviewer's identity key.

    Attributes:
        number: This reviewer's n-th decision about this release; an older one cannot be replayed over a newer one.
        release: Envelope digest of ``release.json``.
        weights: SHA-256 of the weights that the release names.
        model_version: ``name/version`` as the reviewer saw it in MLflow; informative.
        evidence: Envelope digest of the evidence's manifest that the reviewer audited, or None if the reviewer did not.
        time: UTC, second precision; informative, never trusted.
    """

    reviewer: Name
    number: int = Field(ge=1, le=1_000_000)
    decision: Literal["approved", "rejected"]
    release: Digest
    weights: Digest
    model_version: str = Field(max_length=300)
    evidence: Digest | None
    reason: str = Field(min_length=1, max_length=1000)
    time: str = Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")
