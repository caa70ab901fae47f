"""The coordinator's part of one round, as steps that never wait: issue, collect, close, add, propose, certify, request,
open, apply.

Invariants: every message the coordinator decides on (instruction, record, request, opening) is durable in the
create-only store before anybody can see it, and read back from there on resume; there is one record per round; a sum
is opened only for a certificate of Q signatures. A step that runs again finds what it did before and does no more.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from flows.context import CoordinatorContext
from flows.study_log import publish_entries
from schemas.envelope import Predicate, sign_envelope
from schemas.errors import OperationError, PeerError
from schemas.layout import attempt_key, round_key
from schemas.ledger import InstructionIssued
from schemas.messages import (
    Collected,
    Contribution,
    Instruction,
    Opening,
    Record,
    Refusal,
    SharesChecked,
)
from schemas.plan import Agreement
from schemas.statistics import coefficients
from tasks.lineage import Lineage, extend_lineage
from tasks.rounds import (
    read_contribution,
    read_instruction,
    read_record,
    read_refusal,
)
from tasks.secure_sum.bulk import verify_bulk
from tasks.secure_sum.context import RoundContext
from tasks.secure_sum.epoch import EpochPublic
from tasks.secure_sum.record import key_ciphertext_bytes, sealed_shamir_bytes, verify_key_ciphertext
from tasks.server_step import apply_step, state_digest
from tasks.storage.mailbox import Signed, fetch_blob, read_blob, read_signed


class BudgetExhausted(OperationError):
    """So many sites declined for their budget that no further round can hold: the study ends with what it has."""


class EpochLost(OperationError):
    """So many key holders lost their epoch secrets that a new ceremony is needed; this round is dead."""


class SumSpoiled(EpochLost):
    """No active set opens the certified sum, whoever is asked: this round is dead like one whose key is lost.

    The one-time keys that were sent belong to this epoch, and the round's only record to what was sent.
    """

    who_must_act = "the named hospitals"


BUDGET_CODES = frozenset({"budget-exceeded", "study-budget-exceeded"})
Reason = Literal["silent", "refused", "invalid"]
Kind = Literal["train", "evaluate", "statistics"]


@dataclass
class Answers:
    """What the participants answered so far."""

    contributions: dict[str, Signed[Contribution]] = field(default_factory=dict)
    refusals: dict[str, Signed[Refusal]] = field(default_factory=dict)
    invalid: dict[str, str] = field(default_factory=dict)

    @property
    def settled(self) -> set[str]:
        """Sites from which nothing more is expected."""
        return {*self.contributions, *self.refusals, *self.invalid}

    def state(self, site: str) -> str:
        """Returns the site's state for people: waiting, contributed, refused or invalid."""
        for name, group in (("contributed", self.contributions), ("refused", self.refusals), ("invalid", self.invalid)):
            if site in group:
                return name
        return "waiting"

    def reason(self, site: str) -> str:
        """Returns the site's state, with the code of a refusal."""
        refusal = self.refusals.get(site) if site not in self.contributions else None
        return self.state(site) if refusal is None else f"refused: {refusal.predicate.code}"


@dataclass
class RoundOutcome:
    """What a round left behind.

    Attributes:
        opened: The opened int64 sum.
        lineage: The model after the round.
        seconds: Step name -> seconds spent by the coordinator (0 for steps done before a resume).
    """

    instruction: Signed[Instruction]
    record: Signed[Record]
    opening: Signed[Opening]
    opened: NDArray[np.int64]
    lineage: Lineage
    seconds: dict[str, float] = field(default_factory=dict)


