"""Entries of a site's privacy ledger and of the coordinator's study log: events, never only epsilon.

An entry is a signed envelope of one `LedgerEntry`. `previous` is the envelope digest of the entry before (64 zeros for
the first); over the envelope bytes as leaves stands an RFC 6962 Merkle tree. The statement's subject is the study the
entry is about, or 64 zeros.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from schemas.canonical import Decimal, Digest, Name, Strict
from schemas.envelope import Predicate
from schemas.messages import ModelRelease, StatisticsRelease
from schemas.review import ReviewDecision

NO_STUDY = "0" * 64


class GaussianEvent(Strict):
    """One execution of an integer Gaussian mechanism on a clipped sum; what a stranger needs to recompute epsilon.

    `tasks.privacy.accounting.verify_event` refuses figures that contradict each other.

    Attributes:
        data: Which disjoint part of the data source was touched; parts compose in parallel.
        runs: (sampling probability, noise multiplier of the h honest shares together, steps), exact decimals.
        sensitivity: Integer L2 bound of one privacy unit after encoding (units of the integer lattice).
        local_sigma: Standard deviation of this site's own noise share in lattice units, exactly what the sampler is
            given: local_sigma >= noise_multiplier * sensitivity / sqrt(h).
        divisor: Public divisor of the server step ("1" for a histogram).
        dimension: Number of coefficients.
        noise_scope: ``local`` where each of the steps has this site's own full noise and only what follows from the
            noised steps leaves; honest_assumed and sites_in_sum are then 1.
        sites_in_sum: k_min of the plan: the fewest shares that an opened sum can hold.
        honest_assumed: h.
        effective_sigma: Lattice standard deviation of the h honest shares together, decimal rounded down.
    """

    kind: Literal["gaussian"] = "gaussian"
    data: Literal["training", "held-out"]
    unit: Literal["patient"] = "patient"
    neighboring_relation: Literal["add-or-remove-one"] = "add-or-remove-one"
    contribution_bound: str
    id_column: str
    max_sites_per_patient: int = Field(ge=1, le=1_000_000)
    runs: tuple[tuple[Decimal, Decimal, int], ...] = Field(min_length=1)
    clip_norm: Decimal
    scale_bits: int = Field(ge=0, le=40)
    sensitivity: int = Field(ge=1, le=2**40)
    local_sigma: Decimal
    divisor: Decimal
    dimension: int = Field(ge=1, le=2**53)
    noise_scope: Literal["distributed", "local"] = "distributed"
    sites_in_sum: int = Field(ge=1, le=1_000_000)
    honest_assumed: int = Field(ge=1, le=1_000_000)
    effective_sigma: Decimal
    rng: Literal["os-seeded-aes-ctr"]
    sampler: Literal["discrete-gaussian"]


class LaplaceEvent(Strict):
    """One execution of a discrete Laplace mechanism on a bounded sum: purely epsilon-private, epsilon below.

    Attributes:
        data, contribution_bound, id_column, max_sites_per_patient, dimension, sites_in_sum: As in `GaussianEvent`.
        clip_norm: L1 bound of one patient in real units.
        sensitivity: The same in lattice units; epsilon = sensitivity / scale.
        scale: Scale of the discrete Laplace noise that `honest_assumed` shares together are, in lattice units.
    """

    kind: Literal["laplace"] = "laplace"
    data: Literal["training", "held-out"]
    unit: Literal["patient"] = "patient"
    neighboring_relation: Literal["add-or-remove-one"] = "add-or-remove-one"
    contribution_bound: str
    id_column: str
    max_sites_per_patient: int = Field(ge=1, le=1_000_000)
    clip_norm: Decimal
    scale_bits: int = Field(ge=0, le=40)
    sensitivity: int = Field(ge=1, le=2**40)
    scale: Decimal
    dimension: int = Field(ge=1, le=2**53)
    noise_scope: Literal["distributed"] = "distributed"
    sites_in_sum: int = Field(ge=1, le=1_000_000)
    honest_assumed: int = Field(ge=1, le=1_000_000)
    rng: Literal["os-seeded-aes-ctr"]
    sampler: Literal["polya-difference"]


PrivacyEvent = Annotated[GaussianEvent | LaplaceEvent, Field(discriminator="kind")]


class FilterState(Strict):
    """Totals of the privacy filter over the site's data source for one data part: GDP mu^2, exact decimal strings."""

    kind: Literal["gdp"] = "gdp"
    data: Literal["training", "held-out"]
    spent: Decimal
    limit: Decimal


