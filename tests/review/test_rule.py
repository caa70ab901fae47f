"""The release rule: distinct keys, standing rejections, no replay; whatever order decisions arrive in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from schemas.canonical import canonical_bytes, parse_canonical
from schemas.envelope import envelope_digest, public_hex, sign_envelope
from schemas.errors import EvidenceError, PeerError, PlanError
from schemas.ledger import Body, ModelReleased, PlanApproved, ReleaseDecided, ReviewDecided
from schemas.plan import ReleaseSpec, ReviewerEntry, StudyPlan
from schemas.review import ReviewDecision
from tasks.ledger.store import LedgerStore
from tasks.review import decide, verify_decision
from tests.tracking.studies import make_plan, make_release

Verdict = Literal["approved", "rejected"]
NAMES = ("ada", "bea", "cleo")


@dataclass(frozen=True)
class Gate:
    plan: StudyPlan
    keys: dict[str, Ed25519PrivateKey]
    release_digest: str = "0a" * 32

    def decision(self, reviewer: str, verdict: Verdict = "approved", number: int = 1, **other: object) -> bytes:
        values: dict[str, object] = {
            "reviewer": reviewer,
            "number": number,
            "decision": verdict,
            "release": self.release_digest,
            "weights": make_release(self.plan, "77" * 32).weights,
            "model_version": "invented-logistic/1",
            "evidence": None,
            "reason": "Read it.",
            "time": "2026-01-01T00:00:00Z",
        }
        key = self.keys[str(other.pop("key", reviewer))]
        return sign_envelope(ReviewDecision.model_validate(values | other), self.plan.study, key)

    def verify(self, data: bytes) -> ReviewDecision:
        return verify_decision(self.plan, self.release_digest, make_release(self.plan, "77" * 32), data)


def make_gate(needed: int = 2) -> Gate:
    keys = {name: Ed25519PrivateKey.from_private_bytes(bytes([i]) * 32) for i, name in enumerate((*NAMES, "eve"))}
    reviewers = tuple(ReviewerEntry(name=name, identity_key=public_hex(keys[name])) for name in NAMES)
    plain = make_plan().model_dump() | {"reviewers": reviewers, "release": ReleaseSpec(reviewers_needed=needed)}
    return Gate(StudyPlan.model_validate(plain), keys)


def test_a_plan_from_before_the_gate_keeps_its_bytes_and_one_with_it_spells_it_out() -> None:
    old = make_plan()
    assert b"reviewers_needed" not in canonical_bytes(old)
    plan = make_gate().plan
    assert parse_canonical(StudyPlan, canonical_bytes(plan), "the plan") == plan
    assert b'"release":{"reviewers_needed":2}' in canonical_bytes(plan)


def test_a_plan_cannot_ask_for_more_reviewers_than_it_names_or_name_one_twice() -> None:
    with pytest.raises(PlanError, match="Expected at least 4 reviewers, got 3"):
        make_gate(needed=4)
    gate = make_gate()
    twin = ReviewerEntry(name="ada", identity_key=public_hex(gate.keys["eve"]))
    with pytest.raises(PlanError, match="Two reviewers have the same name"):
        StudyPlan.model_validate(gate.plan.model_dump() | {"reviewers": (*gate.plan.reviewers, twin)})


def test_four_eyes_are_not_met_by_one_key_that_signs_twice() -> None:
    gate = make_gate()
    twice = [gate.verify(gate.decision("ada", number=number)) for number in (1, 2, 3)]
    assert decide(gate.plan, twice) == "waiting"
    assert decide(gate.plan, [*twice, gate.verify(gate.decision("bea"))]) == "released"


def test_one_key_cannot_speak_in_two_names() -> None:
    gate = make_gate()
    with pytest.raises(PeerError, match="ada: the decision is in another reviewer's name"):
        gate.verify(gate.decision("bea", key="ada"))


def test_a_decision_by_somebody_else_or_about_something_else_is_refused() -> None:
    gate = make_gate()
    with pytest.raises(PeerError, match="not signed with the key of a reviewer of the plan"):
        gate.verify(gate.decision("ada", key="eve"))
    for other in ({"release": "0b" * 32}, {"weights": "78" * 32}):
        with pytest.raises(PeerError, match="ada: the decision is about another release"):
            gate.verify(gate.decision("ada", **other))
    elsewhere = Gate(make_plan(nonce="99"), gate.keys)
    with pytest.raises(PeerError, match="is about another study"):
        gate.verify(elsewhere.decision("ada"))
    for forged in (b"", b"{}", b"x" * 20_000, gate.decision("ada").replace(b"ey", b"ez", 1)):
        with pytest.raises(PeerError):
            gate.verify(forged)


@given(st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(["approved", "rejected"])), max_size=8), st.randoms())
def test_only_the_standing_decisions_count_in_whatever_order_they_arrive(
    made: list[tuple[str, Verdict]], random: object
) -> None:
    gate = make_gate()
    values = [
        gate.verify(gate.decision(who, verdict, number=1 + sum(w == who for w, _ in made[:at])))
        for at, (who, verdict) in enumerate(made)
    ]
    standing = dict(made)
    expected = (
        "rejected"
        if "rejected" in standing.values()
        else "released"
        if len(standing) >= gate.plan.release.reviewers_needed
        else "waiting"
    )
    random.shuffle(values)  # type: ignore[attr-defined]
    assert decide(gate.plan, values) == expected


def _log(folder: Path, gate: Gate) -> LedgerStore:
    return LedgerStore(folder / "log.sqlite", "registry", gate.keys["eve"])


def test_the_study_log_enters_reviews_only_after_the_release_and_in_order(tmp_path: Path) -> None:
    gate = make_gate()
    log, study = _log(tmp_path, gate), gate.plan.study

    def refused(body: Body, words: str) -> None:
        size = log.position().size
        with pytest.raises(EvidenceError, match=words):
            log.append(study, body)
        assert log.position().size == size

    def review(reviewer: str, number: int = 1, verdict: Verdict = "approved") -> ReviewDecided:
        data = gate.decision(reviewer, verdict, number)
        return ReviewDecided(review=envelope_digest(data), decision=gate.verify(data))

    def decided(outcome: Literal["released", "rejected", "withdrawn"], *on: ReviewDecided) -> ReleaseDecided:
        return ReleaseDecided(
            release=gate.release_digest,
            outcome=outcome,
            decisions=tuple(r.review for r in on),
            evidence="ee" * 32,
            model_version="m/1",
        )

    log.append(study, PlanApproved(approval="aa" * 32))
    refused(review("ada"), "released model of its study before it")
    log.append(study, ModelReleased(release=make_release(gate.plan, "77" * 32)))
    ada, bea = review("ada", 2), review("bea")
    log.append(study, ada)
    refused(review("ada", 1), "a later review number")
    refused(review("ada", 2), "a later review number")
    refused(decided("released", ada, bea), "every decision it rests on before it")
    log.append(study, bea)
    refused(decided("withdrawn", ada), "Only what is released is withdrawn")
    log.append(study, decided("released", ada, bea))
    refused(decided("released", ada, bea), "released before")
    refused(decided("rejected", ada), "Only what is released is withdrawn")
    late = review("bea", 2, "rejected")
    log.append(study, late)
    log.append(study, decided("withdrawn", ada, late))
    assert log.verify().size == 7