class SumSteps(ABC):
    """One encrypted sum at the coordinator, of a study's round or of a question.

    Args:
        public: The epoch's public side, from the verified ceremony.
        round_: 1-based.
        kind: What the sites are asked for.
    """

    def __init__(
        self, context: CoordinatorContext[Agreement], public: EpochPublic, round_: int, kind: Kind, attempt: int = 1
    ) -> None:
        self.context = context
        self.plan: Agreement = context.plan
        self.public = public
        self.round = round_
        self.kind: Kind = kind
        self.attempt = attempt

    @property
    @abstractmethod
    def before(self) -> tuple[str, str | None]:
        """What the sites work on: digest of the model (or query), and of the opening that led to it."""

    @abstractmethod
    def digest_after(self, opened: NDArray[np.int64]) -> str:
        """Returns the digest of the model that the opened sum leads to; of a question's query, unchanged."""

    # --- instruction and contributions

    def issue(self) -> Signed[Instruction]:
        """Decides and publishes the instruction of the round."""
        plan = self.plan
        key = attempt_key(plan.study, self.round, self.attempt, None, "instruction.json")
        if not self.context.store.exists(key):
            # What the instruction says of the log is in the store first: a restored coordinator finds it there.
            publish_entries(self.context)
            self.publish(key, self._instruction())
        found = read_instruction(self.context.store, plan, self.round, self.attempt)
        assert found is not None
        self.context.log.append_once(
            self.plan.study, InstructionIssued(round=self.round, attempt=self.attempt, instruction=found.digest)
        )
        return found

    def collect(self, instruction: Signed[Instruction], answers: Answers, refusals: bool = True) -> None:
        """Looks for answers that have arrived since; an answer that does not verify makes the site invalid, by name.

        Args:
            refusals: Whether to look for refusals too.
        """
        for site in instruction.predicate.participants:
            if site in answers.settled:
                continue
            try:
                contribution = read_contribution(self.context.store, self.plan, site, instruction)
                if contribution is not None:
                    self._verify_blobs(instruction, site, contribution.predicate)
                    answers.contributions[site] = contribution
                    continue
                refusal = read_refusal(self.context.store, self.plan, site, instruction) if refusals else None
                if refusal is not None:
                    answers.refusals[site] = refusal
            except PeerError as error:
                answers.invalid[site] = error.code

    def silent_before(self) -> set[str]:
        """Returns the sites that the record of the round before names as silent."""
        before = read_record(self.context.store, self.plan, self.round - 1) if self.round > 1 else None
        return {site for site, reason in before.predicate.dropped if reason == "silent"} if before else set()

    def close(self, instruction: Signed[Instruction], answers: Answers) -> Signed[Collected]:
        """Decides which contributions the holders check.

        Raises:
            OperationError: `too-few-contributions`, naming who is missing.
        """
        key = attempt_key(self.plan.study, self.round, self.attempt, None, "collected.json")
        if not self.context.store.exists(key):
            self.verify_enough(instruction, answers, set(answers.contributions))
            listed = tuple((site, answers.contributions[site].digest) for site in sorted(answers.contributions))
            self.publish(
                key,
                Collected(
                    sid_star=self.public.sid_star,
                    round=self.round,
                    attempt=self.attempt,
                    instruction=instruction.digest,
                    contributions=listed,
                ),
            )
        found = read_signed(
            self.context.store,
            key,
            Collected,
            self.plan.study,
            self.plan.coordinator.identity_key,
            self.plan.coordinator.name,
        )
        assert found is not None
        return found

    def read_checks(self, collected: Signed[Collected]) -> dict[str, tuple[str, ...]]:
        """Returns, per holder that has checked its sealed shares, the senders whose share it could not open."""
        checks: dict[str, tuple[str, ...]] = {}
        for holder, epoch_key in self.public.signing_keys.items():
            key = attempt_key(self.plan.study, self.round, self.attempt, holder, "shares-checked.json")
            try:
                found = read_signed(self.context.store, key, SharesChecked, self.plan.study, epoch_key, holder)
            except PeerError:
                continue
            if found is not None and found.predicate.collected == collected.digest:
                checks[holder] = found.predicate.faulty
        return checks

    def round_context(self, instruction: Signed[Instruction]) -> RoundContext:
        """Returns what the secure sum needs to know of this round."""
        processes = self.context.options.bulk_processes
        return RoundContext.of(self.plan, self.public, instruction.predicate, instruction.digest, processes)

    def publish(self, key: str, predicate: Predicate) -> None:
        """Signs `predicate` and makes it durable under `key`, once."""
        self.context.store.put(key, sign_envelope(predicate, self.plan.study, self.context.identity.signing))

    def verify_enough(self, instruction: Signed[Instruction], answers: Answers, senders: set[str]) -> None:
        """Refuses to go on with fewer than k_min contributions.

        Raises:
            OperationError: `too-few-contributions`, naming who is missing.
            BudgetExhausted, EpochLost: if waiting longer cannot help.
        """
        k_min = self.plan.threshold.k_min
        if len(senders) < k_min:
            self._verify_can_go_on(instruction, answers)
            missing = [s for s in instruction.predicate.participants if s not in senders]
            raise OperationError(
                "too-few-contributions",
                f"Round {self.round}: expected at least k_min = {k_min} contributions; "
                f"missing: {', '.join(f'{s} ({answers.reason(s)})' for s in missing)}.",
                "Start the agents of the silent sites, ask the refusing ones, and resume: after a pause it asks anew.",
            )

    # --- parts

    def _instruction(self) -> Instruction:
        first = read_instruction(self.context.store, self.plan, self.round, 1)
        if first is not None:
            # A later attempt is the first one again: sites and auditors refuse any other difference.
            return first.predicate.model_copy(update={"attempt": self.attempt})
        return Instruction(
            kind=self.kind,
            sid_star=self.public.sid_star,
            epoch=self.public.epoch,
            round=self.round,
            attempt=self.attempt,
            participants=tuple(site.name for site in self.plan.contributors),
            model=self.before[0],
            previous_opening=self.before[1],
            length=coefficients(self.plan, self.kind),
            log=self.context.log.position(),
        )

    def _verify_blobs(self, instruction: Signed[Instruction], site: str, contribution: Contribution) -> None:
        key = attempt_key(self.plan.study, self.round, self.attempt, site, "key.bin")
        context = self.round_context(instruction)
        size = key_ciphertext_bytes(context, site)
        verify_key_ciphertext(
            context, contribution, read_blob(self.context.store, key, contribution.key_ciphertext, site, size)
        )
        for holder, digest in contribution.shamir:
            key = attempt_key(self.plan.study, self.round, self.attempt, site, f"shamir-{holder}.bin")
            read_blob(self.context.store, key, digest, site, sealed_shamir_bytes(context, site, holder))
        key = attempt_key(self.plan.study, self.round, self.attempt, site, "bulk.bin")
        if self.context.store.size(key) != contribution.bulk_bytes:
            raise PeerError("blob-missing", site, "the bulk ciphertext is missing or has another size.")
        with TemporaryDirectory(dir=self.context.home) as folder:
            bulk = self.download_bulk(contribution, Path(folder) / "bulk.bin")
            verify_bulk(context, contribution, bulk)

    def download_bulk(self, contribution: Contribution, target: Path) -> Path:
        """Streams a contribution's bulk ciphertext into a new file, and no more of it than was signed.

        Raises:
            PeerError: `blob-missing`, `blob-size`, naming the sender.
        """
        key = attempt_key(self.plan.study, self.round, self.attempt, contribution.sender, "bulk.bin")
        return fetch_blob(self.context.store, key, target, contribution.bulk_bytes, contribution.sender)

    def _verify_can_go_on(self, instruction: Signed[Instruction], answers: Answers) -> None:
        people = set(instruction.predicate.participants)
        codes = {site: refusal.predicate.code for site, refusal in answers.refusals.items()}
        spent = {site for site, code in codes.items() if code in BUDGET_CODES}
        lost = {site for site, code in codes.items() if code == "epoch-lost"}
        left = {site for site, code in codes.items() if code == "site-left"}
        k_min = self.plan.threshold.k_min
        if spent and len(people - spent - left) < k_min:
            raise BudgetExhausted(
                "budget-exhausted",
                f"Round {self.round}: the privacy budget is used up at {', '.join(sorted(spent))}.",
                "Ask for a plan that fits the sites' budgets (consilium site budget).",
            )
        # A new ceremony brings back who lost a share; if somebody left as well it refuses, and the study ends in order.
        if lost and len(people - spent - left - lost) < k_min:
            raise EpochLost("epoch-lost", f"Round {self.round}: key shares are lost at {', '.join(sorted(lost))}.")


