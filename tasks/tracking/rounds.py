"""One child run per round, recorded once, from released aggregates only."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from schemas.messages import EpsilonReport
from schemas.plan import StudyPlan
from tasks.server_step import ModelState, decode_sum, initial_state
from tasks.tracking.allowed import (
    EVALUATION_METRICS,
    ROUND_ARTIFACTS,
    ROUND_METRICS,
    verify_names,
    verify_step_names,
)
from tasks.tracking.names import round_name
from tasks.tracking.study import StudyRun, find_run
from tasks.tracking.target import TrackingTarget, common_tags, connect

_PAGES = 16
_LONGEST_NUMBER = 6


@dataclass(frozen=True)
class RoundFacts:
    """What a finished round may tell.

    Attributes:
        kind: ``train`` or ``evaluate``.
        participants: Sites in the opened sum; `dropped` pairs the others with a reason code.
        metrics: Names of `tasks.tracking.allowed`, from `derive_round_metrics` or the released evaluation.
        epsilon: Cumulative cost per site after this round, of the data part that the round touched.
        bytes_up, bytes_down: Bytes from sites to the store and back, all sites together.
        seconds: Wall time by step name.
        model: Digest of the model state after the round.
        messages: Artifact name (`ROUND_ARTIFACTS`) to envelope bytes.
        finished_at_ms: Unix time in ms of the round's end; a resumed coordinator gives the same one again, so that
            nothing is recorded twice.
        flow_run: Address of the round's page in Prefect; empty where there is none.
        verdicts: Site -> what it signed about its table: ``passed``, or ``failed`` with the failed rules' names.
    """

    round: int
    kind: Literal["train", "evaluate"]
    participants: tuple[str, ...]
    dropped: tuple[tuple[str, str], ...]
    metrics: Mapping[str, float]
    epsilon: tuple[EpsilonReport, ...]
    bytes_up: int
    bytes_down: int
    seconds: Mapping[str, float]
    model: str
    messages: Mapping[str, bytes]
    finished_at_ms: int
    flow_run: str = ""
    verdicts: Mapping[str, str] = field(default_factory=dict)

    @property
    def unaccounted(self) -> frozenset[str]:
        """Sites in the opened sum whose cost nobody can tell: their published ledger does not verify."""
        return frozenset(self.participants) - {report.site for report in self.epsilon}


def derive_round_metrics(
    plan: StudyPlan, before: ModelState, after: ModelState, opened: NDArray[np.int64]
) -> dict[str, float]:
    """Derives a training round's metrics from its released sum and the two public models.

    Returns:
        ``step_norm``: L2 norm of the opened noisy gradient sum over the public divisor; ``distance_from_last`` and
        ``distance_from_start``: L2 distance of the weights; ``weights_norm``.
    """
    return {
        "step_norm": _norm(decode_sum(plan, opened) / float(plan.optimizer.divisor)),
        "distance_from_last": _norm(after.weights - before.weights),
        "distance_from_start": _norm(after.weights - initial_state(plan).weights),
        "weights_norm": _norm(after.weights),
    }


def record_round(
    target: TrackingTarget, run: StudyRun, plan: StudyPlan, facts: RoundFacts, weights: bytes | None = None
) -> str:
    """Records a round as a child run and on the study's curves; a recorded round is left as it is.

    Args:
        target: The MLflow backend.
        run: The study, from `open_study`.
        plan: The study plan.
        facts: What the round may tell.
        weights: ``weights.safetensors`` bytes after the round, logged as a model of the child run; None for none.

    Returns:
        The child run's id.

    Raises:
        OperationError: `not-on-allow-list`.
    """
    _verify_facts(facts)
    client = connect(target)
    child = _open_round(client, run, plan, facts)
    if client.get_run(child).info.status == "FINISHED":
        return child
    metrics = _metrics(facts)
    client.log_batch(child, metrics=_at(metrics, facts, step=facts.round), synchronous=True)
    client.log_batch(run.run_id, metrics=_at(_curves(metrics, facts), facts, step=facts.round), synchronous=True)
    for name, data in sorted(facts.messages.items()):
        client.log_text(child, data.decode(), name)
    if weights is not None:
        _log_weights(client, run, child, plan, facts, weights)
    client.set_terminated(child, status="FINISHED", end_time=facts.finished_at_ms)
    return child


def recorded_rounds(target: TrackingTarget, run: StudyRun) -> frozenset[int]:
    """Returns the rounds of a study whose record is complete."""
    client, token = connect(target), None
    found: set[int] = set()
    condition = f"tags.`mlflow.parentRunId` = '{run.run_id}' and attributes.status = 'FINISHED'"
    for _ in range(_PAGES):  # what MLflow says saves work and decides nothing: it may be wrong, and is bounded
        page = client.search_runs([run.experiment_id], condition, max_results=1000, page_token=token)
        tags = [child.data.tags.get("consilium.round", "") for child in page]
        found |= {int(tag) for tag in tags if tag.isdecimal() and len(tag) <= _LONGEST_NUMBER}
        token = page.token
        if not token:
            break
    return frozenset(found)


def _verify_facts(facts: RoundFacts) -> None:
    allowed = ROUND_METRICS if facts.kind == "train" else EVALUATION_METRICS
    verify_names(facts.metrics, allowed, "metrics")
    verify_names(facts.messages, ROUND_ARTIFACTS, "artifacts")
    verify_step_names(facts.seconds)


def _open_round(client: Any, run: StudyRun, plan: StudyPlan, facts: RoundFacts) -> str:
    condition = f"tags.`mlflow.parentRunId` = '{run.run_id}' and tags.`consilium.round` = '{facts.round}'"
    found = find_run(client, run.experiment_id, condition)
    if found is not None:
        return found
    tags = {
        **common_tags(plan),
        "mlflow.parentRunId": run.run_id,
        "consilium.level": "round",
        "consilium.round": str(facts.round),
        "consilium.kind": facts.kind,
        "consilium.participants": ", ".join(facts.participants),
        "consilium.dropped": ", ".join(f"{site} ({reason})" for site, reason in facts.dropped) or "none",
        "consilium.model_state": facts.model,
        "mlflow.note.content": describe_round(plan, facts),
    }
    name = round_name(facts.kind, facts.round)
    total_ms = round(sum(facts.seconds.values()) * 1000)
    created = client.create_run(run.experiment_id, run_name=name, tags=tags, start_time=facts.finished_at_ms - total_ms)
    return str(created.info.run_id)


def describe_round(plan: StudyPlan, facts: RoundFacts) -> str:
    """Returns the round in words (Markdown), for the run's description."""
    what = "Training round" if facts.kind == "train" else "Evaluation on held-out patients"
    dropped = ", ".join(f"{site} ({reason})" for site, reason in facts.dropped)
    collusion, outsider = (
        max((float(getattr(report, reading)) for report in facts.epsilon), default=0.0)
        for reading in ("collusion", "outsider")
    )
    patients = "training" if facts.kind == "train" else "held-out"
    lines = [
        f"{what}: {len(facts.participants)} of {len(plan.contributors)} sites in the opened sum; "
        f"not in it: {dropped or 'nobody'}.",
        f"Largest ε of a site's {patients} patients so far: {collusion:g} under collusion, {outsider:g} against "
        f"outsiders, of {plan.budget.epsilon} at δ = {plan.budget.delta}.",
    ]
    if facts.flow_run:
        lines.append(f"[The round's flow run in Prefect]({facts.flow_run})")
    return "\n\n".join(lines)


