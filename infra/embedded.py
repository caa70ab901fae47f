"""A consortium in one process: the same steps, messages, keys and folders as with agents, without Prefect in between.

For studies over many seeds or very many sites, and for the tests' simulator. Every participant still has its own home,
identity, ledger, outbox and prefix in the store, and everything it believes it has verified; only the waiting and the
dispatching are replaced by calling the steps in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from flows.attempts import choose_attempt
from flows.ceremony_steps import enter_ceremony, sign_ceremony_instruction
from flows.context import CoordinatorContext, open_coordinator
from flows.figures import epsilon_of_sites
from flows.opening_steps import ActiveSets, OpeningSteps
from flows.release_steps import enter_signed_release, publish_closing, publish_log, released_metrics
from flows.round_steps import Answers, RoundOutcome, RoundSteps
from schemas.errors import ConsiliumError
from schemas.messages import Instruction, Record
from site_agents.ceremony import STEPS, SiteCeremony
from site_agents.certifying import Certifying
from site_agents.compute import Compute, in_process
from site_agents.context import SiteContext, open_context
from site_agents.contributing import Contributing
from site_agents.home import open_home
from site_agents.release import SiteRelease
from site_agents.round import SiteRound
from tasks.audit.export import export_evidence
from tasks.lineage import Lineage, first_lineage
from tasks.privacy.noise import NoiseStream, os_noise_stream
from tasks.secure_sum.epoch import EpochPublic
from tasks.storage.mailbox import Signed

StreamFor = Callable[[str, Instruction], NoiseStream]


@dataclass
class Faults:
    """Who does not take part in which step of a round.

    Attributes:
        silent: Sites whose agent does nothing in the round.
        mute: Sites that contribute but are gone before the record is certified.
        unwilling: Sites that certify but never answer a share request.
    """

    silent: Collection[str] = ()
    mute: Collection[str] = ()
    unwilling: Collection[str] = ()


@dataclass
class EmbeddedConsortium:
    """All parties of one prepared study in this process.

    Args:
        coordinator_home: The coordinator's home with config.json.
        site_homes: Site name -> home with config.json.
        stream_for: Noise per (site, instruction); the operating system's unless a test records it.
    """

    coordinator_home: Path
    site_homes: dict[str, Path]
    stream_for: StreamFor = field(default=lambda _site, _instruction: os_noise_stream())

    def __post_init__(self) -> None:
        self.coordinator: CoordinatorContext = open_coordinator(self.coordinator_home)
        self.plan = self.coordinator.plan
        self.sites: dict[str, SiteContext] = {name: self.open_site(name) for name in self.site_homes}
        self.lineage: Lineage = first_lineage(self.plan)

    def open_site(self, name: str) -> SiteContext:
        """Opens a site's home as an agent does at the start of a flow run."""
        compute: Compute = in_process(lambda instruction: self.stream_for(name, instruction))
        return open_context(open_home(self.site_homes[name]), self.plan.study, compute)

    def run_ceremony(self, epoch: int = 1) -> EpochPublic:
        """Holds the key ceremony of `epoch` and returns its verified public side."""
        sign_ceremony_instruction(self.coordinator, epoch)
        parties = [SiteCeremony(self.sites[site.name], epoch) for site in self.plan.key_holders]
        for party in parties:
            party.verify()
        for _, _, step in STEPS:
            for party in parties:
                step(party)
        for party in parties:
            party.confirm()
        return enter_ceremony(self.coordinator, epoch)

    def finished_ceremony(self, epoch: int = 1) -> EpochPublic:
        """Returns the verified public side of a ceremony that was held before."""
        return enter_ceremony(self.coordinator, epoch)

    def run_round(
        self,
        public: EpochPublic,
        round_: int,
        kind: Literal["train", "evaluate"] = "train",
        faults: Faults | None = None,
    ) -> RoundOutcome:
        """Runs one round to its opening and moves the model on.

        Raises:
            ConsiliumError: the coordinator cannot go on; what the sites decided stays decided.
        """
        faults = faults or Faults()
        steps = RoundSteps(
            self.coordinator, public, self.lineage, round_, kind, choose_attempt(self.coordinator, round_)
        )
        instruction, opening = steps.issue(), OpeningSteps(steps)
        present = [name for name in self.sites if name not in faults.silent]
        works = {name: SiteRound(self.sites[name], round_, steps.attempt) for name in present}
        for work in works.values():
            contribute(work)
        holders = {name: Certifying(work) for name, work in works.items()}
        answers = Answers()
        steps.collect(instruction, answers)
        for name in faults.mute:
            holders.pop(name, None)
        collected = steps.close(instruction, answers)
        for holder in holders.values():
            holder.check_shares()
        record = opening.propose(instruction, answers, collected, steps.read_checks(collected))
        for holder in holders.values():
            holder.certify()
        open_by_active_sets(opening, holders, instruction, record, faults.unwilling)
        opened, after = steps.recompute()
        published = opening.log_opening()
        self.lineage = after
        return RoundOutcome(instruction, record, published, opened, after)

    def run_study(self, rounds: int | None = None) -> RoundOutcome:
        """Runs ceremony, all training rounds and the evaluation; returns the evaluation's outcome."""
        public = self.run_ceremony()
        for round_ in range(1, (rounds or self.plan.mechanism.rounds) + 1):
            self.run_round(public, round_)
        return self.run_round(public, self.plan.mechanism.rounds + 1, "evaluate")

    def release(self, rounds: int, evaluation: RoundOutcome | None, reason: str = "") -> Path:
        """Releases the model without MLflow: study log, checkpoints, witnesses; returns the evidence folder."""
        metrics = released_metrics(self.coordinator, evaluation)
        enter_signed_release(self.coordinator, self.lineage, rounds, evaluation, metrics, reason)
        publish_log(self.coordinator)
        releases = [SiteRelease(context) for context in self.sites.values()]
        for release in releases:
            release.verify()
            release.publish_checkpoint()
        publish_closing(self.coordinator)
        for release in releases:
            release.witness()
        home = self.coordinator.home
        return export_evidence(self.coordinator.store, self.plan, home / "evidence", self.coordinator.identity.signing)

    def epsilon(self, data: str = "training") -> dict[str, str]:
        """Returns the cumulative epsilon per site in the collusion reading."""
        return {report.site: report.collusion for report in epsilon_of_sites(self.coordinator, data)}


def open_by_active_sets(
    opening: OpeningSteps,
    holders: dict[str, Certifying],
    instruction: Signed[Instruction],
    record: Signed[Record],
    unwilling: Collection[str],
) -> None:
    """Asks active sets, one after another, until what one answered opens the sum.

    Raises:
        OperationError: `no-quorum`, `no-active-set`.
    """
    signatures, sets, opened = opening.read_signatures(record), ActiveSets(opening, instruction, record), False
    while not opened:
        request = sets.next(signatures)
        for name, holder in holders.items():
            if name not in unwilling:
                holder.share()
        opened = sets.open(request, opening.read_shares(instruction, record, request))


def contribute(work: SiteRound) -> ConsiliumError | None:
    """Takes a site through its part up to the upload; returns the refusal, if it declined."""
    contributing = Contributing(work)
    if contributing.decided:
        work.read()
        contributing.resend()
        return None
    verdict = None
    try:
        work.read()
        contributing.verify()
        verdict = contributing.validate()
        contributing.reserve()
        contributing.encrypt(contributing.train(), verdict)
    except ConsiliumError as error:
        contributing.refuse(error, verdict)
        return error
    contributing.upload()
    return None
