"""Small plans and generated cohorts for tests: real identities, no real row."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np

from schemas.contract import Column, DataContract
from schemas.plan import (
    BudgetSpec,
    CoordinatorEntry,
    EvaluationSpec,
    MechanismSpec,
    ModelSpec,
    OptimizerSpec,
    SiteEntry,
    StudyPlan,
)
from schemas.threshold import default_threshold
from tasks.contract.encoder import Cohort
from tasks.identity import Identity, generate_identity


@cache
def identity(name: str) -> Identity:
    """Returns one identity per name and test process: generating keys is slow."""
    return generate_identity(name)


def number(name: str, low: str = "0", high: str = "10", max_missing: str = "0") -> Column:
    return Column(name=name, kind="number", minimum=low, maximum=high, max_missing=max_missing)


def make_contract(features: int = 3, rows_per_patient: str = "one") -> DataContract:
    """Returns a contract with `features` numbers f0, f1, ... in 0..10."""
    columns = (
        Column(name="patient_id", kind="identifier", role="patient_id"),
        Column(name="outcome", kind="boolean", role="label"),
        Column(name="held_out", kind="boolean", role="held_out"),
        *(number(f"f{i}") for i in range(features)),
    )
    return DataContract.model_validate(
        {
            "name": "toy",
            "version": "1",
            "columns": tuple(c.model_dump() for c in columns),
            "rows_per_patient": rows_per_patient,
        }
    )


def make_plan(
    contract: DataContract | None = None,
    hidden: tuple[int, ...] = (),
    optimizer: OptimizerSpec | None = None,
    nonce: str = "1" * 64,
    clip_norm: str = "1",
    scale_bits: int = 16,
    bins: int = 10,
    sampling_probability: str = "1",
) -> StudyPlan:
    """Returns a valid plan of four sites."""
    names = ("alder", "birch", "cedar", "doum")
    sites = tuple(
        SiteEntry(
            name=n,
            identity_key=identity(n).identity_key,
            hpke_key=identity(n).hpke_key,
            declared_patients=100,
        )
        for n in names
    )
    return StudyPlan(
        title="Toy",
        purpose="Tests.",
        nonce=nonce,
        coordinator=CoordinatorEntry(name="coordinator", identity_key=identity("coordinator").identity_key),
        sites=sites,
        threshold=default_threshold(len(sites)),
        contract=contract or make_contract(),
        model=ModelSpec(kind="mlp" if hidden else "logistic", hidden=hidden),
        mechanism=MechanismSpec(
            clip_norm=clip_norm,
            scale_bits=scale_bits,
            noise_multiplier="4",
            rounds=10,
            sampling_probability=sampling_probability,
        ),
        optimizer=optimizer or OptimizerSpec(kind="sgd", learning_rate="0.5", divisor="300"),
        budget=BudgetSpec(epsilon="3", delta="1e-5"),
        evaluation=EvaluationSpec(bins=bins, noise_multiplier="1.5"),
    )


def make_cohort(patients: int, features: int = 3, rows: int = 1, seed: int = 5) -> Cohort:
    """Returns a generated cohort with `rows` rows per patient; every fourth patient is held out."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, (patients * rows, features))
    y = x[:, 0] + 0.3 * rng.normal(size=len(x)) > 0
    who = np.repeat(np.arange(patients, dtype=np.int64), rows)
    return Cohort(features=x, labels=y, patients=who, held_out=who % 4 == 3)


def reorder(cohort: Cohort, order: np.ndarray) -> Cohort:
    """Returns the cohort with whole rows in another order of patients, renumbered."""
    position = np.empty_like(order)
    position[order] = np.arange(len(order))
    rows = np.argsort(position[cohort.patients], kind="stable")
    return replace(
        cohort,
        features=cohort.features[rows],
        labels=cohort.labels[rows],
        patients=np.sort(position[cohort.patients]),
        held_out=cohort.held_out[rows],
    )
