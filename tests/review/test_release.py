"""Releases through the gate on a real finished study: entry, evidence, alias; withdrawn, forged, interrupted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from flows.gate_pass import pass_gate
from infra.cli import main
from schemas.errors import EvidenceError, OperationError
from schemas.ledger import ReleaseDecided
from tasks.audit.keys import read_public_keys
from tasks.audit.verify import verify_evidence
from tasks.tracking.review import find_version
from tasks.tracking.target import connect
from tasks.tracking.vocabulary import RELEASED, REVIEW_STATE
from tests.review.studies import FIRST, SECOND, Registered, aliases, pass_once, send_review, tag


def status(study: Registered) -> str:
    result = CliRunner().invoke(main, ["coordinator", "status", "--home", str(study.home)])
    assert result.exit_code == 0, result.output
    return result.output


def test_two_approvals_with_two_keys_release_the_model_and_the_evidence_says_so(candidate: Registered) -> None:
    assert "waiting: 2 of 2 signed approvals missing" in pass_once(candidate, 20)
    send_review(candidate, FIRST, "approve")
    assert "waiting: 1 of 2 signed approvals missing" in pass_once(candidate, 20)
    assert RELEASED not in aliases(candidate)
    assert "finished; model a candidate (1 of 2 signed approvals missing)" in status(candidate)
    keys = str(candidate.prepared.keys)
    send_review(candidate, SECOND, "approve", "--evidence", str(candidate.home / "evidence"), "--keys", keys)
    assert "released: 2 signed approvals" in pass_once(candidate, 0)
    assert "released: 2 signed approvals" in pass_once(candidate, 0)
    assert set(aliases(candidate)) == {"candidate", RELEASED}
    assert tag(candidate, REVIEW_STATE) == "released: 2 signed approvals"
    assert "finished; model released, 2 of 2 rounds opened" in status(candidate)
    log = candidate.coordinator().log
    (decided,) = (entry.body for entry in log.find(candidate.plan.study, "release-decided"))
    assert isinstance(decided, ReleaseDecided)
    assert (decided.outcome, len(decided.decisions)) == ("released", 2)
    report = verify_evidence(candidate.home / "evidence", read_public_keys(candidate.prepared.keys))
    assert [r.check for r in report.results if r.status == "failed"] == []


def test_a_rejection_stops_it_a_later_approval_replaces_it_and_a_late_rejection_withdraws(
    candidate: Registered,
) -> None:
    send_review(candidate, FIRST, "approve")
    send_review(candidate, SECOND, "reject")
    assert f"rejected: by {SECOND}" in pass_once(candidate, 21)
    assert f"rejected: by {SECOND}" in pass_once(candidate, 21)
    assert "finished; model rejected" in status(candidate)
    send_review(candidate, SECOND, "approve")
    assert "released" in pass_once(candidate, 0)
    send_review(candidate, FIRST, "reject")
    assert f"withdrawn: by {FIRST}" in pass_once(candidate, 21)
    assert "finished; model withdrawn" in status(candidate)
    assert aliases(candidate) == ("candidate",)
    log = candidate.coordinator().log
    outcomes = [
        e.body.outcome for e in log.find(candidate.plan.study, "release-decided") if e.body.kind == "release-decided"
    ]
    assert outcomes == ["rejected", "released", "withdrawn"]
    report = verify_evidence(candidate.home / "evidence", read_public_keys(candidate.prepared.keys))
    assert [r.check for r in report.results if r.status == "failed"] == []


def test_a_decision_travels_in_a_file_where_the_reviewer_cannot_write_to_mlflow(
    candidate: Registered, tmp_path: Path
) -> None:
    for name in (FIRST, SECOND):
        (tmp_path / name).write_text(send_review(candidate, name, "approve", "--print").output)
    assert "consilium.review" not in json.dumps(dict(find_version(candidate.target, candidate.model, "1").tags))
    pass_once(candidate, 0, "--decision", str(tmp_path / FIRST), "--decision", str(tmp_path / SECOND))
    assert RELEASED in aliases(candidate)


def test_a_tag_edited_in_mlflow_stops_the_release_by_name(candidate: Registered) -> None:
    for name in (FIRST, SECOND):
        send_review(candidate, name, "approve")
    connect(candidate.target).set_model_version_tag(candidate.model, "1", "consilium.epsilon_collusion", "0.1")
    with pytest.raises(EvidenceError, match=r"do not follow from the evidence: consilium\.epsilon_collusion"):
        pass_gate(candidate.home)
    assert RELEASED not in aliases(candidate)


def test_a_gate_that_died_before_it_moved_the_alias_goes_on_and_one_that_finished_leaves_it(
    candidate: Registered, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (FIRST, SECOND):
        send_review(candidate, name, "approve")

    def die(*_: object) -> None:
        raise OperationError("killed", "The machine lost its power.")

    with monkeypatch.context() as patch:
        patch.setattr("flows.gate_steps._show", die)
        with pytest.raises(OperationError, match="lost its power"):
            pass_gate(candidate.home)
    assert RELEASED not in aliases(candidate)
    pass_gate(candidate.home)
    assert RELEASED in aliases(candidate)
    connect(candidate.target).delete_registered_model_alias(candidate.model, RELEASED)
    assert "the alias released does not point here though the study log released this version" in pass_once(
        candidate, 0
    )
    assert RELEASED not in aliases(candidate)
    assert len(candidate.coordinator().log.find(candidate.plan.study, "release-decided")) == 1
