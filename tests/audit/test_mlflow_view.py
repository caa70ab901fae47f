"""MLflow edited by hand, in every way that its pages allow: each edit is noticed against the evidence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from infra.cli import main
from schemas.errors import EvidenceError, OperationError
from tasks.audit.checks.mlflow_view import CHECKS
from tasks.audit.registry import run_check
from tasks.audit.report import CheckResult
from tasks.audit.snapshot import MlflowSnapshot, parse_snapshot, read_snapshot
from tasks.audit.verify import open_evidence
from tasks.tracking.snapshot import take_snapshot
from tasks.tracking.target import connect
from tasks.tracking.vocabulary import model_name
from tests.audit.released import ReleasedStudy, make_released_study
from tests.conftest import FinishedStudy
from tests.review.studies import Registered, register


@pytest.fixture(scope="module")
def registered(finished_study: FinishedStudy, tmp_path_factory: pytest.TempPathFactory) -> Registered:
    return register(finished_study.prepared, tmp_path_factory.mktemp("registered") / "study")


@pytest.fixture(scope="module")
def shown(registered: Registered) -> dict[str, Any]:
    """What the real MLflow shows, before anybody edited it."""
    return take_snapshot(registered.target, registered.plan.study)


def check(evidence: Path, shown: dict[str, Any]) -> CheckResult:
    snapshot = parse_snapshot(json.dumps(shown).encode(), "a snapshot")
    return run_check(CHECKS[0], open_evidence(evidence, None, snapshot))


def test_an_untouched_mlflow_shows_what_the_evidence_says(finished_study: FinishedStudy, shown: dict[str, Any]) -> None:
    result = check(finished_study.evidence, shown)
    assert result.findings == ()
    assert result.status == "checked"
    assert "tags, aliases" in result.detail
    assert "could not be read" not in result.detail


def edit_tag(client: Any, name: str) -> None:
    client.set_model_version_tag(name, "1", "consilium.epsilon_collusion", "0.1")


def remove_tag(client: Any, name: str) -> None:
    client.delete_model_version_tag(name, "1", "consilium.weights")


def add_tag(client: Any, name: str) -> None:
    client.set_model_version_tag(name, "1", "consilium.approved_by", "the board")


def edit_ledger_root(client: Any, name: str) -> None:
    client.set_model_version_tag(name, "1", "consilium.ledger.hospital-01", f"12:{'ab' * 32}")


def move_released(client: Any, name: str) -> None:
    client.set_registered_model_alias(name, "released", "1")


def remove_candidate(client: Any, name: str) -> None:
    client.delete_registered_model_alias(name, "candidate")


def say_released(client: Any, name: str) -> None:
    client.set_model_version_tag(name, "1", "consilium.review_state", "released")


def edit_metric(client: Any, name: str) -> None:
    version = client.get_model_version(name, "1")
    client.log_metric(version.run_id, "released/auc", 0.999, step=99)


EDITS: dict[str, tuple[Callable[[Any, str], None], str]] = {
    "edited tag": (edit_tag, "another value in its tag consilium.epsilon_collusion"),
    "removed tag": (remove_tag, "has lost its tag consilium.weights"),
    "invented tag": (add_tag, "does not follow from the evidence"),
    "edited ledger root": (edit_ledger_root, "another value in its tag consilium.ledger.hospital-01"),
    "alias released moved by hand": (move_released, "no signed decision put it there"),
    "alias candidate removed": (remove_candidate, "has no version with the alias candidate"),
    "review state edited": (say_released, "what the study log does not (waiting)"),
    "edited metric": (edit_metric, "shows another value of released/auc"),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_in_mlflow_is_noticed(
    name: str, registered: Registered, finished_study: FinishedStudy, tmp_path: Path
) -> None:
    copied = registered.copy(tmp_path / "study")
    edit, reason = EDITS[name]
    edit(connect(copied.target), model_name(copied.plan))
    result = check(finished_study.evidence, take_snapshot(copied.target, copied.plan.study))
    assert result.status == "failed"
    assert any(reason in finding.reason for finding in result.findings), result.findings


def test_other_weights_in_mlflow_are_noticed(finished_study: FinishedStudy, shown: dict[str, Any]) -> None:
    swapped = shown | {"weights": dict.fromkeys(shown["weights"], "ab" * 32)}
    assert "holds other weights" in check(finished_study.evidence, swapped).findings[0].reason


def test_a_version_that_was_deleted_is_missed(finished_study: FinishedStudy, shown: dict[str, Any]) -> None:
    assert "has no version" in check(finished_study.evidence, shown | {"versions": []}).findings[0].reason


# --- after reviewers decided


def view_of(study: ReleasedStudy, aliases: dict[str, list[str]], tags: dict[str, str] | None = None) -> dict[str, Any]:
    """What MLflow would show: this study's version 2 between an older and a newer one of other studies."""
    from tasks.tracking.vocabulary import release_tags

    digest, release = study.release
    context = open_evidence(study.evidence, None)
    roots = {owner: context.log(owner).checkpoint.predicate.position for owner in context.participants}  # type: ignore[union-attr]
    ours = release_tags(study.plan, release, roots, digest) | (tags or {})
    others = {"1": {"consilium.study": "01" * 32}, "2": ours, "3": {"consilium.study": "03" * 32}}
    versions = [
        {"name": model_name(study.plan), "version": number, "tags": shown, "aliases": aliases.get(number, [])}
        for number, shown in others.items()
    ]
    return {"format": "consilium/mlflow-snapshot/1", "study": study.plan.study, "versions": versions} | {
        "weights": {},
        "run": {"tags": {}, "metrics": {}},
    }


