"""All attacks on one plan, in turn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from schemas.errors import PlanError
from schemas.plan import StudyPlan
from tasks.attacks.canary import measure_canary
from tasks.attacks.figures import AttackReport
from tasks.attacks.inversion import invert_gradients
from tasks.attacks.membership import epsilon_bound, infer_membership
from tasks.attacks.property import infer_property
from tasks.contract.encoder import Cohort
from tasks.privacy.noise import NoiseStream, os_noise_stream

INVERTED_PATIENTS, TRIALS, STUDIES = 50, 200, 4000


def evaluate_attacks(
    plan: StudyPlan,
    cohort: Cohort,
    source: str,
    models: int = 32,
    progress: Callable[[str], None] = lambda _: None,
    stream_of: Callable[[], NoiseStream] = os_noise_stream,
) -> AttackReport:
    """Runs every attack that the plan admits.

    Args:
        plan: Whose model, mechanism, rounds and optimizer are attacked.
        cohort: Public or simulated patients in the plan's encoding: nothing here is charged to anybody.
        source: What they are.
        models: Shadow models.
        progress: Called with the name of each attack before it runs.

    Raises:
        OperationError: `attack-too-small`.
    """
    attacks: dict[str, Callable[[], dict[str, float]]] = {
        "membership": lambda: _membership(plan, cohort, models, stream_of()),
        "property": lambda: _named("property", infer_property(plan, cohort, TRIALS, stream_of())),
        "inversion": lambda: _named("inversion", invert_gradients(plan, cohort, INVERTED_PATIENTS, stream_of())),
        "canary": lambda: _named("canary", measure_canary(plan, STUDIES, stream_of())),
    }
    figures: dict[str, float] = {}
    not_run: dict[str, str] = {}
    for name, attack in attacks.items():
        progress(name)
        try:
            figures |= attack()
        except PlanError as error:
            not_run[name] = error.message
    return AttackReport(
        study=plan.study,
        source=source,
        models=models,
        patients=cohort.patient_count,
        figures=figures,
        not_run=not_run,
    )


def _membership(plan: StudyPlan, cohort: Cohort, models: int, stream: NoiseStream) -> dict[str, float]:
    epsilon, delta = float(plan.budget.epsilon), float(plan.budget.delta)
    found: dict[str, float] = {}
    for protected, suffix in ((True, ""), (False, "_unprotected")):
        figures = infer_membership(plan, cohort, models, stream, protected)
        found[f"membership_auc{suffix}"] = figures.auc
        for rate, value, low, high in figures.tpr:
            at = f"membership_tpr_at_fpr_{rate * 100:g}pct".replace(".", "_") + suffix
            found |= {at: value, f"{at}_low": low, f"{at}_high": high}
            if protected:
                found[f"{at}_bound"] = epsilon_bound(epsilon, delta, rate)
    return found


def _named(prefix: str, figures: Any) -> dict[str, float]:
    return {f"{prefix}_{name}": float(value) for name, value in asdict(figures).items()}
