"""Plans of the local mode for tests, from the toy plan."""

from __future__ import annotations

from schemas.plan import LocalSpec, MechanismSpec, OptimizerSpec, StudyPlan
from tests.training.plans import make_contract, make_plan

AVERAGING = {"kind": "sgd", "learning_rate": "1", "divisor": "400"}


def make_local_plan(
    steps: int = 3,
    learning_rate: str = "0.5",
    proximal: str = "0",
    update_norm: str = "8",
    sampling: str = "1",
    noise_multiplier: str = "4",
    rounds: int = 10,
    hidden: tuple[int, ...] = (),
    rows: str = "one",
    optimizer: dict[str, str] | None = None,
    clip_norm: str = "1",
    scale_bits: int = 20,
) -> StudyPlan:
    """Four sites of 100 declared patients each; the server averages them by default."""
    spec = LocalSpec(steps=steps, learning_rate=learning_rate, proximal=proximal, update_norm=update_norm)
    mechanism = MechanismSpec(
        mode="local",
        clip_norm=clip_norm,
        scale_bits=scale_bits,
        noise_multiplier=noise_multiplier,
        sampling_probability=sampling,
        rounds=rounds,
        local=spec,
    )
    plan = make_plan(make_contract(rows_per_patient=rows), hidden, OptimizerSpec(**(optimizer or AVERAGING)))  # type: ignore[arg-type]
    return StudyPlan.model_validate(plan.model_dump() | {"mechanism": mechanism.model_dump()})
