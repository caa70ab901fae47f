"""Sites that pause, come back, or leave for good: nobody is charged twice, and the study goes on or ends in order."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from flows.attempts import choose_attempt
from flows.ceremony import find_ceremony
from flows.ceremony_steps import sign_ceremony_instruction
from flows.departures import TooFewRemain, verify_ceremonies_complete, verify_enough_remain, verify_holders_remain
from flows.opening_steps import OpeningSteps
from flows.round_steps import Answers, EpochLost, RoundSteps
from infra.approving import leave, set_paused
from infra.embedded import EmbeddedConsortium, Faults, contribute
from schemas.errors import OperationError, PeerError, SiteDataError
from schemas.layout import attempt_key, ceremony_key
from site_agents.ceremony import STEPS, SiteCeremony
from site_agents.certifying import Certifying
from site_agents.round import SiteRound
from tasks.audit.keys import read_public_keys
from tasks.audit.verify import verify_evidence
from tests.simulator import Prepared, change_settings, copy_study, open_consortium


@pytest.fixture
def prepared(study_after_ceremony: Prepared, tmp_path: Path) -> Prepared:
    return copy_study(study_after_ceremony, tmp_path / "study")


def names(prepared: Prepared) -> list[str]:
    return [site.name for site in prepared.plan.sites]


def pause(prepared: Prepared, sites: list[str], paused: bool) -> EmbeddedConsortium:
    for site in sites:
        assert set_paused(prepared.workdir.site(site), paused)
    return open_consortium(prepared)


def charges(consortium: EmbeddedConsortium, site: str) -> list[int]:
    found = consortium.sites[site].ledger.find(consortium.plan.study, "privacy-reserved")
    return [entry.body.round for entry in found]  # type: ignore[union-attr]


def test_a_round_that_too_many_declined_is_asked_again_and_charges_nobody_twice(prepared: Prepared) -> None:
    change_settings(prepared.workdir.coordinator, options={"attempt_pause_seconds": 0.001})
    away = names(prepared)[: len(names(prepared)) - prepared.plan.threshold.k_min + 1]
    consortium = pause(prepared, away, True)
    public = consortium.finished_ceremony()
    with pytest.raises(OperationError, match=rf"{away[0]} \(refused: site-paused\)") as caught:
        consortium.run_round(public, 1)
    assert caught.value.code == "too-few-contributions"
    consortium = pause(prepared, away, False)
    outcome = consortium.run_round(public, 1)
    assert outcome.instruction.predicate.attempt == 2
    assert outcome.record.predicate.dropped == ()
    first = outcome.instruction.predicate.model_copy(update={"attempt": 1})
    assert first.log == outcome.instruction.predicate.log
    assert {tuple(charges(consortium, site)) for site in names(prepared)} == {(1,)}
    evidence = consortium.release(1, None, "the test ends here")
    report = verify_evidence(evidence, read_public_keys(prepared.keys))
    assert [result for result in report.results if result.status == "failed"] == []
    assert report.passed


def test_a_schedule_does_not_use_up_the_attempts_while_sites_are_away(prepared: Prepared) -> None:
    consortium = pause(prepared, names(prepared), True)
    public = consortium.finished_ceremony()
    for _ in range(3):
        with pytest.raises(OperationError, match="expected at least k_min"):
            consortium.run_round(public, 1)
    assert choose_attempt(consortium.coordinator, 1) == 1
    change_settings(prepared.workdir.coordinator, options={"attempt_pause_seconds": 0.001})
    for attempt in (2, 3):
        with pytest.raises(OperationError, match="expected at least k_min"):
            open_consortium(prepared).run_round(public, 1)
        key = attempt_key(prepared.plan.study, 1, attempt, None, "instruction.json")
        assert consortium.coordinator.store.exists(key)
    assert {tuple(charges(consortium, site)) for site in names(prepared)} == {()}


def test_silence_alone_never_opens_another_attempt(prepared: Prepared) -> None:
    change_settings(prepared.workdir.coordinator, options={"attempt_pause_seconds": 0.001})
    consortium = open_consortium(prepared)
    public = consortium.finished_ceremony()
    RoundSteps(consortium.coordinator, public, consortium.lineage, 1, "train").issue()
    assert choose_attempt(consortium.coordinator, 1) == 1


def test_a_holder_that_leaves_in_an_open_round_signs_and_shares_nothing_more(prepared: Prepared) -> None:
    consortium = open_consortium(prepared)
    public = consortium.finished_ceremony()
    gone = names(prepared)[0]
    steps = RoundSteps(consortium.coordinator, public, consortium.lineage, 1, "train")
    instruction, answers, opening = steps.issue(), Answers(), OpeningSteps(steps)
    works = {name: SiteRound(consortium.sites[name], 1, 1) for name in names(prepared)}
    for work in works.values():
        assert contribute(work) is None
    steps.collect(instruction, answers)
    collected = steps.close(instruction, answers)
    holders = {name: Certifying(work) for name, work in works.items()}
    for holder in holders.values():
        holder.check_shares()
    record = opening.propose(instruction, answers, collected, steps.read_checks(collected))
    assert works[gone].epoch.secrets is not None  # this flow run read them before they were erased
    leave(prepared.workdir.site(gone), prepared.plan.study)
    with pytest.raises(SiteDataError, match="has left the study") as caught:
        holders[gone].certify()
    assert caught.value.code == "site-left"
    for name in names(prepared)[1:]:
        holders[name].certify()
    signatures = opening.read_signatures(record)
    assert gone not in signatures
    request = opening.request(record, 1, signatures, set())
    with pytest.raises(SiteDataError, match="has left the study"):
        holders[gone].check_shares()
    for name in names(prepared)[1:]:
        holders[name].share()
    opening.open(instruction, record, request, opening.read_shares(instruction, record, request))
    assert gone in dict(record.predicate.contributions), "what it sent before it left is in the sum, as charged"


def test_a_left_site_refuses_by_name_and_is_not_charged(prepared: Prepared) -> None:
    gone = names(prepared)[0]
    leave(prepared.workdir.site(gone), prepared.plan.study)
    consortium = open_consortium(prepared)
    outcome = consortium.run_round(consortium.finished_ceremony(), 1, faults=Faults(mute=(gone,)))
    assert (gone, "refused") in outcome.record.predicate.dropped
    found = consortium.sites[gone].ledger.find(prepared.plan.study, "refused")
    assert [entry.body.code for entry in found] == ["site-left"]  # type: ignore[union-attr]
    assert charges(consortium, gone) == []


def test_a_study_whose_quorum_left_is_over_and_says_who(prepared: Prepared) -> None:
    consortium = open_consortium(prepared)
    consortium.run_round(consortium.finished_ceremony(), 1)
    verify_holders_remain(consortium.coordinator)
    numbers, holders = prepared.plan.threshold, names(prepared)
    for gone in holders[: len(holders) - numbers.certificate_quorum]:
        leave(prepared.workdir.site(gone), prepared.plan.study)
    if len(holders) - (len(holders) - numbers.certificate_quorum) >= numbers.k_min:
        verify_enough_remain(consortium.coordinator)
    with pytest.raises(TooFewRemain, match=f"No key ceremony can complete: {holders[0]}") as caught:
        verify_holders_remain(consortium.coordinator)
    assert caught.value.code == "holder-left"
    leave(prepared.workdir.site(holders[-1]), prepared.plan.study)
    with pytest.raises(TooFewRemain, match=f"Too few hospitals remain: .*{holders[-1]} left the study"):
        verify_enough_remain(consortium.coordinator)


def test_a_study_that_ends_in_a_ceremony_that_broke_off_leaves_evidence_that_verifies(prepared: Prepared) -> None:
    consortium = open_consortium(prepared)
    consortium.run_round(consortium.finished_ceremony(), 1)
    sign_ceremony_instruction(consortium.coordinator, 2)
    for site in names(prepared)[1:]:
        party = SiteCeremony(consortium.sites[site], 2)
        party.verify()
        STEPS[0][2](party)
    leave(prepared.workdir.site(names(prepared)[0]), prepared.plan.study)
    evidence = consortium.release(1, None, "a holder left in the second ceremony")
    report = verify_evidence(evidence, read_public_keys(prepared.keys))
    assert [result for result in report.results if result.status == "failed"] == []
    assert report.passed


def test_a_ceremony_that_does_not_verify_counts_as_broken_off_and_names_whose_part_it_is(prepared: Prepared) -> None:
    change_settings(prepared.workdir.coordinator, options={"broken_ceremonies_in_a_row": 1})
    consortium = open_consortium(prepared)
    coordinator, study = consortium.coordinator, prepared.plan.study
    consortium.run_round(consortium.finished_ceremony(), 1)
    verify_ceremonies_complete(coordinator, 2)
    forged = names(prepared)[-1]
    consortium.sites[forged].store.put(ceremony_key(study, 2, forged, "transcript.json"), b"{}")
    with pytest.raises(PeerError, match="already holds other bytes"):
        consortium.run_ceremony(2)
    assert find_ceremony(coordinator) is None
    with pytest.raises(TooFewRemain, match=f"in a row: 1; .* for want of {forged}") as caught:
        verify_ceremonies_complete(coordinator, 3)
    assert caught.value.code == "ceremonies-keep-breaking"


def test_a_lost_share_beside_a_departure_ends_the_study_instead_of_asking_for_ever(prepared: Prepared) -> None:
    consortium = open_consortium(prepared)
    public = consortium.finished_ceremony()
    consortium.run_round(public, 1)
    several = len(names(prepared)) - prepared.plan.threshold.k_min
    *gone, lost = names(prepared)[: several + 1]
    for site in gone:
        leave(prepared.workdir.site(site), prepared.plan.study)
    shutil.rmtree(prepared.workdir.root / "memory" / lost)
    after_first = consortium.lineage
    consortium = open_consortium(prepared)
    consortium.lineage = after_first
    with pytest.raises(EpochLost, match=f"key shares are lost at {lost}"):
        consortium.run_round(public, 2, faults=Faults(mute=gone))
    with pytest.raises(TooFewRemain, match=f"No key ceremony can complete: .*{gone[0]}"):
        verify_holders_remain(consortium.coordinator)
