"""Attacks by a coordinator who owns the store, run against real parties; what the sites hold is looked at after."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flows.round_steps import RoundSteps
from infra.embedded import EmbeddedConsortium, Faults, contribute
from schemas.envelope import sign_envelope
from schemas.errors import OperationError, PeerError
from schemas.layout import approval_key, attempt_key, ledger_key, round_key
from schemas.ledger import PlanApproved
from schemas.messages import EvidenceManifest, Instruction, LogPosition
from site_agents.certifying import Certifying
from site_agents.context import open_context
from site_agents.contributing import Contributing
from site_agents.home import open_home
from site_agents.release import SiteRelease
from site_agents.round import SiteRound
from tasks.audit.evidence import EvidenceFolder
from tasks.audit.keys import read_public_keys
from tasks.audit.verify import verify_evidence
from tasks.server_step import state_digest
from tests.simulator import Prepared, copy_study, open_consortium


@pytest.fixture
def prepared(study_after_ceremony: Prepared, tmp_path: Path) -> Prepared:
    return copy_study(study_after_ceremony, tmp_path / "study")


@pytest.fixture
def consortium(prepared: Prepared) -> EmbeddedConsortium:
    return open_consortium(prepared)


def store_path(consortium: EmbeddedConsortium, key: str) -> Path:
    path = Path(consortium.coordinator.settings.store) / key
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def publish(consortium: EmbeddedConsortium, instruction: Instruction) -> None:
    """Signs an instruction and puts it over whatever lies under its name, as a store's owner can."""
    key = attempt_key(consortium.plan.study, instruction.round, instruction.attempt, None, "instruction.json")
    signed = sign_envelope(instruction, consortium.plan.study, consortium.coordinator.identity.signing)
    path = store_path(consortium, key)
    path.unlink(missing_ok=True)
    path.write_bytes(signed)


def instruction(consortium: EmbeddedConsortium, public: Any, **changes: Any) -> Instruction:
    steps = RoundSteps(consortium.coordinator, public, consortium.lineage, 1, "train")
    basis = Instruction(
        kind="train",
        sid_star=public.sid_star,
        epoch=public.epoch,
        round=1,
        attempt=1,
        participants=tuple(site.name for site in consortium.plan.contributors),
        model=state_digest(steps.lineage.state),
        previous_opening=steps.lineage.opening,
        length=31,
        log=consortium.coordinator.log.position(),
    )
    return basis.model_copy(update=changes)


def charges(consortium: EmbeddedConsortium, site: str, data: str) -> int:
    entries = consortium.sites[site].ledger.find(consortium.plan.study, "privacy-reserved")
    return sum(entry.body.event.data == data for entry in entries)


def test_one_sum_cannot_mix_two_models_by_replacing_the_first_attempt(consortium: EmbeddedConsortium) -> None:
    public = consortium.finished_ceremony()
    victim = consortium.plan.sites[0].name
    publish(consortium, instruction(consortium, public, round=2))
    assert contribute(SiteRound(consortium.sites[victim], 2, 1)) is None
    store_path(consortium, attempt_key(consortium.plan.study, 2, 1, None, "instruction.json")).unlink()
    consortium.run_round(public, 1)
    after = instruction(consortium, public, round=2)
    assert after.model != instruction(consortium, public, round=1).model or after.previous_opening is not None
    publish(consortium, after)
    publish(consortium, after.model_copy(update={"attempt": 2}))

    for site in consortium.plan.sites:
        error = contribute(SiteRound(consortium.sites[site.name], 2, 2))
        if site.name == victim:
            assert isinstance(error, PeerError)
            assert error.code == "instruction-changed"
        else:
            assert error is None
    assert charges(consortium, victim, "training") == 2


def test_a_round_charged_as_training_never_answers_an_evaluation(consortium: EmbeddedConsortium) -> None:
    public = consortium.finished_ceremony()
    site = consortium.plan.sites[0].name
    asked = instruction(consortium, public)
    publish(consortium, asked)
    stopped = Contributing(SiteRound(consortium.sites[site], 1, 1))
    stopped.verify()
    stopped.validate()
    stopped.reserve()
    length = 2 * consortium.plan.evaluation.bins
    publish(consortium, asked.model_copy(update={"kind": "evaluate", "length": length}))

    error = contribute(SiteRound(consortium.sites[site], 1, 1))

    assert isinstance(error, PeerError)
    assert error.code == "wrong-kind"
    assert charges(consortium, site, "training") == 1
    assert charges(consortium, site, "held-out") == 0


