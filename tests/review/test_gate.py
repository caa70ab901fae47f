"""The release gate on a real finished study: what releases a model, what does not, and what a crash leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from flows.gate_pass import pass_gate
from infra.cli import main
from schemas.errors import EvidenceError, OperationError
from tasks.tracking.review import find_version, post_decision
from tasks.tracking.snapshot import take_snapshot
from tasks.tracking.target import connect
from tasks.tracking.vocabulary import RELEASED, WISH
from tests.review.studies import FIRST, SECOND, Registered, aliases, pass_once, send_review, sign


def test_four_eyes_are_not_met_by_one_reviewer_who_approves_twice(candidate: Registered) -> None:
    send_review(candidate, FIRST, "approve")
    pass_once(candidate, 20)
    send_review(candidate, FIRST, "approve")
    assert "waiting: 1 of 2" in pass_once(candidate, 20)
    assert RELEASED not in aliases(candidate)


def test_one_reviewers_decision_pasted_into_the_others_mailbox_counts_once(candidate: Registered) -> None:
    send_review(candidate, FIRST, "approve")
    version = find_version(candidate.target, candidate.model, "1")
    post_decision(candidate.target, version, SECOND, version.tags[f"consilium.review.{FIRST}"].encode())
    assert "waiting: 1 of 2" in pass_once(candidate, 20)


def test_a_wish_or_an_alias_set_in_the_pages_is_noticed_and_releases_nothing(candidate: Registered) -> None:
    client = connect(candidate.target)
    client.set_model_version_tag(candidate.model, "1", WISH, "approve")
    client.set_registered_model_alias(candidate.model, RELEASED, "1")
    client.set_model_version_tag(candidate.model, "1", f"consilium.review.{SECOND}", '{"decision":"approved"}')
    said = pass_once(candidate, 20)
    assert 'somebody wrote "approve" as tag consilium.review; it takes a signature to count' in said
    assert "the alias released points here without a release in the study log; somebody moved it" in said
    assert f"consilium.review.{SECOND}" in said
    assert "(malformed)" in said
    assert candidate.coordinator().log.find(candidate.plan.study, "review-decided") == []


def test_an_approval_by_a_key_that_the_plan_does_not_name_is_refused_at_both_ends(
    candidate: Registered, tmp_path: Path
) -> None:
    init = [
        "review",
        "init",
        "--home",
        str(tmp_path / "eve"),
        "--name",
        "eve",
        "--mlflow",
        candidate.target.tracking_uri,
    ]
    result = CliRunner().invoke(main, init)
    assert result.exit_code == 0, result.output
    arguments = ["review", "approve", candidate.model, "1", "--home", str(tmp_path / "eve"), "--reason", "please"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 12
    assert f"The plan's reviewers are {FIRST}, {SECOND}; this key is not one of theirs" in result.output


def test_an_older_approval_does_not_come_back_over_a_newer_rejection(candidate: Registered) -> None:
    old = sign(candidate, FIRST)
    send_review(candidate, FIRST, "reject")
    pass_once(candidate, 21)
    version = find_version(candidate.target, candidate.model, "1")
    post_decision(candidate.target, version, FIRST, old)
    assert f"rejected: by {FIRST}" in pass_once(candidate, 21)


def test_evidence_that_fails_an_audit_is_not_released_however_many_approve(candidate: Registered) -> None:
    for name in (FIRST, SECOND):
        send_review(candidate, name, "approve")
    result = next(path for path in (candidate.prepared.workdir.store / "coordinator").rglob("result.bin"))
    result.chmod(0o600)
    result.write_bytes(bytes(len(result.read_bytes())))
    with pytest.raises(EvidenceError, match="The model is not released: its evidence fails C"):
        pass_gate(candidate.home)
    assert RELEASED not in aliases(candidate)
    assert candidate.coordinator().log.find(candidate.plan.study, "release-decided") == []


def test_a_reviewer_sees_a_verified_candidate_and_nothing_of_a_swapped_one(candidate: Registered) -> None:
    home = str(candidate.prepared.workdir.reviewer(FIRST))
    result = CliRunner().invoke(main, ["review", "list", "--home", home, "--json"])
    assert [(row["model"], row["version"]) for row in json.loads(result.output)] == [(candidate.model, "1")]
    result = CliRunner().invoke(main, ["review", "show", candidate.model, "1", "--home", home])
    assert result.exit_code == 0, result.output
    assert candidate.plan.title in result.output
    assert f"2 of {FIRST}, {SECOND}" in result.output
    connect(candidate.target).set_model_version_tag(candidate.model, "1", "consilium.release", "00" * 32)
    result = CliRunner().invoke(main, ["review", "approve", candidate.model, "1", "--home", home, "--reason", "x"])
    assert result.exit_code == 15
    assert "its tag names another release than its signed one" in result.output
    result = CliRunner().invoke(main, ["review", "show", candidate.model, "7", "--home", home])
    assert (result.exit_code, "MLflow has no version 7" in result.output) == (14, True)


def test_the_gate_opens_only_for_a_candidate_of_a_plan_with_reviewers(candidate: Registered, tmp_path: Path) -> None:
    unfinished = CliRunner().invoke(main, ["review", "gate", "--home", str(tmp_path), "--once"])
    assert unfinished.exit_code == 14
    with candidate.home.joinpath("coordinator.lock").open("ab") as handle:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(OperationError, match="Another process is running this study"):
            pass_gate(candidate.home)


def test_a_snapshot_shows_a_moved_alias_an_edited_tag_and_the_digest_of_the_weights(candidate: Registered) -> None:
    client = connect(candidate.target)
    client.set_registered_model_alias(candidate.model, RELEASED, "1")
    client.set_model_version_tag(candidate.model, "1", "consilium.auc", "0.999")
    client.set_model_version_tag(candidate.model, "1", "someone.else", "x")
    taken = json.loads(json.dumps(take_snapshot(candidate.target, candidate.plan.study)))
    (version,) = taken["versions"]
    assert version["aliases"] == ["candidate", "released"]
    assert version["tags"]["consilium.auc"] == "0.999"
    assert "someone.else" not in version["tags"]
    assert taken["weights"] == {f"{candidate.model}/1": version["tags"]["consilium.weights"]}
    assert taken["run"]["metrics"]["released/epsilon_collusion_max"] > 0
