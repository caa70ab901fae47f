"""The study plan: everything that changes a guarantee, frozen; its digest is the study id.

What does not change a guarantee (threads, poll intervals, deadlines, paths) is `RunOptions` or a site's own settings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from math import prod
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator
from typing_extensions import TypeVar

from schemas.canonical import Decimal, Extended, HexKey, Name, Strict, digest_of
from schemas.contract import DataContract
from schemas.errors import PlanError
from schemas.threshold import Threshold, verify_numbers_fit

MAX_MODULE_LENGTH = 2**28


class SiteEntry(Extended):
    """One site of a study.

    Attributes:
        identity_key: Raw Ed25519 public key, hex.
        hpke_key: Raw HPKE public key (MLKEM768-X25519, 1216 bytes), hex.
        declared_patients: Rounded cohort size that the site declares when it approves; public.
        key_holder: Whether the site holds a share of the collective key.
        contributor: Whether the site contributes updates.
    """

    name: Name
    identity_key: HexKey
    hpke_key: str = Field(pattern=r"^[0-9a-f]{2432}$")
    declared_patients: int = Field(ge=1, le=100_000_000)
    key_holder: bool = True
    contributor: bool = True


class CoordinatorEntry(Strict):
    name: Name
    identity_key: HexKey


class ReviewerEntry(Strict):
    name: Name
    identity_key: HexKey


class ParameterSpec(Strict):
    """One parameter tensor of a module and the public rule for its start.

    Attributes:
        start: ``uniform`` in +-1/sqrt(fan_in), fan_in the product of all extents but the first (of the only one, if
            there is one); ``zeros``; ``ones``.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.]{0,99}$")
    shape: tuple[Annotated[int, Field(ge=1, le=2**31)], ...] = Field(max_length=8)
    start: Literal["uniform", "zeros", "ones"]


class ModuleSpec(Strict):
    """A torch module that sites have installed themselves; nothing of it travels but these public facts.

    Attributes:
        distribution: Installed package, normalised name.
        version: Its exact version.
        name: Entry point in the group ``consilium.models``: called with the feature count, it returns the module.
        parameters: Every parameter in the module's own order: the flat order of every update.
    """

    distribution: str = Field(pattern=r"^[a-z0-9](-?[a-z0-9]){0,99}$")
    version: str = Field(pattern=r"^[0-9][0-9A-Za-z.+!]{0,49}$")
    name: Name
    parameters: tuple[ParameterSpec, ...] = Field(min_length=1, max_length=10_000)

    @model_validator(mode="after")
    def _check(self) -> ModuleSpec:
        names = [parameter.name for parameter in self.parameters]
        if len(set(names)) != len(names) or sum(prod(p.shape) for p in self.parameters) > MAX_MODULE_LENGTH:
            raise PlanError(
                "model-parameters", f"Parameters have distinct names and at most {MAX_MODULE_LENGTH} numbers."
            )
        return self

    @property
    def entry(self) -> str:
        """What a site allows: ``distribution:name``."""
        return f"{self.distribution}:{self.name}"


class ModelSpec(Extended):
    """Model from the registry; one logit output.

    ``logistic`` regression, ``mlp`` with tanh units, or a ``module`` that every site has installed and allowed.
    """

    LATER: ClassVar[tuple[str, ...]] = ("module",)

    kind: Literal["logistic", "mlp", "module"]
    hidden: tuple[int, ...] = ()
    module: ModuleSpec | None = None

    @model_validator(mode="after")
    def _check(self) -> ModelSpec:
        if (self.kind == "mlp") != bool(self.hidden) or any(not 1 <= h <= 4096 for h in self.hidden):
            raise PlanError("model-hidden", "An mlp needs hidden sizes from 1 to 4096 and another model has none.")
        if (self.kind == "module") != (self.module is not None):
            raise PlanError(
                "model-module",
                "A module model, and no other, says which module it is.",
                "Take what `consilium model describe` prints.",
            )
        return self


class LocalSpec(Extended):
    """What a site does between two sums in ``local`` mode: FedAvg, or FedProx where `proximal` is above zero.

    Attributes:
        steps: DP-SGD steps per round; each is charged.
        learning_rate: Of one step at the site.
        proximal: FedProx mu: every step is pulled towards the round's global model by mu * (local - global).
        update_norm: Public L2 bound U on (global - local), applied after all noise; U is 2**scale_bits lattice units.
    """

    steps: int = Field(ge=1, le=10_000)
    learning_rate: Decimal
    proximal: Decimal = "0"
    update_norm: Decimal

    @model_validator(mode="after")
    def _check(self) -> LocalSpec:
        # Comparisons are written so that a NaN or infinity fails them.
        fits = 0.0 < float(self.learning_rate) < math.inf and 0.0 <= float(self.proximal) < math.inf
        if not fits or not 1e-30 <= float(self.update_norm) <= 1e30:
            raise PlanError(
                "local-range",
                "Expected local learning_rate > 0, proximal >= 0, and update_norm between 1e-30 and 1e30.",
                "Correct the plan's local steps.",
            )
        return self