def test_nothing_is_trained_certified_or_shared_after_the_release(consortium: EmbeddedConsortium) -> None:
    public = consortium.finished_ceremony()
    consortium.run_round(public, 1)
    consortium.release(1, None, "stopped by hand")
    site = consortium.plan.sites[0].name
    before = charges(consortium, site, "training")
    for context in consortium.sites.values():
        assert not list(context.home.memory_folder.rglob("secrets-*")), "a share of the key outlives the study"

    publish(consortium, instruction(consortium, public, round=2))
    error = contribute(SiteRound(consortium.sites[site], 2, 1))

    assert isinstance(error, PeerError)
    assert error.code == "study-released"
    assert charges(consortium, site, "training") == before


def test_garbage_over_an_answered_instruction_gets_no_refusal_and_no_entry(consortium: EmbeddedConsortium) -> None:
    public = consortium.finished_ceremony()
    consortium.run_round(public, 1)
    site = consortium.plan.sites[0].name
    context = consortium.sites[site]
    size = context.ledger.position().size
    for garbage in (b"{}", b"\xff", b"[1]"):
        store_path(consortium, attempt_key(consortium.plan.study, 1, 1, None, "instruction.json")).write_bytes(garbage)
        work = SiteRound(context, 1, 1)
        with pytest.raises(PeerError) as caught:
            work.read()
        Contributing(work).refuse(caught.value)
    assert context.ledger.position().size == size
    assert not context.store.exists(attempt_key(consortium.plan.study, 1, 1, site, "refusal.json"))


