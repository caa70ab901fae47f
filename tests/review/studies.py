"""A finished study whose model is registered in MLflow, with two reviewers who have homes and keys of their own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner, Result

from flows.context import CoordinatorContext, open_coordinator
from flows.release import checkpointed_positions
from flows.release_steps import released_metrics
from infra.cli import main
from infra.reviewing import Reviewer, Verdict, open_reviewer, sign_decision
from schemas.layout import release_key
from schemas.messages import ModelRelease
from schemas.plan import StudyPlan
from tasks.storage.mailbox import read_signed
from tasks.tracking.release import record_release, tag_release
from tasks.tracking.review import find_version, read_candidate
from tasks.tracking.study import close_study, open_study
from tasks.tracking.target import TrackingTarget
from tasks.tracking.vocabulary import model_name, release_tags
from tests.simulator import Prepared, change_settings, copy_study

FIRST, SECOND = "first-reviewer", "second-reviewer"


@dataclass(frozen=True)
class Registered:
    """A candidate that waits for its reviewers."""

    prepared: Prepared

    @property
    def plan(self) -> StudyPlan:
        return self.prepared.plan

    @property
    def home(self) -> Path:
        return self.prepared.workdir.coordinator

    @property
    def target(self) -> TrackingTarget:
        return TrackingTarget.local(self.home / "mlflow.db", self.home / "mlartifacts")

    @property
    def model(self) -> str:
        return model_name(self.plan)

    def coordinator(self) -> CoordinatorContext:
        return open_coordinator(self.home)

    def reviewer(self, name: str) -> Reviewer:
        return open_reviewer(self.prepared.workdir.reviewer(name))

    def copy(self, folder: Path) -> Registered:
        """Copies everything; MLflow's artifacts stay where they are and are only read."""
        return _point(copy_study(self.prepared, folder))


def register(finished: Prepared, folder: Path) -> Registered:
    """Copies a finished study and registers its model as the flow does."""
    registered = _point(copy_study(finished, folder))
    context, target, plan = registered.coordinator(), registered.target, registered.plan
    key = release_key(plan.study, "release.json")
    name, key_hex = plan.coordinator.name, plan.coordinator.identity_key
    release = read_signed(context.store, key, ModelRelease, plan.study, key_hex, name)
    weights = context.store.get(release_key(plan.study, "weights.safetensors"))
    assert release is not None
    assert weights is not None
    run = open_study(target, plan, {})
    metrics = released_metrics(context, None)
    version = record_release(target, run, plan, weights, release.predicate, metrics, [], {"release.json": release.data})
    tags = release_tags(plan, release.predicate, checkpointed_positions(context), release.digest)
    tag_release(target, plan, version, tags)
    close_study(target, run, True, "")
    return registered


def _point(prepared: Prepared) -> Registered:
    home = prepared.workdir.coordinator
    uri = f"sqlite:///{home / 'mlflow.db'}"
    change_settings(home, mlflow_uri=uri, artifacts=str(home / "mlartifacts"))
    for reviewer in prepared.plan.reviewers:
        change_settings(prepared.workdir.reviewer(reviewer.name), mlflow_uri=uri, artifacts=str(home / "mlartifacts"))
    return Registered(prepared)


def send_review(study: Registered, reviewer: str, verdict: str, *more: str, code: int = 0) -> Result:
    home = str(study.prepared.workdir.reviewer(reviewer))
    arguments = ["review", verdict, study.model, "1", "--home", home, "--reason", f"{verdict} by {reviewer}", *more]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code, result.output
    return result


def pass_once(study: Registered, code: int, *more: str) -> str:
    result = CliRunner().invoke(main, ["review", "gate", "--home", str(study.home), "--once", *more])
    assert result.exit_code == code, result.output
    return result.output


def aliases(study: Registered) -> tuple[str, ...]:
    return find_version(study.target, study.model, "1").aliases


def tag(study: Registered, name: str) -> str:
    return find_version(study.target, study.model, "1").tags.get(name, "")


def sign(study: Registered, reviewer: str, verdict: Verdict = "approved") -> bytes:
    who = study.reviewer(reviewer)
    candidate = read_candidate(study.target, find_version(study.target, study.model, "1"))
    return sign_decision(who, candidate, verdict, "Read it.", None)