class MechanismSpec(Extended):
    """How a site's patients enter a training round's sum: per patient, clipped, with integer Gaussian noise.

    ``distributed``: one clipped-gradient sum per round, its noise in shares. ``local``: several DP-SGD steps at the
    site, each with the site's own full noise; what is summed is the model's change times the site's public weight.

    Attributes:
        clip_norm: L2 bound C on one patient's summed contribution (mean gradient of the patient's rows).
        scale_bits: A real x is encoded as round(x / C * 2**scale_bits).
        noise_multiplier: sigma; standard deviation sigma * C of the h honest shares together, or of every local step.
        sampling_probability: Public; "1" is full batch.
        rounds: Number of training rounds T.
        unit: The privacy unit.
        neighboring_relation: What may differ.
        local: The local steps; in ``local`` mode only.
    """

    LATER: ClassVar[tuple[str, ...]] = ("local",)

    mode: Literal["distributed", "local"] = "distributed"
    unit: Literal["patient"] = "patient"
    neighboring_relation: Literal["add-or-remove-one"] = "add-or-remove-one"
    clip_norm: Decimal
    scale_bits: int = Field(ge=8, le=24)
    noise_multiplier: Decimal
    sampling_probability: Decimal = "1"
    rounds: int = Field(ge=1, le=10_000)
    local: LocalSpec | None = None

    @model_validator(mode="after")
    def _check(self) -> MechanismSpec:
        if (self.mode == "local") != (self.local is not None):
            raise PlanError(
                "mechanism-local", "Local steps belong to the local mode, which needs them, and to no other."
            )
        return self

    @property
    def lattice_norm(self) -> str:
        """What 2**scale_bits lattice units of an opened training sum mean in real units: C, or the update's bound."""
        return self.clip_norm if self.local is None else self.local.update_norm

    @property
    def releases(self) -> int:
        """Noised sums of a site's training patients over the study: one per round, or one per local step."""
        return self.rounds * (1 if self.local is None else self.local.steps)


class OptimizerSpec(Extended):
    """Server step: the opened sum is divided by the public `divisor` and fed to the optimizer.

    In ``local`` mode the divisor is the sum of the public weights; ``sgd`` with learning rate 1 is plain averaging.
    """

    kind: Literal["sgd", "momentum", "adam", "yogi"]
    learning_rate: Decimal
    divisor: Decimal
    momentum: Decimal = "0"
    beta1: Decimal = "0.9"
    beta2: Decimal = "0.999"
    epsilon: Decimal = "1e-8"
    weight_decay: Decimal = "0"


class BudgetSpec(Extended):
    """Per-site total over the study in the collusion reading, evaluation included.

    Training patients and held-out patients are disjoint and compose in parallel (two sub-ledgers).
    """

    epsilon: Decimal
    delta: Decimal
    max_sites_per_patient: int = Field(default=2, ge=1, le=100)


class EvaluationSpec(Extended):
    """One encrypted (label, score bin) histogram over the held-out patients, with integer Gaussian noise shares.

    Attributes:
        bins: Score bins of equal width in probability, or in the public transform that `steepness` names.
        noise_multiplier: sigma on counts for the h honest shares together; one patient changes one count by 1.
        steepness: 0 bins probabilities; above 0, bins of equal width in asinh(steepness * logit), logits up to 8. After
            few rounds all scores are close to each other, and equal bins of probability would not tell them apart.
    """

    LATER: ClassVar[tuple[str, ...]] = ("steepness",)

    bins: int = Field(ge=2, le=1000)
    noise_multiplier: Decimal
    steepness: Decimal = "0"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not 0 <= float(self.steepness) <= 1000:
            raise PlanError("evaluation-steepness", "Expected a steepness from 0 to 1000.", "Leave it out, or try 16.")
        return self


class ReleaseSpec(Strict):
    """What turns a candidate into a released model: so many approvals with distinct reviewer keys of the plan, and no
    standing rejection. A plan without reviewers leaves its model a candidate."""

    reviewers_needed: int = Field(default=1, ge=1, le=16)