class RenyiState(Strict):
    """Totals of a filter in Renyi divergence at one integer `order`, fixed with the part's first charge."""

    kind: Literal["renyi"] = "renyi"
    order: int = Field(ge=2, le=256)
    data: Literal["training", "held-out"]
    spent: Decimal
    limit: Decimal


FilterTotals = Annotated[FilterState | RenyiState, Field(discriminator="kind")]


class PlanApproved(Strict):
    kind: Literal["plan-approved"] = "plan-approved"
    approval: Digest


class CohortRegistered(Strict):
    """The site's data source got a budget for its lifetime. `cohort` is a digest keyed by a secret of the site.

    A later registration (more patients, another epsilon) replaces the digest and the limit, never what was spent; delta
    stays.
    """

    kind: Literal["cohort-registered"] = "cohort-registered"
    cohort: Digest
    epsilon: Decimal
    delta: Decimal


class PrivacyReserved(Strict):
    """Charged before data is touched; atomic with the filter's decision."""

    kind: Literal["privacy-reserved"] = "privacy-reserved"
    cohort: Digest
    instruction: Digest
    round: int
    event: PrivacyEvent
    before: FilterTotals
    after: FilterTotals


class PrivacyCommitted(Strict):
    """The reserved mechanism ran and `contribution` (an envelope digest) answers `instruction`.

    A later attempt of a round sends the stored values again: it has a commit of its own and no second reservation.
    """

    kind: Literal["privacy-committed"] = "privacy-committed"
    instruction: Digest
    round: int
    contribution: Digest


class Refused(Strict):
    """The site declined. `requested`, `before` only where a budget decided."""

    kind: Literal["refused"] = "refused"
    instruction: Digest
    code: str
    requested: Decimal | None = None
    before: FilterTotals | None = None


class KeyCeremony(Strict):
    kind: Literal["key-ceremony"] = "key-ceremony"
    epoch: int
    sid_star: Digest


class RecordSigned(Strict):
    kind: Literal["record-signed"] = "record-signed"
    round: int
    record: Digest


class ShareReleased(Strict):
    kind: Literal["share-released"] = "share-released"
    round: int
    record: Digest
    request: Digest
    share: Digest


class InstructionIssued(Strict):
    kind: Literal["instruction-issued"] = "instruction-issued"
    round: int
    attempt: int
    instruction: Digest


class RecordProposed(Strict):
    kind: Literal["record-proposed"] = "record-proposed"
    round: int
    record: Digest
    dropped: tuple[tuple[Name, str], ...]


class SumOpened(Strict):
    kind: Literal["sum-opened"] = "sum-opened"
    round: int
    opening: Digest
    model: Digest


class ModelReleased(Strict):
    kind: Literal["model-released"] = "model-released"
    release: ModelRelease


class ReviewDecided(Strict):
    """A reviewer's signed decision arrived, by whichever door; `review` is its envelope digest."""

    kind: Literal["review-decided"] = "review-decided"
    review: Digest
    decision: ReviewDecision


class ReleaseDecided(Strict):
    """What the release gate did after the decisions entered before it.

    Attributes:
        release: Envelope digest of ``release.json``.
        outcome: ``withdrawn`` if a reviewer rejected what had been released.
        decisions: Envelope digests of the latest decision of every reviewer who decided, by reviewer name.
        evidence: Envelope digest of the manifest of the evidence that the gate had audited.
        model_version: ``name/version`` in MLflow; informative.
    """

    kind: Literal["release-decided"] = "release-decided"
    release: Digest
    outcome: Literal["released", "rejected", "withdrawn"]
    decisions: tuple[Digest, ...] = Field(min_length=1)
    evidence: Digest
    model_version: str = Field(max_length=300)


class StatisticsAnswered(Strict):
    """A question was answered: nothing more is summed under it."""

    kind: Literal["statistics-answered"] = "statistics-answered"
    release: StatisticsRelease


Body = Annotated[
    PlanApproved
    | CohortRegistered
    | PrivacyReserved
    | PrivacyCommitted
    | Refused
    | KeyCeremony
    | RecordSigned
    | ShareReleased
    | InstructionIssued
    | RecordProposed
    | SumOpened
    | ModelReleased
    | StatisticsAnswered
    | ReviewDecided
    | ReleaseDecided,
    Field(discriminator="kind"),
]


class LedgerEntry(Predicate):
    """One entry.

    Attributes:
        owner: Site or coordinator whose log this is.
        sequence: 0-based position.
        previous: Envelope digest of the entry before; 64 zeros for the first.
        time: UTC, second precision, ISO 8601 with Z; informative, never trusted.
        software: Versions that produced the entry, e.g. "consilium 0.1.0".
    """

    owner: Name
    sequence: int = Field(ge=0)
    previous: Digest
    time: str = Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")
    software: str
    body: Body
