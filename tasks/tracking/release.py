"""The released model in MLflow's registry: registered once per study, then tagged once the evidence is signed.

The caller fixes the order: register (`record_release`), sign the release entry and the checkpoint, then `tag_release`.
A version without tags is one whose study crashed in between; running the release again completes it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from schemas.canonical import sha256_hex
from schemas.errors import EvidenceError
from schemas.messages import LogPosition, ModelRelease
from schemas.plan import StudyPlan, feature_count
from tasks.metrics import EvaluationMetrics
from tasks.tracking.allowed import STUDY_ARTIFACTS, verify_names
from tasks.tracking.card import CARD, describe_version, first_screen, write_card
from tasks.tracking.network import build_network
from tasks.tracking.plots import EpsilonAtRound, draw_plots
from tasks.tracking.review import previous_released
from tasks.tracking.rounds import RoundFacts
from tasks.tracking.story import STORY, Story, compare_with, largest, shorten, tell_story
from tasks.tracking.study import StudyRun, describe_plan, remember_flow_run
from tasks.tracking.target import TrackingTarget, common_tags, connect, local_page
from tasks.tracking.vocabulary import CANDIDATE, model_name


def record_release(
    target: TrackingTarget,
    run: StudyRun,
    plan: StudyPlan,
    weights: bytes,
    release: ModelRelease,
    evaluation: EvaluationMetrics | None,
    history: Sequence[EpsilonAtRound],
    documents: Mapping[str, bytes],
    rounds: Sequence[RoundFacts] = (),
    roots: Mapping[str, LogPosition] | None = None,
) -> str:
    """Registers the released model and logs its metrics, plots and documents; a registered study is left as it is.

    Args:
        target: The MLflow backend.
        run: The study, from `open_study`.
        plan: The study plan.
        weights: ``weights.safetensors`` bytes; their digest must be the release's.
        release: What is released.
        evaluation: Released metrics with curves, or None if there was no evaluation.
        history: Epsilon by round, for the plot.
        documents: Artifact name (`STUDY_ARTIFACTS`) to bytes.
        rounds: Facts of the opened rounds, for the story of the run's page.
        roots: Log owner to its checkpointed position.

    Returns:
        The model version.

    Raises:
        EvidenceError: `weights-mismatch`.
        OperationError: `not-on-allow-list`.
    """
    verify_names(documents, STUDY_ARTIFACTS, "artifacts")
    if sha256_hex(weights) != release.weights:
        raise EvidenceError("weights-mismatch", "The weights are not those of the release.")
    client = connect(target)
    plots = draw_plots(plan, history, evaluation)
    attacks = read_attacks(client, run.run_id)
    previous = _compare(target, plan, release)
    card = write_card(plan, release, attacks, previous)
    for path, data in {**plots, **documents, CARD: card.encode()}.items():
        _log_bytes(client, run.run_id, path, data)
    # The study's start is the same whenever this runs again, so that no figure gets a second point.
    started_ms = client.get_run(run.run_id).info.start_time
    client.log_batch(run.run_id, metrics=_release_metrics(release, started_ms), synchronous=True)
    version = _find_version(client, plan) or _register(client, run, plan, weights, release)
    result = describe_release(plan, release, version)
    shown = run.run_id if "plots/roc.png" in plots else ""
    first = first_screen(result, plan, rounds, shown, remember_flow_run(client, run.run_id, ""))
    client.update_model_version(
        model_name(plan), version, description=describe_version(card, _describe_version(plan, release), first)
    )
    client.set_experiment_tag(
        run.experiment_id, "mlflow.note.content", _describe_experiment(plan, release, version, bool(shown))
    )
    story = Story(
        result=result,
        rounds=rounds,
        plots=[path for path in ("plots/roc.png", "plots/epsilon.png", "plots/calibration.png") if path in plots],
        previous=previous,
        attacks=attacks,
        roots=roots or {},
    )
    tell_study(target, run, plan, story)
    return version


def tell_study(target: TrackingTarget, run: StudyRun, plan: StudyPlan, story: Story) -> None:
    """Writes the story on the parent run's page, and whole into the artifact ``story.md``."""
    client = connect(target)
    told = replace(story, flow_run=remember_flow_run(client, run.run_id, story.flow_run))
    client.set_tag(run.run_id, "mlflow.note.content", shorten(tell_story(plan, told, run.run_id)))
    client.log_text(run.run_id, tell_story(plan, told), STORY)


