"""The tamper list: named manipulations of an exported study, at least one per claim, and the check that must find it.

Everything is done with the keys that the dishonest party has, and the coordinator signs a new manifest over it unless
the list says that somebody else had the folder. C34's manipulation is in `tests/statistics`, those of real MLflow pages
in `test_mlflow_view.py`. C27 and C28 recompute from the same events what C26 states: what they find is a wrong
accountant, not a forger.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from schemas.canonical import canonical_bytes, parse_canonical
from schemas.layout import (
    approval_key,
    attempt_key,
    ceremony_key,
    ledger_key,
    plan_key,
    release_key,
    review_key,
    round_key,
)
from schemas.ledger import CohortRegistered, LedgerEntry, PrivacyReserved
from schemas.messages import Closing, PlanApproval
from tasks.audit.context import AuditContext
from tasks.audit.evidence import EvidenceFolder
from tasks.audit.keys import read_public_keys
from tasks.audit.names import CRATE, proofs_name
from tasks.audit.proofs import ConsistencyProofs
from tasks.audit.registry import run_check
from tasks.audit.snapshot import parse_snapshot
from tasks.audit.verify import CHECKS, open_evidence
from tests.audit.eventful import Eventful
from tests.audit.released import ReleasedStudy, make_released_study
from tests.audit.tampering import Forger
from tests.audit.test_mlflow_view import view_of
from tests.conftest import FinishedStudy


@dataclass(frozen=True)
class Tampering:
    """One manipulation.

    Attributes:
        check: The check that should find it.
        act: Does it.
        says: Part of what that check must say.
        sealed: Whether the coordinator signs a new manifest over it.
    """

    check: str
    act: Callable[[Forger], None]
    says: str
    sealed: bool = True


def change_release(forger: Forger, **changes: object) -> None:
    release = forger.honest.release.predicate
    forger.sign(release_key(forger.study, "release.json"), release.model_copy(update=changes))


def swap(forger: Forger, first: str, second: str) -> None:
    one, other = forger.read(first), forger.read(second)
    forger.write(first, other)
    forger.write(second, one)


def lines_of(forger: Forger, owner: str) -> tuple[str, list[bytes]]:
    name = forger.names(forger.log_folder(owner) + "entries-")[-1]
    return name, forger.read(name).splitlines(keepends=True)


def other_key_in_the_key_file(forger: Forger) -> None:
    forger.keys = forger.keys.model_copy(update={"sites": forger.keys.sites | {forger.sites[0]: "ab" * 32}})


def invented_site_in_the_plan(forger: Forger) -> None:
    known = {name: key for name, key in forger.keys.sites.items() if name != forger.sites[-1]}
    forger.keys = forger.keys.model_copy(update={"sites": known})


def byte_changed_on_the_way(forger: Forger) -> None:
    name = release_key(forger.study, "release.json")
    forger.write(name, forger.read(name)[:-1] + b" ")


def site_removed(forger: Forger) -> None:
    for name in forger.names(f"sites/{forger.sites[2]}/"):
        forger.remove(name)


def file_of_nobody(forger: Forger) -> None:
    forger.write(f"coordinator/{forger.study}/notes.txt", b"read me")


def file_of_another_study(forger: Forger) -> None:
    name = approval_key(forger.study, forger.sites[0])
    forger.write(name.replace(forger.study, "12" * 32), forger.read(name))


def other_encoding(forger: Forger) -> None:
    name = approval_key(forger.study, forger.sites[0])
    forger.write(name, forger.read(name).replace(b'","', b'", "', 1))


def ciphertexts_exchanged(forger: Forger) -> None:
    first, second = (attempt_key(forger.study, 1, 1, site, "key.bin") for site in forger.sites[:2])
    swap(forger, first, second)


def deleted_sealed_share(forger: Forger) -> None:
    forger.remove(ceremony_key(forger.study, 1, forger.sites[0], f"sealed-{forger.sites[1]}.bin"))


def changed_plan(forger: Forger) -> None:
    budget = forger.plan.budget.model_copy(update={"epsilon": "30"})
    forger.write(plan_key(forger.study), canonical_bytes(forger.plan.model_copy(update={"budget": budget})))


def forged_approval(forger: Forger) -> None:
    site = forger.sites[0]
    forger.sign(approval_key(forger.study, site), PlanApproval(participant=site, role="site"))


def deleted_approval(forger: Forger) -> None:
    forger.remove(approval_key(forger.study, forger.sites[0]))


def swapped_public_shares(forger: Forger) -> None:
    swap(forger, *(ceremony_key(forger.study, 1, site, "public-share.bin") for site in forger.sites[:2]))


def reordered_study_log(forger: Forger) -> None:
    name, lines = lines_of(forger, forger.plan.coordinator.name)
    forger.write(name, b"".join(reversed(lines)))


def other_logs_checkpoint(forger: Forger) -> None:
    foreign = forger.read(ledger_key(forger.study, forger.sites[0], False, "checkpoint.json"))
    forger.write(ledger_key(forger.study, forger.plan.coordinator.name, True, "checkpoint.json"), foreign)


def reordered_ledger(forger: Forger) -> None:
    name, lines = lines_of(forger, forger.sites[0])
    lines[0], lines[1] = lines[1], lines[0]
    forger.write(name, b"".join(lines))


def entry_taken_out(forger: Forger) -> None:
    name, lines = lines_of(forger, forger.sites[0])
    forger.write(name, b"".join(lines[:-2] + lines[-1:]))


def truncated_ledger(forger: Forger) -> None:
    name, _ = lines_of(forger, forger.sites[1])
    forger.remove(name)
    forger.remove(ledger_key(forger.study, forger.sites[1], False, "checkpoint.json"))


def shorter_closing(forger: Forger) -> None:
    closing: Closing = forger.honest.closing.predicate
    name = ledger_key(forger.study, forger.plan.coordinator.name, True, "closing.json")
    forger.sign(name, Closing(checkpoints=closing.checkpoints[:-1]))


def rewritten_ledger(forger: Forger) -> None:
    def claim_later(_: str, entry: LedgerEntry) -> LedgerEntry:
        return entry.model_copy(update={"time": "2031-01-01T00:00:00Z"})

    forger.rewrite_log(forger.sites[0], claim_later)


def deleted_record(forger: Forger) -> None:
    forger.remove(round_key(forger.study, 1, None, "record.json"))


def other_model_asked(forger: Forger) -> None:
    instruction = forger.honest.instruction(2, 1).predicate
    name = attempt_key(forger.study, 2, 1, None, "instruction.json")
    forger.sign(name, instruction.model_copy(update={"model": "ab" * 32}))


def other_step_asked(forger: Forger) -> None:
    instruction = forger.honest.instruction(2, 1).predicate
    name = attempt_key(forger.study, 2, 1, None, "instruction.json")
    forger.sign(name, instruction.model_copy(update={"previous_opening": "ab" * 32}))


def replayed_contribution(forger: Forger) -> None:
    site = forger.sites[0]
    old = forger.read(attempt_key(forger.study, 1, 1, site, "contribution.json"))
    forger.write(attempt_key(forger.study, 2, 1, site, "contribution.json"), old)


def contribution_by_another(forger: Forger) -> None:
    site = forger.sites[0]
    given = forger.honest.contribution(1, 1, site).predicate
    forger.sign(attempt_key(forger.study, 1, 1, site, "contribution.json"), given)


def site_left_out_in_silence(forger: Forger) -> None:
    record = forger.honest.record(1).predicate
    changed = record.model_copy(update={"contributions": record.contributions[:-1]})
    forger.sign(round_key(forger.study, 1, None, "record.json"), changed)


def too_few_in_a_sum(forger: Forger) -> None:
    record = forger.honest.record(1).predicate
    dropped = tuple((site, "silent") for site, _ in record.contributions[2:])
    changed = record.model_copy(update={"contributions": record.contributions[:2], "dropped": dropped})
    forger.sign(round_key(forger.study, 1, None, "record.json"), changed)


def certificate_below_quorum(forger: Forger) -> None:
    request = forger.honest.request(1, 1).predicate
    changed = request.model_copy(update={"certificate": request.certificate[:3]})
    forger.sign(round_key(forger.study, 1, None, "request-1.json"), changed)


def share_moved_to_another_round(forger: Forger) -> None:
    name = next(name for name in forger.names("round-0001/share-1.json"))
    forger.write(name.replace("round-0001", "round-0002"), forger.read(name))


def other_sum_of_ciphertexts(forger: Forger) -> None:
    swap(forger, *(round_key(forger.study, round_, None, "bulk-sum.bin") for round_ in (1, 2)))


def shifted_sum(forger: Forger) -> None:
    name = round_key(forger.study, 1, None, "result.bin")
    digest = forger.write(name, (7).to_bytes(8, "little") + forger.read(name)[8:])
    opening = forger.honest.opening(1).predicate
    forger.sign(round_key(forger.study, 1, None, "opening.json"), opening.model_copy(update={"result": digest}))


def other_model_released(forger: Forger) -> None:
    change_release(forger, model="ab" * 32)


def swapped_weights(forger: Forger) -> None:
    name = release_key(forger.study, "weights.safetensors")
    change_release(forger, weights=forger.write(name, forger.read(name)[:-1] + b"\x01"))


def edited_auc(forger: Forger) -> None:
    metrics = forger.honest.release.predicate.metrics
    change_release(forger, metrics=tuple((key, "0.999000" if key == "auc" else value) for key, value in metrics))


def charged_under_another_mechanism(forger: Forger) -> None:
    def widen(_: str, entry: LedgerEntry) -> LedgerEntry:
        if not isinstance(entry.body, PrivacyReserved):
            return entry
        event = entry.body.event.model_copy(update={"contribution_bound": "anything"})
        return entry.model_copy(update={"body": entry.body.model_copy(update={"event": event})})

    forger.rewrite_log(forger.sites[0], widen)


def budget_smaller_than_its_charges(forger: Forger) -> None:
    def lower(_: str, entry: LedgerEntry) -> LedgerEntry:
        if not isinstance(entry.body, CohortRegistered):
            return entry
        return entry.model_copy(update={"body": entry.body.model_copy(update={"epsilon": "0.5"})})

    forger.rewrite_log(forger.sites[0], lower)


def edited_epsilon(forger: Forger) -> None:
    stated = forger.honest.release.predicate.epsilon
    change_release(forger, epsilon=tuple(report.model_copy(update={"collusion": "0.1"}) for report in stated))


def more_rounds_claimed(forger: Forger) -> None:
    change_release(forger, rounds=1)


def forged_proof(forger: Forger) -> None:
    name = proofs_name(forger.plan.coordinator.name)
    proofs = parse_canonical(ConsistencyProofs, forger.read(name), "the proofs")
    longest = max(proofs.proofs, key=len)
    forged = tuple(("cd" * 32, *proof[1:]) if proof == longest else proof for proof in proofs.proofs)
    forger.write(name, canonical_bytes(proofs.model_copy(update={"proofs": forged})))


def edited_crate(forger: Forger) -> None:
    def lower(crate: dict[str, Any]) -> None:
        next(entity for entity in crate["@graph"] if entity["@id"] == "#epsilon-training")["value"] = "0.5"

    forger.edit_json(CRATE, lower)


LIST: dict[str, Tampering] = {
    "another key in the key file": Tampering("C01", other_key_in_the_key_file, "has another key in the key file"),
    "invented site in the plan": Tampering("C01", invented_site_in_the_plan, "in the plan but not in the key file"),
    "byte changed on the way": Tampering("C02", byte_changed_on_the_way, "does not have the digest", sealed=False),
    "site removed on the way": Tampering("C02", site_removed, "is in the manifest but missing", sealed=False),
    "site removed after the fact": Tampering("C07", site_removed, "is missing"),
    "file that nobody wrote": Tampering("C03", file_of_nobody, "is not a name that the protocol uses"),
    "file of another study": Tampering("C03", file_of_another_study, "exactly one study"),
    "message in another encoding": Tampering("C04", other_encoding, "not in canonical form"),
    "exchanged ciphertexts": Tampering("C05", ciphertexts_exchanged, "is not what the signed message names"),
    "deleted sealed share": Tampering("C05", deleted_sealed_share, "named by a signed message and is missing"),
    "changed plan": Tampering("C06", changed_plan, "its digest is not the study id that everybody approved"),
    "forged approval": Tampering("C07", forged_approval, "not signed by the pinned"),
    "deleted approval": Tampering("C07", deleted_approval, "is missing"),
    "swapped shares of the key": Tampering("C08", swapped_public_shares, "is not the one that its message names"),
    "re-ordered study log": Tampering("C09", reordered_study_log, "it says that it is entry"),
    "checkpoint of another log": Tampering("C09", other_logs_checkpoint, "not signed by the pinned"),
    "re-ordered ledger": Tampering("C10", reordered_ledger, "it says that it is entry"),
    "entry taken out of a ledger": Tampering("C10", entry_taken_out, "it says that it is entry"),
    "truncated ledger": Tampering("C11", truncated_ledger, "is not closed by the checkpoint"),
    "closing without a site": Tampering("C11", shorter_closing, "witnessed other checkpoints"),
    "ledger rewritten by its owner": Tampering("C12", rewritten_ledger, "are not those of the signed position"),
    "deleted record": Tampering("C13", deleted_record, "no message matches this entry"),
    "another step asked for": Tampering("C14", other_step_asked, "does not follow from the last opening"),
    "another model asked for": Tampering("C21", other_model_asked, ""),
    "replayed contribution": Tampering("C15", replayed_contribution, "answers another instruction"),
    "contribution signed by the coordinator": Tampering("C15", contribution_by_another, "not signed by the pinned key"),
    "site left out in silence": Tampering("C15", site_left_out_in_silence, "neither in the sum nor named"),
    "too few sites in a sum": Tampering("C16", too_few_in_a_sum, "sums fewer than k_min"),
    "certificate below the quorum": Tampering("C17", certificate_below_quorum, "has fewer than Q = 4 signatures"),
    "share of another round": Tampering("C18", share_moved_to_another_round, "answers another request"),
    "another sum of ciphertexts": Tampering("C19", other_sum_of_ciphertexts, "is not the sum of the recorded"),
    "shifted result": Tampering("C20", shifted_sum, "is not what the shares open"),
    "another model released": Tampering("C21", other_model_released, "releases another model"),
    "swapped weights": Tampering("C22", swapped_weights, "is not the recomputed model"),
    "edited AUC": Tampering("C23", edited_auc, "states other metrics"),
    "charge of another mechanism": Tampering("C24", charged_under_another_mechanism, "is not the plan's mechanism"),
    "budget below its charges": Tampering("C25", budget_smaller_than_its_charges, "limit of the registered budget"),
    "edited epsilon": Tampering("C26", edited_epsilon, "states another training cost"),
    "another number of rounds": Tampering("C29", more_rounds_claimed, "states another number of rounds"),
    "forged consistency proof": Tampering("C30", forged_proof, "does not lead from size"),
    "edited crate": Tampering("C31", edited_crate, "says something else than the evidence gives"),
}
# Done below or elsewhere: what needs reviewers, MLflow or a question; and the independent accountants.
ELSEWHERE = {"C27", "C28", "C32", "C33", "C34"}


@pytest.fixture(scope="module")
def honest(finished_study: FinishedStudy) -> AuditContext:
    keys = read_public_keys(finished_study.keys)
    return AuditContext(EvidenceFolder(finished_study.evidence), keys)


@pytest.mark.parametrize("name", LIST)
def test_a_named_manipulation_fails_the_check_that_should_find_it(
    name: str, honest: AuditContext, finished_study: FinishedStudy, tmp_path: Path
) -> None:
    forger, tampering = Forger(honest, finished_study.prepared, tmp_path / "evidence"), LIST[name]
    tampering.act(forger)
    if tampering.sealed:
        forger.seal()
    results = forger.results("C02", tampering.check)
    result = results[tampering.check]
    assert result.status == "failed"
    assert any(tampering.says in finding.reason for finding in result.findings), result.findings
    # Without its one plan nothing says whose manifest it is; everything else is found though the manifest is in order.
    if tampering.sealed and name not in ("changed plan", "file of another study"):
        assert results["C02"].status == "checked"


def test_every_claim_has_a_manipulation() -> None:
    assert {tampering.check for tampering in LIST.values()} | ELSEWHERE == {check.number for check in CHECKS}


# --- on a study with a refusal


def failed(forger: Forger, check: str) -> str:
    result = forger.results(check)[check]
    assert result.status == "failed"
    return "; ".join(f"{finding.place}: {finding.reason}" for finding in result.findings)


@pytest.fixture
def refused(eventful: Eventful, tmp_path: Path) -> Forger:
    keys = read_public_keys(eventful.prepared.keys)
    return Forger(AuditContext(EvidenceFolder(eventful.evidence), keys), eventful.prepared, tmp_path / "evidence")


def test_a_deleted_refusal_is_missed(refused: Forger, eventful: Eventful) -> None:
    refused.remove(attempt_key(refused.study, 1, 1, eventful.refusing, "refusal.json"))
    refused.seal()
    assert "there is no signed refusal" in failed(refused, "C15")


def test_a_refusal_that_is_turned_into_silence_was_never_certified(refused: Forger, eventful: Eventful) -> None:
    refused.remove(attempt_key(refused.study, 1, 1, eventful.refusing, "refusal.json"))
    record = refused.honest.record(1).predicate
    silent = tuple((site, "silent") for site, _ in record.dropped)
    refused.sign(round_key(refused.study, 1, None, "record.json"), record.model_copy(update={"dropped": silent}))
    refused.seal()
    assert failed(refused, "C17")


# --- after reviewers decided


@pytest.fixture
def candidate(tmp_path: Path) -> ReleasedStudy:
    return make_released_study(tmp_path / "study")


def findings_of(number: str, context: AuditContext) -> str:
    result = next(run_check(check, context) for check in CHECKS if check.number == number)
    assert result.status == "failed"
    return "; ".join(finding.reason for finding in result.findings)


def test_a_forged_review_decision_is_found(candidate: ReleasedStudy) -> None:
    candidate.enter(candidate.sign("ada", "approved"), "ada", "approved")
    candidate.enter(candidate.sign("ben", "approved", by="registry"), "ben", "approved")
    candidate.conclude()
    context = open_evidence(candidate.export(), candidate.keys)
    assert "not signed with the key of a reviewer" in findings_of("C32", context)


def test_a_review_decision_moved_from_another_reviewer_is_found(candidate: ReleasedStudy) -> None:
    candidate.enter(candidate.sign("ada", "approved"), "ada", "approved")
    candidate.enter(candidate.sign("ada", "approved", number=1), "ben", "approved")
    candidate.conclude()
    assert findings_of("C32", open_evidence(candidate.export(), candidate.keys))


def test_a_deleted_review_decision_is_missed(candidate: ReleasedStudy) -> None:
    for reviewer in ("ada", "ben"):
        candidate.enter(candidate.sign(reviewer, "approved"), reviewer, "approved")
    candidate.conclude()
    evidence = candidate.export()
    (evidence / review_key(candidate.plan.study, "ben", 1)).unlink()
    candidate.seal(evidence)
    assert "no message matches this entry" in findings_of("C13", open_evidence(evidence, candidate.keys))


def shown(candidate: ReleasedStudy, aliases: dict[str, list[str]], tags: dict[str, str]) -> AuditContext:
    page = json.dumps(view_of(candidate, aliases, tags)).encode()
    return open_evidence(candidate.evidence, candidate.keys, parse_snapshot(page, "MLflow"))


def test_a_moved_alias_is_noticed(candidate: ReleasedStudy) -> None:
    context = shown(candidate, {"2": ["released"], "3": ["candidate"]}, {})
    assert "no signed decision put it there" in findings_of("C33", context)


def test_an_edited_tag_is_noticed(candidate: ReleasedStudy) -> None:
    context = shown(candidate, {"3": ["candidate"]}, {"consilium.rounds": "99"})
    assert "consilium.rounds" in findings_of("C33", context)


# --- an accountant that is wrong


def test_an_accountant_that_states_half_the_cost_is_contradicted(
    honest: AuditContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.privacy import recompute

    ours = recompute.epsilon_of_events
    monkeypatch.setattr(recompute, "epsilon_of_events", lambda events, delta: float(ours(events, delta)) / 2)
    assert "pld-agrees" in findings_of("C27", honest)