def _metrics(facts: RoundFacts) -> dict[str, float]:
    """Returns metric names, which MLflow groups by what stands before the slash, and values."""
    group = "model" if facts.kind == "train" else "evaluation"
    result = {f"{group}/{name}": value for name, value in facts.metrics.items()}
    epsilon = "epsilon" if facts.kind == "train" else "evaluation_epsilon"
    for reading in ("collusion", "outsider"):
        values = {report.site: float(getattr(report, reading)) for report in facts.epsilon}
        result |= {f"{epsilon}_{reading}/{site}": value for site, value in values.items()}
        if values:
            result[f"{epsilon}/{reading}_max"] = max(values.values())
    result |= {f"seconds/{step}": float(value) for step, value in facts.seconds.items()}
    result |= {"round/bytes_up": float(facts.bytes_up), "round/bytes_down": float(facts.bytes_down)}
    result["round/participants"] = float(len(facts.participants))
    return result


def _curves(metrics: Mapping[str, float], facts: RoundFacts) -> dict[str, float]:
    """Returns what the study's own page shows over the rounds: no single steps' seconds; of an evaluation only what it
    has in common with training rounds, since the release puts its results there as ``released/``."""
    left_out = ("seconds/",) if facts.kind == "train" else ("seconds/", "evaluation")
    return {name: value for name, value in metrics.items() if not name.startswith(left_out)}


def _at(metrics: Mapping[str, float], facts: RoundFacts, step: int) -> list[Any]:
    from mlflow.entities import Metric

    return [Metric(name, value, facts.finished_at_ms, step) for name, value in sorted(metrics.items())]


def _log_weights(client: Any, run: StudyRun, child: str, plan: StudyPlan, facts: RoundFacts, weights: bytes) -> None:
    """Logs the round's weights as a logged model whose only file is ``weights.safetensors``."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    name = f"round-{facts.round:04d}"
    # The status is looked at here: MLflow on PostgreSQL keeps it as a number and takes no name for it in a search.
    named = client.search_logged_models([run.experiment_id], filter_string=f"name = '{name}'")
    if any(model.status == LoggedModelStatus.READY for model in named):
        return
    tags = {**common_tags(plan), "consilium.round": str(facts.round), "consilium.model_state": facts.model}
    model = client.create_logged_model(run.experiment_id, name=name, source_run_id=child, tags=tags)
    client.log_outputs(child, [LoggedModelOutput(model.model_id, step=facts.round)])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        path.write_bytes(weights)
        client.log_model_artifacts(model.model_id, folder)
    client.finalize_logged_model(model.model_id, status="READY")


def _norm(values: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.sum(values * values)))
