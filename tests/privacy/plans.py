"""A small valid plan and mechanism for tests of privacy and ledger."""

from __future__ import annotations

import hashlib

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
from tasks.privacy.mechanism import GaussianMechanism


def digest(*parts: object) -> str:
    """A distinct 64-digit hex string per argument list."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def make_mechanism(**changes: object) -> GaussianMechanism:
    values: dict[str, object] = {
        "data": "training",
        "contribution_bound": "test",
        "id_column": "patient",
        "max_sites_per_patient": 2,
        "clip_norm": "1",
        "scale_bits": 16,
        "noise_multiplier": "4.39745",
        "divisor": "100",
        "dimension": 31,
        "honest": 2,
        "sites_in_sum": 4,
    }
    return GaussianMechanism(**(values | changes))  # type: ignore[arg-type]


def make_plan(
    noise_multiplier: str = "4.39745",
    evaluation: str = "1.390616",
    rounds: int = 10,
    scale_bits: int = 16,
    sampling: str = "1",
    epsilon: str = "3",
    delta: str = "1e-5",
) -> StudyPlan:
    sites = tuple(
        SiteEntry(
            name=f"site-{letter}",
            identity_key=digest("key", letter),
            hpke_key=(digest("hpke", letter) * 38),
            declared_patients=100,
        )
        for letter in "abcde"
    )
    columns = (
        Column(name="patient", kind="identifier", role="patient_id"),
        Column(name="outcome", kind="boolean", role="label"),
        Column(name="age", kind="number", minimum="18", maximum="110"),
        Column(name="sex", kind="code", codes=("f", "m")),
    )
    return StudyPlan(
        title="Example",
        purpose="Testing",
        nonce=digest("nonce"),
        coordinator=CoordinatorEntry(name="coordinator", identity_key=digest("key", "coordinator")),
        sites=sites,
        threshold=default_threshold(5),
        contract=DataContract(name="example", version="1", columns=columns),
        model=ModelSpec(kind="logistic"),
        mechanism=MechanismSpec(
            clip_norm="0.5",
            scale_bits=scale_bits,
            noise_multiplier=noise_multiplier,
            sampling_probability=sampling,
            rounds=rounds,
        ),
        optimizer=OptimizerSpec(kind="sgd", learning_rate="0.5", divisor="400"),
        budget=BudgetSpec(epsilon=epsilon, delta=delta),
        evaluation=EvaluationSpec(bins=10, noise_multiplier=evaluation),
    )