class Agreement(Extended):
    """What the coordinator and every site sign before anything is summed: who takes part, under which numbers."""

    title: str = Field(min_length=1, max_length=200)
    purpose: str = Field(min_length=1, max_length=2000)
    nonce: HexKey
    coordinator: CoordinatorEntry
    sites: tuple[SiteEntry, ...] = Field(min_length=2, max_length=4096)
    threshold: Threshold
    contract: DataContract
    budget: BudgetSpec
    rounds_per_epoch: int = Field(default=64, ge=1, le=64)

    @model_validator(mode="after")
    def _check_roster(self) -> Self:
        names = [s.name for s in self.sites]
        if names != sorted(set(names)) or self.coordinator.name in names:
            raise PlanError("plan-sites", "Sites must be sorted by name, distinct, and not named like the coordinator.")
        verify_distinct_keys([*(s.identity_key for s in self.sites), self.coordinator.identity_key])
        verify_distinct_keys([s.hpke_key for s in self.sites])
        verify_numbers_fit(self.threshold, len(self.key_holders), len(self.contributors))
        return self

    @property
    def key_holders(self) -> tuple[SiteEntry, ...]:
        """Sites that hold a key share, in name order; holder j of the sharing (1-based) is position j - 1."""
        return tuple(s for s in self.sites if s.key_holder)

    @property
    def contributors(self) -> tuple[SiteEntry, ...]:
        """Sites that may contribute, in name order."""
        return tuple(s for s in self.sites if s.contributor)

    @cached_property
    def study(self) -> str:
        """The study id: the digest of the plan's canonical bytes."""
        return digest_of(self)

    def site(self, name: str) -> SiteEntry:
        """Returns the entry of `name`.

        Raises:
            PlanError: `unknown-site`.
        """
        for entry in self.sites:
            if entry.name == name:
                return entry
        raise PlanError("unknown-site", f"The plan has no site named {name}.")


class StudyPlan(Agreement):
    """The plan that the coordinator and every site sign."""

    LATER = ("release",)

    format: Literal["consilium/plan/1"] = "consilium/plan/1"
    reviewers: tuple[ReviewerEntry, ...] = ()
    model: ModelSpec
    mechanism: MechanismSpec
    optimizer: OptimizerSpec
    evaluation: EvaluationSpec
    release: ReleaseSpec = ReleaseSpec()

    @model_validator(mode="after")
    def _check_reviewers(self) -> Self:
        keys = [s.identity_key for s in self.sites] + [self.coordinator.identity_key]
        verify_distinct_keys([*keys, *(r.identity_key for r in self.reviewers)])
        verify_reviewers(self.reviewers, self.release)
        return self


Plan_co = TypeVar("Plan_co", bound=Agreement, default=StudyPlan, covariant=True)


def verify_reviewers(reviewers: Sequence[ReviewerEntry], release: ReleaseSpec) -> None:
    """Refuses reviewers who could never release a model.

    Raises:
        PlanError: `plan-reviewers`, `plan-keys`.
    """
    verify_distinct_keys([reviewer.identity_key for reviewer in reviewers])
    if len({reviewer.name for reviewer in reviewers}) != len(reviewers):
        raise PlanError("plan-reviewers", "Two reviewers have the same name.", "Give every reviewer a name.")
    if release.reviewers_needed > max(1, len(reviewers)):
        raise PlanError(
            "plan-reviewers",
            f"Expected at least {release.reviewers_needed} reviewers, got {len(reviewers)}.",
            "Name more reviewers, or lower release.reviewers_needed.",
        )


def verify_distinct_keys(keys: Sequence[str]) -> None:
    """Refuses a key that two participants share.

    Raises:
        PlanError: `plan-keys`.
    """
    if len(set(keys)) != len(keys):
        raise PlanError("plan-keys", "Two participants share a key.", "Every participant makes its own identity.")


def feature_count(contract: DataContract) -> int:
    """Returns the encoded feature count: 1 per number or boolean, plus 1 missing indicator where missing is allowed,
    and one per code (one-hot; an all-zero group means missing)."""
    total = 0
    for column in contract.features:
        if column.kind == "code":
            total += len(column.codes)
        else:
            total += 1 + (float(column.max_missing) > 0)
    return total


def layer_shapes(plan: StudyPlan) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Returns parameter names and shapes in the flat order of every update.

    Per layer weight (out, in), bias (out,); a module's parameters as the plan lists them.
    """
    if plan.model.module is not None:
        return tuple((parameter.name, parameter.shape) for parameter in plan.model.module.parameters)
    sizes = (feature_count(plan.contract), *plan.model.hidden, 1)
    shapes: list[tuple[str, tuple[int, ...]]] = []
    for index, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        shapes += [(f"layers.{index}.weight", (fan_out, fan_in)), (f"layers.{index}.bias", (fan_out,))]
    return tuple(shapes)


def update_length(plan: StudyPlan) -> int:
    """Returns the number of coefficients of one training update."""
    return sum(prod(shape) for _, shape in layer_shapes(plan))


def histogram_length(plan: StudyPlan) -> int:
    """Returns the number of counts in the evaluation histogram: 2 labels x bins, label 0 first."""
    return 2 * plan.evaluation.bins
