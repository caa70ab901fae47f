"""Key holders that lose their share of the key in the middle of a round: the round is dead, and the study goes on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from flows.behind import Behind
from flows.opening_steps import OpeningSteps
from flows.round import replay_round, verify_can_go_on
from flows.round_steps import Answers, EpochLost, RoundSteps
from flows.study import StudyState, public_of_opened
from infra.embedded import EmbeddedConsortium, contribute
from schemas.errors import OperationError
from schemas.ledger import NO_STUDY, Refused
from site_agents.certifying import Certifying
from site_agents.contributing import Contributing
from site_agents.round import SiteRound
from tasks.audit.keys import read_public_keys
from tasks.audit.verify import verify_evidence
from tasks.server_step import state_digest
from tests.simulator import Prepared, copy_study, open_consortium

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
    assert (found.epoch, state.public.epoch) == (1, 2)
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
    verify_can_go_on(steps, STAGES[stage])
    tell(consortium, last)
    with pytest.raises(EpochLost, match=f"key shares are lost at {', '.join(sorted((*lost, last)))}"):
        verify_can_go_on(steps, STAGES[stage])
    said = [entry.body for entry in consortium.sites[last].ledger.entries_for(NO_STUDY)]
    assert said.count(Refused(instruction=public.sid_star, code="epoch-lost")) == 1

    renewed = consortium.run_ceremony(2)
    verify_can_go_on(RoundSteps(consortium.coordinator, renewed, after_first, 3, "train"), STAGES[stage])
    assert prepared.plan.mechanism.rounds == 2
    evidence = consortium.release(1, consortium.run_round(renewed, 3, "evaluate"), "the last round was lost")
    report = verify_evidence(evidence, read_public_keys(prepared.keys))
    assert [result for result in report.results if result.status == "failed"] == []