def read_attacks(client: Any, run_id: str) -> dict[str, float]:
    """Returns the figures of an attack evaluation that was logged on the parent run; empty without one."""
    metrics = client.get_run(run_id).data.metrics
    return {name: value for name, value in sorted(metrics.items()) if name.startswith("attack/")}


def _compare(target: TrackingTarget, plan: StudyPlan, release: ModelRelease) -> str:
    before = previous_released(target, plan)
    return compare_with(before.tags, before.version, release) if before is not None else ""


def _register(client: Any, run: StudyRun, plan: StudyPlan, weights: bytes, release: ModelRelease) -> str:
    """Logs the model and creates its version; returns the version."""
    model_id = _log_model(client, run, plan, weights, release)
    _open_registered_model(client, plan)
    version = client.create_model_version(
        model_name(plan),
        source=f"models:/{model_id}",
        run_id=run.run_id,
        tags={"consilium.study": plan.study},
        model_id=model_id,
    )
    # What makes MLflow's page of the logged model name the version.
    versions = json.dumps([{"name": version.name, "version": version.version}])
    client.set_logged_model_tags(model_id, {"mlflow.modelVersions": versions})
    return str(version.version)


def tag_release(target: TrackingTarget, plan: StudyPlan, version: str, tags: Mapping[str, str]) -> None:
    """Sets the version's tags and points the alias ``candidate`` at it; repeating it changes nothing."""
    client = connect(target)
    name = model_name(plan)
    for key, value in sorted(tags.items()):
        client.set_model_version_tag(name, version, key, value)
    client.set_registered_model_alias(name, CANDIDATE, version)


def _find_version(client: Any, plan: StudyPlan) -> str | None:
    condition = f"name = '{model_name(plan)}' and tag.`consilium.study` = '{plan.study}'"
    versions = client.search_model_versions(condition)
    return min((str(v.version) for v in versions), key=int) if versions else None


def _log_model(client: Any, run: StudyRun, plan: StudyPlan, weights: bytes, release: ModelRelease) -> str:
    """Logs ``weights.safetensors`` and, beside it, the model in MLflow's pt2 flavour (a traced graph, no pickle).

    A module that sites installed is logged as weights alone: the coordinator never runs its code.
    """
    from mlflow.entities import LoggedModelOutput

    # Created by us, not by log_model, which would add the operating system's user, script and git commit.
    model = client.create_logged_model(
        run.experiment_id, name="released-model", source_run_id=run.run_id, tags=common_tags(plan)
    )
    client.log_outputs(run.run_id, [LoggedModelOutput(model.model_id, step=release.rounds)])
    if plan.model.module is None:
        _log_network(plan, weights, release, model.model_id)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        path.write_bytes(weights)
        client.log_model_artifact(model.model_id, str(path))
    client.finalize_logged_model(model.model_id, status="READY")
    return str(model.model_id)


def _log_network(plan: StudyPlan, weights: bytes, release: ModelRelease, model_id: str) -> None:
    import mlflow.pytorch
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    features = feature_count(plan.contract)
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype("float32"), (-1, features))]),
        outputs=Schema([TensorSpec(np.dtype("float32"), (-1, 1))]),
    )
    mlflow.pytorch.log_model(
        build_network(plan, weights),
        model_id=model_id,
        signature=signature,
        # Stored in clear: zeros, never a patient's row. Two rows, so that the number of rows stays free.
        input_example=np.zeros((2, features), dtype=np.float32),
        pip_requirements=_requirements(),
        serialization_format="pt2",
        metadata={"study": plan.study, "weights": release.weights},
    )


