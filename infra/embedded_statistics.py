"""A question in one process: the same steps, messages, keys and folders as with agents, without Prefect in between."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from flows.ceremony_steps import enter_ceremony, sign_ceremony_instruction
from flows.context import CoordinatorContext, open_question
from flows.opening_steps import OpeningSteps
from flows.question_steps import QuestionSteps, enter_answer, read_answer
from flows.release_steps import publish_closing, publish_log
from flows.round_steps import Answers
from infra.embedded import Faults, StreamFor, open_by_active_sets
from schemas.errors import ConsiliumError
from schemas.messages import StatisticsRelease
from schemas.statistics import QUESTION_ROUND, StatisticsPlan
from site_agents.ceremony import STEPS, SiteCeremony
from site_agents.certifying import Certifying
from site_agents.compute import in_process
from site_agents.context import SiteContext, open_agreement
from site_agents.home import open_home
from site_agents.questioning import Questioning
from site_agents.release import SiteAnswer
from site_agents.round import SiteRound
from tasks.audit.export import export_evidence
from tasks.ceremonies import is_complete
from tasks.privacy.noise import os_noise_stream
from tasks.secure_sum.epoch import EpochPublic
from tasks.storage.mailbox import Signed


@dataclass
class EmbeddedQuestion:
    """All parties of one approved question in this process.

    Args:
        coordinator_home: The coordinator's home with config.json.
        site_homes: Site name -> home with config.json, which lists the question among its studies.
        question: Plan digest.
        stream_for: Noise per (site, instruction); the operating system's unless a test records it.
    """

    coordinator_home: Path
    site_homes: dict[str, Path]
    question: str
    stream_for: StreamFor = field(default=lambda _site, _instruction: os_noise_stream())

    def __post_init__(self) -> None:
        self.coordinator: CoordinatorContext[StatisticsPlan] = open_question(self.coordinator_home, self.question)
        self.plan = self.coordinator.plan
        self.sites: dict[str, SiteContext[StatisticsPlan]] = {name: self.open_site(name) for name in self.site_homes}

    def open_site(self, name: str) -> SiteContext[StatisticsPlan]:
        """Opens a site's home as an agent does at the start of a flow run."""
        compute = in_process(lambda instruction: self.stream_for(name, instruction))
        return open_agreement(open_home(self.site_homes[name]), self.question, StatisticsPlan, compute)

    def run_ceremony(self) -> EpochPublic:
        """Holds the question's key ceremony, or finds that it was held."""
        if not is_complete(self.coordinator.store, self.plan, 1):
            sign_ceremony_instruction(self.coordinator, 1)
            parties = [SiteCeremony(self.sites[site.name], 1) for site in self.plan.key_holders]
            for party in parties:
                party.verify()
            for _, _, step in STEPS:
                for party in parties:
                    step(party)
            for party in parties:
                party.confirm()
        return enter_ceremony(self.coordinator, 1)

    def run(self, faults: Faults | None = None) -> Signed[StatisticsRelease]:
        """Runs ceremony, sum and answer; a question that was answered is not asked again.

        Raises:
            ConsiliumError: the coordinator cannot go on; what the sites decided stays decided.
        """
        known = read_answer(self.coordinator)
        if known is not None:
            return known
        faults = faults or Faults()
        public = self.run_ceremony()
        steps = QuestionSteps(self.coordinator, public)
        instruction, opening = steps.issue(), OpeningSteps(steps)
        present = [name for name in self.sites if name not in faults.silent]
        works = {name: SiteRound(self.sites[name], QUESTION_ROUND, steps.attempt) for name in present}
        for work in works.values():
            answer_question(work)
        holders = {name: Certifying(work) for name, work in works.items() if name not in faults.mute}
        answers = Answers()
        steps.collect(instruction, answers)
        collected = steps.close(instruction, answers)
        for holder in holders.values():
            holder.check_shares()
        record = opening.propose(instruction, answers, collected, steps.read_checks(collected))
        for holder in holders.values():
            holder.certify()
        open_by_active_sets(opening, holders, instruction, record, set(faults.unwilling))
        opening.log_opening()
        return enter_answer(self.coordinator, public)

    def close(self) -> Path:
        """Closes the logs as the sites' release flow does; returns the evidence folder."""
        publish_log(self.coordinator)
        closings = [SiteAnswer(context) for context in self.sites.values()]
        for closing in closings:
            closing.verify()
            closing.publish_checkpoint()
        publish_closing(self.coordinator)
        for closing in closings:
            closing.witness()
        folder = self.coordinator.home / "evidence"
        return export_evidence(self.coordinator.store, self.plan, folder, self.coordinator.identity.signing)


def answer_question(work: SiteRound[StatisticsPlan]) -> ConsiliumError | None:
    """Takes a site through its part up to the upload; returns the refusal, if it declined."""
    questioning = Questioning(work)
    if questioning.decided:
        work.read()
        questioning.resend()
        return None
    verdict = None
    try:
        work.read()
        questioning.verify()
        verdict = questioning.validate()
        questioning.reserve()
        questioning.encrypt(questioning.count(), verdict)
    except ConsiliumError as error:
        questioning.refuse(error, verdict)
        return error
    questioning.upload()
    return None
