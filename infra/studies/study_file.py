"""`study.yaml`: a study as its coordinator writes it, before anybody has keys; and the plan's parts that follow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from infra.datasets import PlanParts
from schemas.canonical import Decimal, Name
from schemas.contract import DataContract
from schemas.options import Settings
from schemas.plan import (
    BudgetSpec,
    EvaluationSpec,
    MechanismSpec,
    ModelSpec,
    OptimizerSpec,
    ReleaseSpec,
    ReviewerEntry,
    verify_reviewers,
)
from schemas.threshold import Threshold, default_threshold, verify_numbers_fit
from schemas.yaml_files import model_from_plain, read_yaml

# Defaults that suit standardised features and a logistic model; every one can be written down instead.
_MECHANISM = {"clip_norm": "0.5", "scale_bits": "16", "rounds": "10"}
_OPTIMIZER = {"kind": "adam", "beta1": "0.5", "beta2": "0.99", "weight_decay": "0.003"}
_LOCAL_OPTIMIZER = {"kind": "sgd", "learning_rate": "1"}
_EVALUATION = {"bins": "10"}
_PATH_LENGTH, _LARGEST_STEP, _USUAL_SHARE = 1.5, 0.5, 0.2


class PublicSplit(Settings):
    """How a simulation deals held-out patients, for a contract whose held_out column is part of the table.

    Attributes:
        label: Names the public order; the seed of the split is appended.
        strata: A fifth is taken of every outcome, over all sites or of each site.
    """

    label: str = Field(min_length=1)
    strata: Literal["outcome", "site-outcome"] = "outcome"


class Simulation(Settings):
    """One table that is dealt to sites on this machine; a real study has no such section.

    Attributes:
        data: A .parquet or .csv file, a folder of Parquet files or a source.yaml; relative to the study file.
        site_column: Whose values are the sites.
        row_column: Name for a column with the row's number, for a table in which every row is a patient.
        mapping: The mapping file of every site, or
        mappings: one per site, by site name.
        split: Adds the contract's held_out column, where nothing else gives it.
    """

    data: str = Field(min_length=1)
    site_column: str = Field(min_length=1)
    row_column: str = ""
    mapping: str = ""
    mappings: dict[str, str] = Field(default={})
    split: PublicSplit | None = None


class AccuracyTarget(Settings):
    """See `infra.studies.definitions.Target`."""

    difference: float
    auc: float
    auc_required: bool


class Accuracy(Settings):
    """What `study run --accuracy` measures on many public splits.

    Attributes:
        name: Short name of the report.
        data: Name in `infra.datasets`, whose pinned original files the data folder must hold.
        targets: Epsilon -> what the mean over all splits is held against.
    """

    name: str
    data: str
    targets: dict[str, AccuracyTarget] = Field(default={})


class BudgetSection(Settings):
    """Per-site total over the study; `schemas.plan.BudgetSpec`."""

    epsilon: Decimal
    delta: Decimal
    max_sites_per_patient: int = Field(default=2, ge=1, le=100)


class StudyFile(Settings):
    """A study before its plan.

    Attributes:
        contract: File of the data contract; relative to the study file.
        budget: Per-site total over the study.
        model: Fields of `ModelSpec`.
        mechanism: Fields of `MechanismSpec`; the noise multiplier is derived from the budget if it is left out.
        optimizer: Fields of `OptimizerSpec`; the divisor is derived from the declared patients if it is left out.
        evaluation: Fields of `EvaluationSpec`; the noise multiplier is derived from the budget if it is left out.
        threshold: Numbers of the secure sum; the default for the number of sites if left out.
        committee: How many sites hold a share of the key: the first in name order; all if left out.
        sites: Site name -> publicly declared, rounded number of patients; in a simulation they can be left out.
        reviewers: Name and key of everybody who may release the model, as `consilium review init` prints them; without
            any it stays a candidate. A run on this machine asks nobody.
        release: How many of them must approve.
        simulation, accuracy: For this machine alone; no part of a plan.
    """

    format: Literal["consilium/study/1"] = "consilium/study/1"
    title: str = Field(min_length=1, max_length=200)
    purpose: str = Field(min_length=1, max_length=2000)
    contract: str = "contract.yaml"
    budget: BudgetSection
    model: dict[str, Any] = Field(default={"kind": "logistic"})
    mechanism: dict[str, Any] = Field(default={})
    optimizer: dict[str, Any] = Field(default={})
    evaluation: dict[str, Any] = Field(default={})
    threshold: Threshold | None = None
    committee: int | None = Field(default=None, ge=2)
    sites: dict[Name, int] = Field(default={})
    reviewers: tuple[ReviewerEntry, ...] = ()
    release: ReleaseSpec = ReleaseSpec()
    simulation: Simulation | None = None
    accuracy: Accuracy | None = None

    @model_validator(mode="after")
    def _check_reviewers(self) -> Self:
        verify_reviewers(self.reviewers, self.release)
        return self


def read_study(path: Path) -> tuple[StudyFile, DataContract]:
    """Reads a study file and its contract.

    Raises:
        PlanError: `yaml-unreadable`, `yaml-fields`, `plan-reviewers`, `plan-keys`; what the contract's reader raises.
    """
    from tasks.contract.contract_file import read_contract

    study = read_yaml(StudyFile, path)
    return study, read_contract(path.parent / study.contract)


def derive_parts(study: StudyFile, contract: DataContract, declared: Sequence[int]) -> PlanParts:
    """Derives the plan's parts that need no keys; a number that the file leaves out follows from public ones.

    Args:
        declared: The sites' declared patients.

    Raises:
        PlanError: `yaml-fields`, or a rule of the plan.
        BudgetError: the budget admits no such study.
    """
    from tasks.privacy.accounting import calibrate_noise_multiplier

    budget = study.budget
    mechanism = _mechanism(study)
    return PlanParts(
        contract=contract,
        model=model_from_plain(ModelSpec, study.model, "model of the study"),
        mechanism=mechanism,
        optimizer=_optimizer(study, contract, mechanism, sum(declared)),
        evaluation=model_from_plain(
            EvaluationSpec,
            {"noise_multiplier": calibrate_noise_multiplier(budget.epsilon, budget.delta, 1)}
            | _EVALUATION
            | study.evaluation,
            "evaluation of the study",
        ),
        budget=BudgetSpec(
            epsilon=budget.epsilon, delta=budget.delta, max_sites_per_patient=budget.max_sites_per_patient
        ),
    )


def choose_numbers(study: StudyFile, sites: int) -> Threshold:
    """Returns the study's numbers, or the default for so many sites.

    Raises:
        PlanError: `threshold-rule`.
    """
    numbers = study.threshold or default_threshold(sites)
    verify_numbers_fit(numbers, study.committee or sites, sites)
    return numbers


def _mechanism(study: StudyFile) -> MechanismSpec:
    from tasks.privacy.accounting import calibrate_noise_multiplier, calibrate_sampled_multiplier
    from tasks.privacy.renyi import choose_order

    plain = _MECHANISM | study.mechanism
    if "noise_multiplier" in plain:
        return model_from_plain(MechanismSpec, plain, "mechanism of the study")
    draft = model_from_plain(MechanismSpec, plain | {"noise_multiplier": "1"}, "mechanism of the study")
    epsilon, delta = study.budget.epsilon, study.budget.delta
    steps = draft.rounds * (draft.local.steps if draft.local else 1)
    if float(draft.sampling_probability) == 1:
        sigma = calibrate_noise_multiplier(epsilon, delta, steps)
    else:
        order = choose_order(epsilon, delta)
        sigma = calibrate_sampled_multiplier(epsilon, delta, steps, draft.sampling_probability, order)
    return draft.model_copy(update={"noise_multiplier": sigma})


def _optimizer(study: StudyFile, contract: DataContract, mechanism: MechanismSpec, declared: int) -> OptimizerSpec:
    if mechanism.mode == "local":
        # The sum is of changes times declared patients: their number is what makes it an average.
        plain = {"divisor": str(declared)} | _LOCAL_OPTIMIZER | study.optimizer
    else:
        expected = declared * (1 - _held_out_share(contract)) * float(mechanism.sampling_probability)
        step = min(_PATH_LENGTH / mechanism.rounds, _LARGEST_STEP)
        derived = {"divisor": str(max(1, round(expected))), "learning_rate": f"{step:.6f}".rstrip("0")}
        plain = derived | _OPTIMIZER | study.optimizer
    return model_from_plain(OptimizerSpec, plain, "optimizer of the study")


def _held_out_share(contract: DataContract) -> float:
    if contract.split is not None:
        return float(contract.split.share)
    return _USUAL_SHARE if contract.column_with_role("held_out") else 0.0