def _requirements() -> list[str]:
    from importlib.metadata import version

    return [f"{name}=={version(name).split('+')[0]}" for name in ("mlflow", "numpy", "torch")]


def _open_registered_model(client: Any, plan: StudyPlan) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(
            model_name(plan), description=f"{plan.model.kind} on contract {plan.contract.name}, one version per study."
        )
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def describe_release(plan: StudyPlan, release: ModelRelease, version: str) -> str:
    """Returns what was released in words (Markdown)."""
    heading = f"**Released as `{model_name(plan)}` version {version}**, alias `{CANDIDATE}`."
    return f"{heading} {_describe_result(plan, release)}"


def _describe_experiment(plan: StudyPlan, release: ModelRelease, version: str, has_roc: bool) -> str:
    """Returns the experiment's description: its first line, which is all that MLflow unfolds, leads to the version."""
    auc = dict(release.metrics).get("auc")
    quality = f"AUC {float(auc):.3f}, " if auc is not None else ""
    cost = f"ε at most {largest(release.epsilon, 'collusion'):g} of {plan.budget.epsilon}"
    words = f"{'ROC, ' if has_roc else ''}who took part, model card"
    page = local_page(f"models/{model_name(plan)}/versions/{version}")
    return f"{quality}{cost}: [{words}]({page})\n\n{describe_plan(plan)}"


def _describe_version(plan: StudyPlan, release: ModelRelease) -> str:
    sites = ", ".join(site.name for site in plan.contributors)
    return "\n\n".join(
        [
            f"{plan.title} {_describe_result(plan, release)}",
            f"Sites: {sites}. Study (plan digest): `{plan.study}`. The tags name the digests and the ledgers' roots "
            "that `consilium audit verify` recomputes; MLflow itself is no evidence.",
            "Not for clinical use without review.",
        ]
    )


def _describe_result(plan: StudyPlan, release: ModelRelease) -> str:
    state = "complete" if release.complete else f"ended early: {release.reason}"
    found = dict(release.metrics)
    quality = "no evaluation was released"
    if {"auc", "auc_low", "auc_high"} <= set(found):
        value, low, high = (float(found[name]) for name in ("auc", "auc_low", "auc_high"))
        ranges = f"scores counted in {plan.evaluation.bins} ranges"
        quality = f"AUC {value:.3f} on held-out patients ({ranges}), 95 % interval {low:.3f} to {high:.3f}"
    collusion, outsider = (
        max((float(getattr(report, reading)) for report in release.epsilon), default=0.0)
        for reading in ("collusion", "outsider")
    )
    return (
        f"{release.rounds} training rounds ({state}); {quality}. Privacy cost of a site's training patients: at most "
        f"ε = {collusion:g} under the plan's collusion and {outsider:g} against outsiders, of {plan.budget.epsilon} at "
        f"δ = {plan.budget.delta}, per {plan.mechanism.unit}."
    )


def _release_metrics(release: ModelRelease, time_ms: int) -> list[Any]:
    """Returns the release's figures as metrics at the step of its last round."""
    from mlflow.entities import Metric

    values = {f"released/{name}": float(value) for name, value in release.metrics}
    for prefix, reports in (("epsilon", release.epsilon), ("evaluation_epsilon", release.evaluation_epsilon)):
        for reading in ("collusion", "outsider", "fallback"):
            if reports:
                values[f"released/{prefix}_{reading}_max"] = max(float(getattr(r, reading)) for r in reports)
    return [Metric(name, value, time_ms, release.rounds) for name, value in sorted(values.items())]


def _log_bytes(client: Any, run_id: str, path: str, data: bytes) -> None:
    folder, _, name = path.rpartition("/")
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary) / name
        source.write_bytes(data)
        client.log_artifact(run_id, str(source), folder or None)
