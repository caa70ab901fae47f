"""Plans and identities for tests: real keys, a small contract, any number of sites."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

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
from schemas.threshold import Threshold, default_threshold
from tasks.identity import Identity, generate_identity


@lru_cache(maxsize=8)
def identities(sites: int) -> dict[str, Identity]:
    """Identities of the coordinator and of site-00, site-01, ..."""
    names = ["coordinator", *(f"site-{i:02d}" for i in range(sites))]
    return {name: generate_identity(name) for name in names}


def make_plan(
    sites: int = 5, threshold: Threshold | None = None, holders: int | None = None, **changes: Any
) -> StudyPlan:
    people = identities(sites)
    entries = tuple(
        SiteEntry(
            name=name,
            identity_key=people[name].identity_key,
            hpke_key=people[name].hpke_key,
            declared_patients=changes.get("patients", 100),
            key_holder=index < (sites if holders is None else holders),
        )
        for index, name in enumerate(sorted(set(people) - {"coordinator"}))
    )
    return StudyPlan(
        title="Test study",
        purpose="Tests of the secure sum",
        nonce=changes.get("nonce", "ab" * 32),
        coordinator=CoordinatorEntry(name="coordinator", identity_key=people["coordinator"].identity_key),
        sites=entries,
        threshold=threshold or default_threshold(sites),
        contract=DataContract(
            name="toy",
            version="1",
            columns=(
                Column(name="patient", kind="identifier", role="patient_id"),
                Column(name="outcome", kind="boolean", role="label"),
                Column(name="age", kind="number", minimum="0", maximum="120"),
            ),
        ),
        model=ModelSpec(kind="logistic"),
        mechanism=MechanismSpec(
            clip_norm="1", scale_bits=changes.get("scale_bits", 16), noise_multiplier="8", rounds=10
        ),
        optimizer=OptimizerSpec(kind="sgd", learning_rate="1", divisor="100"),
        budget=BudgetSpec(epsilon="3", delta="1e-5"),
        evaluation=EvaluationSpec(bins=20, noise_multiplier="4"),
    )