@pytest.fixture(scope="module")
def approved(tmp_path_factory: pytest.TempPathFactory) -> tuple[ReleasedStudy, Path]:
    study = make_released_study(tmp_path_factory.mktemp("approved") / "study")
    for reviewer in ("ada", "ben"):
        study.enter(study.sign(reviewer, "approved"), reviewer, "approved")
    study.conclude()
    return study, study.export()


def reasons(evidence: Path, shown: dict[str, Any]) -> str:
    return "; ".join(f"{f.place} {f.reason}" for f in check(evidence, shown).findings)


def test_the_alias_of_a_released_model_may_stand_on_it_or_on_a_later_study(
    approved: tuple[ReleasedStudy, Path],
) -> None:
    study, evidence = approved
    assert reasons(evidence, view_of(study, {"2": ["released"], "3": ["candidate"]})) == ""
    assert reasons(evidence, view_of(study, {"3": ["released", "candidate"]})) == ""


def test_an_alias_moved_back_to_an_older_model_is_noticed(approved: tuple[ReleasedStudy, Path]) -> None:
    study, evidence = approved
    found = reasons(evidence, view_of(study, {"1": ["released"], "3": ["candidate"]}))
    assert "has the alias released, which belongs to this study's version" in found


def test_an_alias_that_was_taken_from_a_released_model_is_noticed(approved: tuple[ReleasedStudy, Path]) -> None:
    study, evidence = approved
    assert "no version with the alias released" in reasons(evidence, view_of(study, {"3": ["candidate"]}))


def test_a_signed_rejection_that_never_reached_the_log_is_noticed(approved: tuple[ReleasedStudy, Path]) -> None:
    study, evidence = approved
    late = study.sign("ben", "rejected", 2).decode()
    shown = view_of(study, {"2": ["released"], "3": ["candidate"]}, {"consilium.review.ben": late})
    assert "carries a signed rejection by ben that was not entered" in reasons(evidence, shown)
    unsigned = view_of(study, {"2": ["released"], "3": ["candidate"]}, {"consilium.review.ben": "no!"})
    assert reasons(evidence, unsigned) == ""


# --- commands


def test_the_commands_write_and_read_a_snapshot(
    registered: Registered, finished_study: FinishedStudy, tmp_path: Path
) -> None:
    out, uri = tmp_path / "mlflow.json", registered.target.tracking_uri
    command = ["audit", "snapshot", str(finished_study.evidence), "--mlflow", uri, "--out", str(out)]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert isinstance(read_snapshot(out), MlflowSnapshot)
    with pytest.raises(OperationError, match=r"There is no file other\.json"):
        read_snapshot(tmp_path / "other.json")
    out.write_text("{}")
    with pytest.raises(EvidenceError, match=r"Expected a snapshot of MLflow at mlflow\.json"):
        read_snapshot(out)
