"""Attack figures on the study's parent run in MLflow, beside epsilon. A view: they are measured on public data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from schemas.errors import OperationError
from schemas.plan import StudyPlan
from tasks.attacks.figures import AttackReport
from tasks.tracking.allowed import ATTACK_METRICS, verify_names
from tasks.tracking.study import find_run
from tasks.tracking.target import TrackingTarget, connect

ARTIFACT = "attacks.json"


def record_attacks(target: TrackingTarget, plan: StudyPlan, figures: Mapping[str, float], report: bytes) -> None:
    """Logs the figures as metrics ``attack/<name>`` and the whole report; repeating it replaces them.

    Args:
        target: The MLflow backend.
        plan: The study, whose parent run must exist.
        figures: From `tasks.attacks.report.AttackReport`.
        report: The report as JSON.

    Raises:
        OperationError: `not-on-allow-list`, `study-not-tracked`.
    """
    from mlflow.entities import Metric

    verify_names(figures, ATTACK_METRICS, "attack figures")
    client = connect(target)
    found = client.search_experiments(filter_string=f"tags.`consilium.study` = '{plan.study}'", max_results=1)
    condition = f"tags.`consilium.level` = 'study' and tags.`consilium.study` = '{plan.study}'"
    run_id = find_run(client, str(found[0].experiment_id), condition) if found else None
    if run_id is None:
        raise OperationError("study-not-tracked", "The study has no run in MLflow yet.", "Run the study first.")
    # The study's start is the same whenever this runs again, so that no figure gets a second point.
    started_ms = client.get_run(run_id).info.start_time
    metrics = [Metric(f"attack/{name}", value, started_ms, 0) for name, value in sorted(figures.items())]
    client.log_batch(run_id, metrics=metrics, synchronous=True)
    client.log_text(run_id, report.decode(), ARTIFACT)


def record_kept_attacks(target: TrackingTarget, plan: StudyPlan, path: Path) -> bool:
    """Logs the report that was kept at `path`; a missing one, or one on another plan, is left alone.

    Returns:
        Whether figures were logged.

    Raises:
        OperationError: as `record_attacks`; `attacks-unreadable`.
    """
    if not path.is_file():
        return False
    data = path.read_bytes()
    try:
        report = AttackReport.model_validate_json(data)
    except ValidationError:
        raise OperationError(
            "attacks-unreadable", f"Expected {path.name} to be an attack report.", "Run `consilium attack run` again."
        ) from None
    if report.study != plan.study:
        return False
    record_attacks(target, plan, report.figures, data)
    return True
