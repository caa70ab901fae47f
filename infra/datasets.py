"""The demo's data sets: real patients dealt or loaded per hospital, their contracts, and plan parts that suit them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from infra import datasets_breast_cancer, datasets_eicu, datasets_uci_heart
from infra.datasets_tables import SiteTable, write_site_tables
from schemas.contract import DataContract
from schemas.errors import OperationError
from schemas.plan import BudgetSpec, EvaluationSpec, MechanismSpec, ModelSpec, OptimizerSpec, StudyPlan
from schemas.threshold import Threshold
from tasks.privacy.noise import NoiseStream, os_noise_stream

if TYPE_CHECKING:
    from site_agents.cohort.reader import LocalData
    from tasks.contract.encoder import Cohort

__all__ = [
    "DATA_SETS",
    "PlanParts",
    "SiteTable",
    "attribution",
    "central_dp_auc",
    "contract_for",
    "demo_plan_parts",
    "exact_held_out_auc",
    "load_site_tables",
    "read_cohorts",
    "simulated_aucs",
    "write_site_tables",
]

DATA_SETS = ("breast-cancer", "uci-heart", "eicu-demo")


@dataclass(frozen=True)
class PlanParts:
    """The parts of a plan that depend on the data set and the budget."""

    contract: DataContract
    model: ModelSpec
    mechanism: MechanismSpec
    optimizer: OptimizerSpec
    evaluation: EvaluationSpec
    budget: BudgetSpec


@dataclass(frozen=True)
class _Tuning:
    """Hyper-parameters, chosen by search on public splits of a public table and then fixed.

    Attributes:
        path_length: Learning rate times rounds: more rounds take smaller steps.
        training_patients: Public divisor of the summed gradients.
    """

    path_length: Fraction
    training_patients: str


_TUNING = {
    "breast-cancer": _Tuning(Fraction(3, 2), "450"),
    "uci-heart": _Tuning(Fraction(3, 2), "740"),
    "eicu-demo": _Tuning(Fraction(16, 5), "1400"),
}
_CLIP_NORM = "0.5"
_LARGEST_STEP = Fraction(1, 2)
_BETA1, _BETA2 = "0.5", "0.99"
_WEIGHT_DECAY = "0.003"
_SCALE_BITS = 16
_BINS = 10
# After ten noisy rounds scores are still close to one half: bins of equal probability would hide half of the AUC.
_STEEPNESS = "16"


def load_site_tables(
    data: str, sites: int | None = None, data_dir: Path | None = None, split_seed: int = 0
) -> tuple[SiteTable, ...]:
    """Loads the table of every site, sorted by site name.

    Args:
        data: One of `DATA_SETS`.
        sites: Number of hospitals (breast-cancer only; 5 by default).
        data_dir: Folder of the original files (not breast-cancer; uci-heart is downloaded without it).
        split_seed: Seed of the public split; 0 in the demo.

    Raises:
        OperationError: `unknown-data`, `sites-fixed`, `data-folder`, and those of the loaders.
    """
    if data == "breast-cancer":
        if data_dir is not None:
            raise OperationError(
                "data-folder", "The breast-cancer table comes with scikit-learn.", "Leave the data folder out."
            )
        count = datasets_breast_cancer.DEFAULT_SITES if sites is None else sites
        return datasets_breast_cancer.deal_breast_cancer(count, split_seed)
    _verify_known(data)
    if data == "eicu-demo":
        return datasets_eicu.load_eicu(data_dir, split_seed)
    if sites not in (None, 4):
        raise OperationError("sites-fixed", "Expected the four hospitals of uci-heart.", "Leave the number out.")
    return datasets_uci_heart.load_uci_heart(data_dir, split_seed)


def contract_for(data: str) -> DataContract:
    """Returns the data contract of a data set."""
    _verify_known(data)
    contracts = {
        "breast-cancer": datasets_breast_cancer.breast_cancer_contract,
        "uci-heart": datasets_uci_heart.uci_heart_contract,
        "eicu-demo": datasets_eicu.eicu_contract,
    }
    return contracts[data]()


def attribution(data: str) -> str:
    """Returns the citation and licence that go with every published figure."""
    _verify_known(data)
    lines = {
        "breast-cancer": datasets_breast_cancer.ATTRIBUTION,
        "uci-heart": datasets_uci_heart.ATTRIBUTION,
        "eicu-demo": datasets_eicu.ATTRIBUTION,
    }
    return lines[data]


def demo_plan_parts(
    data: str,
    sites: int,
    rounds: int = 10,
    epsilon: str = "3",
    delta: str = "1e-5",
    threshold: Threshold | None = None,
) -> PlanParts:
    """Returns plan parts with tuned defaults; the whole budget goes to training and, for held-out patients, evaluation.

    The two groups of patients are disjoint and compose in parallel, so each gets all of epsilon.

    Args:
        data: One of `DATA_SETS`.
        sites: Number of sites; the noise does not depend on it.
        rounds: Training rounds.
        epsilon, delta: Per-site total in the collusion reading, decimal strings.
        threshold: The plan's numbers; `honest_noise_shares` decides each site's share, not these parts.

    Raises:
        OperationError: `unknown-data`.
        PlanError, BudgetError: the budget admits no such study.
    """
    from tasks.privacy.accounting import calibrate_noise_multiplier

    _verify_known(data)
    return PlanParts(
        contract=contract_for(data),
        model=ModelSpec(kind="logistic"),
        mechanism=MechanismSpec(
            clip_norm=_CLIP_NORM,
            scale_bits=_SCALE_BITS,
            noise_multiplier=calibrate_noise_multiplier(epsilon, delta, rounds),
            rounds=rounds,
        ),
        optimizer=OptimizerSpec(
            kind="adam",
            learning_rate=_learning_rate(_TUNING[data], rounds),
            divisor=_TUNING[data].training_patients,
            beta1=_BETA1,
            beta2=_BETA2,
            weight_decay=_WEIGHT_DECAY,
        ),
        evaluation=EvaluationSpec(
            bins=_BINS, noise_multiplier=calibrate_noise_multiplier(epsilon, delta, 1), steepness=_STEEPNESS
        ),
        budget=BudgetSpec(epsilon=epsilon, delta=delta),
    )


def read_cohorts(contract: DataContract, paths: Mapping[str, LocalData | Path]) -> tuple[Cohort, ...]:
    """Reads, checks and encodes every site's table, in site-name order; only a demo owns all of these folders.

    Raises:
        SiteDataError: a table cannot be read or violates the contract.
    """
    from site_agents.cohort.reader import read_table
    from tasks.contract.encoder import encode_features
    from tasks.contract.suite import verify_table

    cohorts = []
    for _, path in sorted(paths.items()):
        table = read_table(path, contract)
        verify_table(contract, table)
        cohorts.append(encode_features(contract, table))
    return tuple(cohorts)


def exact_held_out_auc(plan: StudyPlan, cohorts: Sequence[Cohort], weights: NDArray[np.float64]) -> float:
    """Computes the exact AUC over all sites' held-out patients; only a demo can know it.

    Args:
        weights: float64 (P,), the released weights.
    """
    from tasks.contract.encoder import pool_cohorts
    from tasks.metrics import exact_auc
    from tasks.training.evaluation import score_patients

    return exact_auc(*score_patients(plan, pool_cohorts(cohorts).evaluation, weights))


def central_dp_auc(
    plan: StudyPlan,
    cohorts: Sequence[Cohort],
    repeats: int = 10,
    stream_factory: Callable[[], NoiseStream] = os_noise_stream,
) -> float:
    """Computes what a trusted party that holds all patients would reach: the mean exact AUC over `repeats` trainings.

    Same plan, same clipped integer sums, same server step; the noise is one share of exactly sigma * C.
    """
    return float(np.mean(simulated_aucs(plan, cohorts, 1, repeats, stream_factory)))


def simulated_aucs(
    plan: StudyPlan,
    cohorts: Sequence[Cohort],
    noise_shares: int,
    repeats: int,
    stream_factory: Callable[[], NoiseStream] = os_noise_stream,
    honest: int = 1,
) -> list[float]:
    """Trains on pooled rows with the plan's clipped integer sums and server step; returns the exact AUC per training.

    Args:
        noise_shares: Independent shares of sigma * C each: 1 is a trusted party, one per site is full local noise.
        honest: h, if the shares are sigma * C / sqrt(h) each.
    """
    from tasks.contract.encoder import pool_cohorts
    from tasks.privacy.mechanism import training_mechanism
    from tasks.server_step import apply_step, initial_state, released_weights
    from tasks.training.train import train_sum

    mechanism = replace(training_mechanism(plan), honest=honest)
    pooled = pool_cohorts(cohorts)
    found = []
    for _ in range(repeats):
        stream = stream_factory()
        state = initial_state(plan)
        for _ in range(plan.mechanism.rounds):
            total = train_sum(plan, pooled, state.weights, mechanism.sensitivity)
            shares = replace(mechanism, dimension=total.size * noise_shares).add_noise(
                np.zeros(total.size * noise_shares, dtype=np.int64), stream
            )
            state = apply_step(plan, state, total + shares.reshape(noise_shares, total.size).sum(axis=0))
        found.append(exact_held_out_auc(plan, cohorts, released_weights(state)))
    return found


def _learning_rate(tuning: _Tuning, rounds: int) -> str:
    return f"{float(min(tuning.path_length / rounds, _LARGEST_STEP)):.6f}".rstrip("0")


def _verify_known(data: str) -> None:
    if data not in DATA_SETS:
        raise OperationError("unknown-data", f"Expected one of {', '.join(DATA_SETS)}.", "Choose a data set.")