class RoundSteps(SumSteps):
    """One round of one study at the coordinator.

    Args:
        lineage: Model before this round.
        kind: ``train`` or ``evaluate``.
    """

    def __init__(
        self,
        context: CoordinatorContext,
        public: EpochPublic,
        lineage: Lineage,
        round_: int,
        kind: Literal["train", "evaluate"],
        attempt: int = 1,
    ) -> None:
        super().__init__(context, public, round_, kind, attempt)
        self.study_plan = context.plan
        self.lineage = lineage

    @property
    def before(self) -> tuple[str, str | None]:
        """Digests of the model before the round and of the opening that led to it."""
        return state_digest(self.lineage.state), self.lineage.opening

    def digest_after(self, opened: NDArray[np.int64]) -> str:
        """Returns the digest of the model after this round; evaluation leaves it unchanged."""
        train, state = self.kind == "train", self.lineage.state
        return state_digest(apply_step(self.study_plan, state, opened) if train else state)

    def recompute(self) -> tuple[NDArray[np.int64], Lineage]:
        """Recomputes the published opening as every site does; returns the sum and the model after the round.

        Raises:
            PeerError: the published messages do not open to the published sum.
            OperationError: `not-opened`.
        """
        after = extend_lineage(
            self.context.store,
            self.study_plan,
            lambda _: self.public,
            self.lineage,
            self.round,
            self.context.options.bulk_processes,
        )
        if after is None:
            raise OperationError("not-opened", f"Round {self.round} has no opening.", "Resume the study.")
        data = self.context.store.get(round_key(self.plan.study, self.round, None, "result.bin"))
        assert data is not None
        return np.frombuffer(data, dtype="<i8").astype(np.int64), after