def test_a_ledger_slice_that_was_decided_and_not_sent_is_sent_later(
    prepared: Prepared, consortium: EmbeddedConsortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    public = consortium.finished_ceremony()
    site = consortium.plan.sites[0].name
    publish(consortium, instruction(consortium, public))
    context = consortium.sites[site]
    with monkeypatch.context() as patch:
        patch.setattr(type(context.outbox), "send", _unreachable)
        with pytest.raises(OperationError, match="cannot be written"):
            contribute(SiteRound(context, 1, 1))
    restarted = open_consortium(prepared)
    restarted.sites[site].publish_ledger()

    prefix = ledger_key(prepared.plan.study, site, False, "entries-")
    folder = Path(restarted.coordinator.settings.store) / prefix.rsplit("/", 1)[0]
    published = b"".join(path.read_bytes() for path in sorted(folder.glob("entries-*")))
    assert published.splitlines() == restarted.sites[site].ledger.entries()


def _unreachable(_outbox: object, _key: str) -> None:
    raise OperationError("store-unwritable", "The store cannot be written.")


def test_an_approval_swapped_after_it_was_verified_does_not_reach_the_ledger(prepared: Prepared) -> None:
    site = prepared.plan.sites[0].name
    home = open_home(prepared.workdir.site(site))
    context = open_context(home, prepared.plan.study)
    approvals = [e.body for e in context.ledger.entries_for(prepared.plan.study) if isinstance(e.body, PlanApproved)]
    stored = (prepared.workdir.store / approval_key(prepared.plan.study, site)).read_bytes()
    import hashlib

    assert [body.approval for body in approvals] == [hashlib.sha256(stored).hexdigest()]


class Finished:
    """A released study whose coordinator tampers and signs a new manifest."""

    def __init__(self, consortium: EmbeddedConsortium, evidence: Path, keys: Path) -> None:
        self.consortium, self.evidence, self.keys = consortium, evidence, keys

    def reseal(self) -> None:
        (self.evidence / "manifest.json").unlink()
        folder = EvidenceFolder(self.evidence)
        files = tuple((path, folder.digest(path)) for path in folder.paths)
        key = self.consortium.coordinator.identity.signing
        signed = sign_envelope(EvidenceManifest(files=files), self.consortium.plan.study, key)
        (self.evidence / "manifest.json").write_bytes(signed)

    def failed(self) -> dict[str, str]:
        report = verify_evidence(self.evidence, read_public_keys(self.keys))
        return {r.check: json.dumps([f.reason for f in r.findings]) for r in report.results if r.status == "failed"}


@pytest.fixture
def with_refusal(prepared: Prepared, consortium: EmbeddedConsortium) -> Finished:
    public = consortium.finished_ceremony()
    site = consortium.plan.sites[0].name
    (prepared.workdir.site(site) / "cohort.parquet").write_bytes(b"no table")
    consortium.run_round(public, 1)
    consortium.run_round(public, 2)
    evaluation = consortium.run_round(public, 3, "evaluate")
    evidence = consortium.release(2, evaluation)
    finished = Finished(consortium, evidence, prepared.keys)
    assert finished.failed() == {}
    return finished


def test_a_refusal_that_the_coordinator_drops_is_found(with_refusal: Finished) -> None:
    site = with_refusal.consortium.plan.sites[0].name
    study = with_refusal.consortium.plan.study
    (with_refusal.evidence / attempt_key(study, 2, 1, site, "refusal.json")).unlink()
    with_refusal.reseal()
    assert "no message matches this entry (refused)" in with_refusal.failed()["C13"]


def test_witnesses_cannot_be_left_out_to_cut_a_ledger(with_refusal: Finished) -> None:
    study = with_refusal.consortium.plan.study
    for site in with_refusal.consortium.plan.sites:
        (with_refusal.evidence / ledger_key(study, site.name, False, "witness.json")).unlink()
    with_refusal.reseal()
    assert "fewer than Q = 4 sites" in with_refusal.failed()["C11"]


def test_a_colluding_site_cannot_close_its_ledger_again_after_it_was_witnessed(with_refusal: Finished) -> None:
    consortium = with_refusal.consortium
    study, site = consortium.plan.study, consortium.plan.sites[1].name
    context = consortium.sites[site]
    folder = with_refusal.evidence / f"sites/{site}/{study}/ledger"
    last = sorted(folder.glob("entries-*"))[-1]
    lines = last.read_bytes().splitlines(keepends=True)
    last.write_bytes(b"".join(lines[:-1]))
    from schemas.messages import Checkpoint
    from tasks.ledger.merkle import merkle_root

    entries = context.ledger.entries()[:-1]
    position = LogPosition(size=len(entries), root=merkle_root(entries))
    signed = sign_envelope(Checkpoint(owner=site, position=position), study, context.home.identity.signing)
    (folder / "checkpoint.json").write_bytes(signed)
    with_refusal.reseal()
    assert "not closed by the checkpoint that the closing lists" in with_refusal.failed()["C11"]


def test_a_site_does_not_witness_a_closing_without_its_own_checkpoint(consortium: EmbeddedConsortium) -> None:
    public = consortium.finished_ceremony()
    consortium.run_round(public, 1)
    from flows.release_steps import enter_signed_release, publish_closing, publish_log

    enter_signed_release(consortium.coordinator, consortium.lineage, 1, None, None, "stopped by hand")
    publish_log(consortium.coordinator)
    first, *others = [SiteRelease(context) for context in consortium.sites.values()]
    for release in others:
        release.verify()
        release.publish_checkpoint()
    publish_closing(consortium.coordinator)
    first.verify()
    first.publish_checkpoint()
    with pytest.raises(PeerError, match="does not list this site's checkpoint"):
        first.witness()
    for release in others:
        release.witness()


def test_a_share_request_of_an_unknown_holder_is_refused_by_name(consortium: EmbeddedConsortium) -> None:
    public = consortium.finished_ceremony()
    outcome = consortium.run_round(public, 1, faults=Faults())
    site = outcome.opening.predicate.shares[0][0]
    from tasks.rounds import read_request

    real = read_request(consortium.coordinator.store, consortium.plan, 1, 1)
    assert real is not None
    forged = real.predicate.model_copy(update={"certificate": (("nobody", "ab" * 32),), "number": 2})
    key = round_key(consortium.plan.study, 1, None, "request-2.json")
    signing = consortium.coordinator.identity.signing
    store_path(consortium, key).write_bytes(sign_envelope(forged, consortium.plan.study, signing))
    with pytest.raises(PeerError, match="named record signature is not in the store"):
        Certifying(SiteRound(consortium.sites[site], 1, 1)).share()
