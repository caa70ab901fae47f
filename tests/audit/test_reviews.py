"""Reviewers' decisions under audit: what the rule gives, and every way of bending it."""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas.layout import ledger_key, review_key
from tasks.audit.report import AuditReport
from tests.audit.released import ReleasedStudy, make_released_study


@pytest.fixture
def study(tmp_path: Path) -> ReleasedStudy:
    return make_released_study(tmp_path / "study")


def found(report: AuditReport) -> dict[str, list[str]]:
    return {r.check: [f"{f.place}: {f.reason}" for f in r.findings] for r in report.results if r.status == "failed"}


def approve(study: ReleasedStudy, *reviewers: str, decision: str = "approved", number: int = 1) -> None:
    for reviewer in reviewers:
        study.enter(study.sign(reviewer, decision, number), reviewer, decision, number)


def test_a_candidate_on_which_nobody_decided_is_verified_and_said_to_be_one(study: ReleasedStudy) -> None:
    report = study.audit(study.evidence)
    assert found(report) == {}
    assert report.result("C32").status == "not-applicable"
    assert "the model is a candidate" in report.result("C32").detail


def test_two_approvals_release_and_the_log_stays_verifiable_after_its_closing(study: ReleasedStudy) -> None:
    approve(study, *("ada", "ben"))
    study.conclude()
    report = study.audit(study.export())
    assert found(report) == {}
    assert report.result("C32").detail == "2 decisions, 2 approvals needed; released"
    assert report.result("C09").status == "checked"


def test_a_later_rejection_withdraws_what_was_released(study: ReleasedStudy) -> None:
    approve(study, "ada", "ben")
    study.conclude()
    approve(study, "ben", decision="rejected", number=2)
    study.conclude("withdrawn")
    report = study.audit(study.export())
    assert found(report) == {}
    assert report.result("C32").detail.endswith("withdrawn")


def test_one_approval_does_not_release_where_two_are_needed(study: ReleasedStudy) -> None:
    approve(study, "ada")
    study.conclude("released")
    assert "says released, and the decisions before it give waiting" in found(study.audit(study.export()))["C32"][0]


def test_one_key_that_approves_twice_counts_once(study: ReleasedStudy) -> None:
    approve(study, "ada")
    approve(study, "ada", number=2)
    study.conclude("released")
    assert "the decisions before it give waiting" in found(study.audit(study.export()))["C32"][0]


def test_an_approval_forged_by_the_coordinator_is_found(study: ReleasedStudy) -> None:
    approve(study, "ada")
    study.enter(study.sign("ben", "approved", by="registry"), "ben", "approved")
    study.conclude()
    findings = found(study.audit(study.export()))
    assert any("not signed with the key of a reviewer" in reason for reason in findings["C32"])


def test_an_approval_in_another_reviewers_name_is_found(study: ReleasedStudy) -> None:
    approve(study, "ada")
    study.enter(study.sign("ben", "approved", by="ada"), "ben", "approved")
    study.conclude()
    assert any("in another reviewer's name" in reason for reason in found(study.audit(study.export()))["C32"])


def test_an_approval_of_another_release_is_found(study: ReleasedStudy) -> None:
    approve(study, "ada")
    study.enter(study.sign("ben", "approved", release="aa" * 32), "ben", "approved")
    study.conclude()
    assert any("about another release" in reason for reason in found(study.audit(study.export()))["C32"])


def test_an_entry_that_turns_a_rejection_into_an_approval_is_found(study: ReleasedStudy) -> None:
    approve(study, "ada")
    study.enter(study.sign("ben", "rejected"), "ben", "approved")
    study.conclude()
    assert any("another decision than its reviewer signed" in r for r in found(study.audit(study.export()))["C32"])


def test_a_decision_that_was_not_entered_is_found(study: ReleasedStudy) -> None:
    approve(study, "ada", "ben")
    study.conclude()
    study.store.put(review_key(study.plan.study, "ben", 2), study.sign("ben", "rejected", 2))
    findings = found(study.audit(study.export()))
    assert "has no matching entry in the ledger of registry (review-decided)" in findings["C13"][0]


def test_a_decision_that_is_kept_from_the_auditor_is_missed(study: ReleasedStudy) -> None:
    approve(study, "ada", "ben")
    study.conclude()
    evidence = study.export()
    (evidence / review_key(study.plan.study, "ben", 1)).unlink()
    study.seal(evidence)
    findings = found(study.audit(evidence))
    assert "no message matches this entry (review-decided)" in findings["C13"][0]


def test_decisions_cut_from_the_end_of_the_log_are_missed(study: ReleasedStudy) -> None:
    approve(study, "ada", "ben")
    study.conclude()
    evidence = study.export()
    (evidence / ledger_key(study.plan.study, "registry", True, "entries-000002.jsonl")).unlink()
    study.seal(evidence)
    assert {"C09", "C11", "C13"} & set(found(study.audit(evidence)))


def test_entries_after_the_closing_need_a_checkpoint_of_their_own(study: ReleasedStudy) -> None:
    approve(study, "ada", "ben")
    study.conclude()
    evidence = study.export()
    next(evidence.rglob("checkpoint-0*.json")).unlink()
    study.seal(evidence)
    assert any("was entered after the checkpoint" in reason for reason in found(study.audit(evidence))["C09"])


def test_a_key_file_that_names_another_reviewer_fails_the_identity_check(study: ReleasedStudy) -> None:
    from tasks.audit.verify import verify_evidence

    keys = study.keys.model_copy(update={"reviewers": {"ada": study.keys.reviewers["ada"], "eve": "ab" * 32}})
    findings = found(verify_evidence(study.evidence, keys))
    assert {reason.split(":")[0] for reason in findings["C01"]} == {"ben", "eve"}
