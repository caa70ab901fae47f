"""One attempt of one round, as a site sees it: the verified instruction, its epoch, and where its answers go.

The steps are in `site_agents.contributing` and `site_agents.certifying`; none of them waits. The flow
(`site_agents.flows`) calls them in order and waits between them; the embedded consortium calls the same ones.
"""

from __future__ import annotations

from typing import Generic

from schemas.errors import PeerError
from schemas.layout import attempt_key, round_key
from schemas.messages import Contribution, Instruction
from schemas.plan import Plan_co
from site_agents.context import SiteContext
from site_agents.epoch import SiteEpoch, load_epoch
from tasks.rounds import read_contribution, read_instruction
from tasks.secure_sum.context import RoundContext
from tasks.storage.mailbox import Signed


class SiteRound(Generic[Plan_co]):
    """(round, attempt) of one study at this site."""

    def __init__(self, context: SiteContext[Plan_co], round_: int, attempt: int) -> None:
        self.context = context
        self.plan: Plan_co = context.plan
        self.round = round_
        self.attempt = attempt
        self._instruction: Signed[Instruction] | None = None
        self._epoch: SiteEpoch | None = None
        self._contributions: dict[str, Signed[Contribution]] = {}

    def read(self) -> None:
        """Reads the instruction and its epoch: signed by the plan's coordinator, and of a ceremony that all signed.

        Raises:
            SiteDataError: `site-left`.
            PeerError, OperationError: as `load_epoch`, and `instruction-missing`.
        """
        self.context.verify_member()
        _ = self.instruction, self.epoch

    @property
    def instruction(self) -> Signed[Instruction]:
        """The verified instruction."""
        if self._instruction is None:
            self._instruction = read_instruction(self.context.store, self.plan, self.round, self.attempt)
        if self._instruction is None:
            raise PeerError("instruction-missing", self.plan.coordinator.name, "there is no signed instruction.")
        return self._instruction

    @property
    def epoch(self) -> SiteEpoch:
        """The epoch that the instruction names, verified."""
        if self._epoch is None:
            asked = self.instruction.predicate
            self._epoch = load_epoch(self.context, asked.epoch, asked.sid_star)
        return self._epoch

    def secure_sum(self) -> RoundContext:
        """Returns what the secure sum needs to know of this round."""
        processes = self.context.home.settings.options.bulk_processes
        asked = self.instruction
        return RoundContext.of(self.plan, self.epoch.public, asked.predicate, asked.digest, processes)

    def contribution(self, sender: str, digest: str) -> Signed[Contribution]:
        """Returns the contribution of `sender` with this digest, verified; read once, whatever its sender does to it.

        Raises:
            PeerError: `record-mismatch`, naming the coordinator; or the sender's fault.
        """
        if digest not in self._contributions:
            found = read_contribution(self.context.store, self.plan, sender, self.instruction)
            if found is None or found.digest != digest:
                raise PeerError(
                    "record-mismatch", self.plan.coordinator.name, f"the listed contribution of {sender} is not there."
                )
            self._contributions[digest] = found
        return self._contributions[digest]

    def contributions(self, listed: tuple[tuple[str, str], ...]) -> dict[str, Signed[Contribution]]:
        """Returns the listed contributions, each verified and with the listed digest.

        Raises:
            PeerError: as `contribution`.
        """
        return {sender: self.contribution(sender, digest) for sender, digest in listed}

    def mine(self, item: str) -> str:
        """Returns the store name of this site's `item` in this attempt."""
        return attempt_key(self.plan.study, self.round, self.attempt, self.context.name, item)

    def of_round(self, item: str) -> str:
        """Returns the store name of this site's `item` in this round, whatever the attempt."""
        return round_key(self.plan.study, self.round, self.context.name, item)
