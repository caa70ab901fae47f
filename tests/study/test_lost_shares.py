"""Key holders that lose their share of the key in the middle of a round: the round is dead, and the study goes on."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import cast

import pytest

from flows.behind import Behind
from flows.departures import TooFewRemain, holders_that_lost, verify_rounds_live
from flows.opening_steps import OpeningSteps
from flows.release_steps import read_release
from flows.round import replay_round, verify_can_go_on
from flows.round_steps import Answers, EpochLost, RoundSteps
from flows.study import StudyState, evaluate, public_of_opened, train
from flows.tracking import Tracker
from infra.approving import leave
from infra.embedded import EmbeddedConsortium, contribute, open_by_active_sets
from schemas.errors import OperationError
from schemas.ledger import NO_STUDY, Refused
from site_agents.certifying import Certifying
from site_agents.contributing import Contributing
from site_agents.round import SiteRound
from tasks.audit.keys import read_public_keys
from tasks.audit.verify import verify_evidence
from tasks.server_step import state_digest
from tests.simulator import Prepared, change_settings, copy_study, open_consortium

STAGES = {"contributed": "no-quorum", "proposed": "no-quorum", "certified": "no-active-set"}


@pytest.fixture
def prepared(study_after_ceremony: Prepared, tmp_path: Path) -> Prepared:
    return copy_study(study_after_ceremony, tmp_path / "study")


def bring_to(consortium: EmbeddedConsortium, steps: RoundSteps, stage: str) -> None:
    """Takes round 2 to `stage`, every site with it."""
    instruction, opening = steps.issue(), OpeningSteps(steps)
    works = [SiteRound(site, 2, 1) for site in consortium.sites.values()]
    assert [contribute(work) for work in works] == [None] * len(works)
    if stage == "contributed":
        return
    holders, answers = [Certifying(work) for work in works], Answers()
    steps.collect(instruction, answers)
    collected = steps.close(instruction, answers)
    assert all(holder.check_shares() for holder in holders)
    opening.propose(instruction, answers, collected, steps.read_checks(collected))
    assert stage == "proposed" or all(holder.certify() for holder in holders)


def tell(consortium: EmbeddedConsortium, site: str) -> None:
    """Lets a restarted site answer the same instruction: it has no share left, and says so."""
    work = SiteRound(consortium.sites[site], 2, 1)
    with pytest.raises(OperationError, match="holds no secrets of epoch 1") as caught:
        work.read()
    Contributing(work).refuse(caught.value)
    Contributing(work).refuse(caught.value)


def test_a_study_that_is_resumed_after_a_second_ceremony_reads_its_rounds_under_the_first(prepared: Prepared) -> None:
    consortium = open_consortium(prepared)
    public, before = consortium.finished_ceremony(), consortium.lineage
    outcome = consortium.run_round(public, 1)
    state = StudyState(consortium.run_ceremony(2), before, Behind())
    assert public_of_opened(consortium.coordinator, state, 2) is None
    found = public_of_opened(consortium.coordinator, state, 1)
    assert found is not None
    assert (found.epoch, state.epoch) == (1, 2)
    replayed = replay_round(consortium.coordinator, found, before, 1, "train")
    assert replayed.opening.digest == outcome.opening.digest
    assert state_digest(replayed.lineage.state) == state_digest(outcome.lineage.state)


@pytest.mark.parametrize("stage", STAGES)
def test_shares_lost_in_the_middle_of_a_round_end_it_instead_of_being_waited_for(
    prepared: Prepared, stage: str
) -> None:
    consortium = open_consortium(prepared)
    public = consortium.finished_ceremony()
    consortium.run_round(public, 1)
    after_first = consortium.lineage
    bring_to(consortium, RoundSteps(consortium.coordinator, public, after_first, 2, "train"), stage)

    numbers, names = prepared.plan.threshold, [site.name for site in prepared.plan.key_holders]
    needed = numbers.certificate_quorum if STAGES[stage] == "no-quorum" else numbers.t
    *lost, last = names[: len(names) - needed + 1]
    for site in (*lost, last):
        shutil.rmtree(prepared.workdir.root / "memory" / site)
    consortium = open_consortium(prepared)
    consortium.lineage = after_first
    steps = RoundSteps(consortium.coordinator, public, after_first, 2, "train")
    for site in lost:
        tell(consortium, site)
    verify_can_go_on(steps)
    tell(consortium, last)
    with pytest.raises(EpochLost, match=f"key shares are lost at {', '.join(sorted((*lost, last)))}"):
        verify_can_go_on(steps)
    said = [entry.body for entry in consortium.sites[last].ledger.entries_for(NO_STUDY)]
    assert said.count(Refused(instruction=public.sid_star, code="epoch-lost")) == 1

    renewed = consortium.run_ceremony(2)
    verify_can_go_on(RoundSteps(consortium.coordinator, renewed, after_first, 3, "train"))
    assert prepared.plan.mechanism.rounds == 2
    evidence = consortium.release(1, consortium.run_round(renewed, 3, "evaluate"), "the last round was lost")
    report = verify_evidence(evidence, read_public_keys(prepared.keys))
    assert [result for result in report.results if result.status == "failed"] == []


def test_what_a_holder_signed_before_it_lost_its_share_counts(prepared: Prepared) -> None:
    consortium = open_consortium(prepared)
    public, before = consortium.finished_ceremony(), consortium.lineage
    consortium.run_round(public, 1)
    steps = RoundSteps(consortium.coordinator, public, consortium.lineage, 2, "train")
    after_first = consortium.lineage
    bring_to(consortium, steps, "proposed")
    numbers, names = prepared.plan.threshold, [site.name for site in prepared.plan.key_holders]
    lost = names[: len(names) - numbers.certificate_quorum + 1]
    for site in lost:
        assert Certifying(SiteRound(consortium.sites[site], 2, 1)).certify()
        shutil.rmtree(prepared.workdir.root / "memory" / site)
    consortium = open_consortium(prepared)
    steps = RoundSteps(consortium.coordinator, public, after_first, 2, "train")
    for site in lost:
        tell(consortium, site)
    assert holders_that_lost(consortium.coordinator, public.sid_star) == set(lost)
    verify_can_go_on(steps)

    late = {site: Certifying(SiteRound(consortium.sites[site], 2, 1)) for site in names if site not in lost}
    assert all(holder.certify() for holder in late.values())
    instruction, opening = steps.issue(), OpeningSteps(steps)
    open_by_active_sets(opening, late, instruction, opening.complete_record(instruction), ())
    assert before.opening is None
    assert steps.recompute()[1].opening is not None


@pytest.mark.parametrize("stage", ["proposed", "certified", "shared"])
def test_what_a_holder_signed_or_shared_before_it_left_counts(prepared: Prepared, stage: str) -> None:
    consortium = open_consortium(prepared)
    public = consortium.finished_ceremony()
    consortium.run_round(public, 1)
    after_first = consortium.lineage
    steps = RoundSteps(consortium.coordinator, public, after_first, 2, "train")
    bring_to(consortium, steps, "proposed" if stage == "proposed" else "certified")
    numbers, names = prepared.plan.threshold, [site.name for site in prepared.plan.key_holders]
    gone, opening = names[: len(names) - numbers.certificate_quorum + 1], OpeningSteps(steps)
    if stage == "shared":
        gone, record = names[: numbers.t], opening.complete_record(steps.issue())
        opening.request(record, 1, opening.read_signatures(record), set())
        assert all(Certifying(SiteRound(consortium.sites[site], 2, 1)).share() for site in gone)
    for site in gone:
        leave(prepared.workdir.site(site), prepared.plan.study)
    consortium = open_consortium(prepared)
    steps = RoundSteps(consortium.coordinator, public, after_first, 2, "train")
    over = f"Too few hospitals remain: {', '.join(gone)} left"
    if stage == "proposed":
        with pytest.raises(TooFewRemain, match=over):
            verify_can_go_on(steps)
        return
    verify_can_go_on(steps)
    there = {site: Certifying(SiteRound(consortium.sites[site], 2, 1)) for site in names if site not in gone}
    opening, instruction = OpeningSteps(steps), steps.issue()
    open_by_active_sets(opening, there, instruction, opening.complete_record(instruction), ())
    assert steps.recompute()[1].opening is not None
    with pytest.raises(TooFewRemain, match=over):
        verify_can_go_on(RoundSteps(consortium.coordinator, public, after_first, 3, "evaluate"))


def test_a_share_that_was_said_to_be_lost_is_given_up_though_it_is_found(prepared: Prepared) -> None:
    consortium = open_consortium(prepared)
    public, site = consortium.finished_ceremony(), prepared.plan.key_holders[0].name
    consortium.run_round(public, 1)
    after_first, memory = consortium.lineage, prepared.workdir.root / "memory" / site
    bring_to(consortium, RoundSteps(consortium.coordinator, public, after_first, 2, "train"), "proposed")
    shutil.move(memory, memory.with_name("unmounted"))
    consortium = open_consortium(prepared)
    tell(consortium, site)
    assert holders_that_lost(consortium.coordinator, public.sid_star) == {site}
    shutil.rmtree(memory, ignore_errors=True)
    shutil.move(memory.with_name("unmounted"), memory)
    consortium = open_consortium(prepared)
    with pytest.raises(OperationError, match="has given up its share of epoch 1"):
        Certifying(SiteRound(consortium.sites[site], 2, 1)).certify()
    assert holders_that_lost(consortium.coordinator, public.sid_star) == {site}


def test_nothing_is_asked_any_more_once_the_release_is_signed(prepared: Prepared) -> None:
    consortium = open_consortium(prepared)
    public = consortium.finished_ceremony()
    consortium.run_round(public, 1)
    consortium.release(1, None, "the evaluation was lost with key shares")
    closed = read_release(consortium.coordinator)
    assert closed is not None
    state = StudyState(public, consortium.lineage, Behind(), closed=closed, rounds=1)
    assert asyncio.run(evaluate(consortium.coordinator, state, cast(Tracker, None))) is None
    assert (state.reason, state.evaluation) == ("the evaluation was lost with key shares", None)
    state = StudyState(public, consortium.lineage, Behind(), closed=closed.model_copy(update={"rounds": 0}))
    asyncio.run(train(consortium.coordinator, state, cast(Tracker, None)))
    assert state.rounds == 0


def test_a_dead_evaluation_is_not_asked_again_and_the_release_says_why(prepared: Prepared) -> None:
    consortium = open_consortium(prepared)
    public = consortium.finished_ceremony()
    for round_ in (1, 2):
        consortium.run_round(public, round_)
    RoundSteps(consortium.coordinator, public, consortium.lineage, 3, "evaluate").issue()
    state = StudyState(consortium.run_ceremony(2), consortium.lineage, Behind(), rounds=2)
    assert asyncio.run(evaluate(consortium.coordinator, state, cast(Tracker, None))) is None
    assert state.reason == "the evaluation was lost with key shares"
    report = verify_evidence(consortium.release(2, None, state.reason), read_public_keys(prepared.keys))
    assert [result for result in report.results if result.status == "failed"] == []


def test_rounds_that_keep_dying_stop_the_study_before_another_one_is_charged(prepared: Prepared) -> None:
    change_settings(prepared.workdir.coordinator, options={"dead_rounds_in_a_row": 2})
    consortium = open_consortium(prepared)
    public, before, lost = consortium.finished_ceremony(), consortium.lineage, prepared.plan.key_holders[1].name
    RoundSteps(consortium.coordinator, public, before, 1, "train").issue()
    verify_rounds_live(consortium.coordinator, 2, 2)
    bring_to(consortium, RoundSteps(consortium.coordinator, public, before, 2, "train"), "contributed")
    shutil.rmtree(prepared.workdir.root / "memory" / lost)
    consortium = open_consortium(prepared)
    tell(consortium, lost)
    with pytest.raises(TooFewRemain, match=f"The last 2 rounds died.*lost at {lost}.*dead_rounds_in_a_row") as caught:
        verify_rounds_live(consortium.coordinator, 3, 2)
    assert caught.value.code == "rounds-keep-dying"
    change_settings(prepared.workdir.coordinator, options={"dead_rounds_in_a_row": 3})
    verify_rounds_live(open_consortium(prepared).coordinator, 3, 2)
    change_settings(prepared.workdir.coordinator, options={"dead_rounds_in_a_row": 2})
    verify_rounds_live(open_consortium(prepared).coordinator, 3, 1)  # not dead: the key is still theirs
