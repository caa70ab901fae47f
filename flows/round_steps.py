"""The coordinator's part of one round, as steps that never wait: issue, collect, close, add, propose, certify, request,
open, apply.

Invariants: every message the coordinator decides on (instruction, record, request, opening) is durable in the
create-only store before anybody can see it, and read back from there on resume; there is one record per round; a sum
is opened only for a certificate of Q signatures. A step that runs again finds what it did before and does no more.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from shutil import copyfileobj
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tasks.secure_sum.bulk import add_bulk
from tasks.secure_sum.context import RoundContext
from tasks.secure_sum.opening import open_sum, verify_share
from tasks.secure_sum.record import add_key_ciphertexts, verify_key_ciphertext

from flows.context import CoordinatorContext
from schemas.canonical import sha256_hex
from schemas.envelope import Predicate, sign_envelope
from schemas.errors import OperationError, PeerError
from schemas.layout import attempt_key, round_key
from schemas.ledger import InstructionIssued, RecordProposed, SumOpened
from schemas.messages import (
    Collected,
    Contribution,
    Instruction,
    Opening,
    Record,
    Refusal,
    ShareRequest,
    SharesChecked,
)
from schemas.plan import histogram_length, update_length
from tasks.lineage import Lineage, extend_lineage
from tasks.rounds import (
    MAXIMUM_REQUESTS,
    read_contribution,
    read_instruction,
    read_opening,
    read_record,
    read_record_signature,
    read_refusal,
    read_request,
    read_share,
)
from tasks.secure_sum.ceremony import EpochPublic
from tasks.server_step import ModelState, apply_step, state_digest
from tasks.storage.mailbox import Signed, read_blob, read_signed


class BudgetExhausted(OperationError):
    """So many sites declined for their budget that no further round can hold: the study ends with what it has."""


class EpochLost(OperationError):
    """So many key holders lost their epoch secrets that a new ceremony is needed; this round is dead."""


BUDGET_CODES = frozenset({"budget-exceeded", "study-budget-exceeded"})
Reason = Literal["silent", "refused", "invalid"]


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


class RoundSteps:
    """One round of one study at the coordinator.

    Args:
        public: The epoch's public side, from the verified ceremony.
        lineage: Model before this round.
        round_: 1-based.
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
        self.context = context
        self.plan = context.plan
        self.public = public
        self.lineage = lineage
        self.round = round_
        self.kind = kind
        self.attempt = attempt

    # --- instruction and contributions

    def issue(self) -> Signed[Instruction]:
        """Decides and publishes the instruction of the round."""
        plan = self.plan
        key = attempt_key(plan.study, self.round, self.attempt, None, "instruction.json")
        if not self.context.store.exists(key):
            self._publish(
                key,
                Instruction(
                    kind=self.kind,
                    sid_star=self.public.sid_star,
                    epoch=self.public.epoch,
                    round=self.round,
                    attempt=self.attempt,
                    participants=tuple(site.name for site in plan.contributors),
                    model=state_digest(self.lineage.state),
                    previous_opening=self.lineage.opening,
                    length=update_length(plan) if self.kind == "train" else histogram_length(plan),
                    log=self.context.log.position(),
                ),
            )
        found = read_instruction(self.context.store, plan, self.round, self.attempt)
        assert found is not None
        self.context.log.append_once(
            self.plan.study, InstructionIssued(round=self.round, attempt=self.attempt, instruction=found.digest)
        )
        return found

    def collect(self, instruction: Signed[Instruction], answers: Answers) -> None:
        """Looks for answers that have arrived since; an answer that does not verify makes the site invalid, by name."""
        for site in instruction.predicate.participants:
            if site in answers.settled:
                continue
            try:
                contribution = read_contribution(self.context.store, self.plan, site, instruction)
                if contribution is not None:
                    self._verify_blobs(instruction, site, contribution.predicate)
                    answers.contributions[site] = contribution
                    continue
                refusal = read_refusal(self.context.store, self.plan, site, instruction)
                if refusal is not None:
                    answers.refusals[site] = refusal
            except PeerError as error:
                answers.invalid[site] = error.code

    def close(self, instruction: Signed[Instruction], answers: Answers) -> Signed[Collected]:
        """Decides which contributions the holders check.

        Raises:
            OperationError: `too-few-contributions`, naming who is missing.
        """
        key = attempt_key(self.plan.study, self.round, self.attempt, None, "collected.json")
        if not self.context.store.exists(key):
            self._verify_enough(instruction, answers, set(answers.contributions))
            listed = tuple((site, answers.contributions[site].digest) for site in sorted(answers.contributions))
            self._publish(
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

    # --- record

    def propose(
        self,
        instruction: Signed[Instruction],
        answers: Answers,
        collected: Signed[Collected],
        checks: dict[str, tuple[str, ...]],
    ) -> Signed[Record]:
        """Adds the contributions and decides on the round's only record.

        Raises:
            OperationError: `too-few-contributions`.
        """
        existing = read_record(self.context.store, self.plan, self.round)
        if existing is None:
            faulty = {sender for senders in checks.values() for sender in senders}
            listed = {site: digest for site, digest in collected.predicate.contributions if site not in faulty}
            for site in faulty:
                answers.invalid[site] = "faulty-share"
            self._verify_enough(instruction, answers, set(listed))
            record = Record(
                sid_star=self.public.sid_star,
                epoch=self.public.epoch,
                round=self.round,
                attempt=self.attempt,
                instruction=instruction.digest,
                contributions=tuple(sorted(listed.items())),
                dropped=self._dropped(instruction, answers, set(listed)),
                key_sum=self._add_keys(instruction, sorted(listed)),
            )
            self._add_bulk(instruction, sorted(listed))
            self._publish(round_key(self.plan.study, self.round, None, "record.json"), record)
            existing = read_record(self.context.store, self.plan, self.round)
            assert existing is not None
        dropped = tuple((site, str(reason)) for site, reason in existing.predicate.dropped)
        self.context.log.append_once(
            self.plan.study, RecordProposed(round=self.round, record=existing.digest, dropped=dropped)
        )
        return existing

    def read_signatures(self, record: Signed[Record]) -> dict[str, str]:
        """Returns (holder -> envelope digest) of the valid signatures on the record."""
        found: dict[str, str] = {}
        for holder, epoch_key in self.public.signing_keys.items():
            try:
                signature = read_record_signature(self.context.store, self.plan, holder, epoch_key, record)
            except PeerError:
                continue
            if signature is not None:
                found[holder] = signature.digest
        return found

    # --- opening

    def request(
        self, record: Signed[Record], number: int, signatures: dict[str, str], exclude: set[str]
    ) -> Signed[ShareRequest]:
        """Decides the active set number `number`: holders that certified and did not stay silent before.

        Raises:
            OperationError: `no-quorum`, `no-active-set`.
        """
        key = round_key(self.plan.study, self.round, None, f"request-{number}.json")
        if not self.context.store.exists(key):
            numbers = self.plan.threshold
            if len(signatures) < numbers.certificate_quorum:
                raise OperationError(
                    "no-quorum",
                    f"Round {self.round}: expected Q = {numbers.certificate_quorum} signatures on the record.",
                    "Start the agents of the silent key holders and resume.",
                )
            willing = [holder for holder in sorted(signatures) if holder not in exclude]
            if len(willing) < numbers.t or number > MAXIMUM_REQUESTS:
                raise OperationError(
                    "no-active-set",
                    f"Round {self.round}: expected t = {numbers.t} key holders that answer.",
                    "Start the agents of the silent key holders and resume.",
                )
            self._publish(
                key,
                ShareRequest(
                    sid_star=self.public.sid_star,
                    round=self.round,
                    record=record.digest,
                    certificate=tuple(sorted(signatures.items())),
                    active_set=tuple(willing[: numbers.t]),
                    number=number,
                ),
            )
        found = read_request(self.context.store, self.plan, self.round, number)
        assert found is not None
        return found

    def read_shares(
        self, instruction: Signed[Instruction], record: Signed[Record], request: Signed[ShareRequest]
    ) -> dict[str, tuple[str, bytes]]:
        """Returns (holder -> (envelope digest, share blob)) of the answers that have arrived and verify."""
        shares: dict[str, tuple[str, bytes]] = {}
        for holder in request.predicate.active_set:
            try:
                found = read_share(self.context.store, self.plan, holder, self.public.signing_keys[holder], request)
                if found is not None:
                    key = round_key(self.plan.study, self.round, holder, f"share-{request.predicate.number}.bin")
                    blob = read_blob(self.context.store, key, found.predicate.share, holder)
                    verify_share(
                        self.round_context(instruction),
                        record.predicate,
                        record.digest,
                        request.predicate,
                        holder,
                        blob,
                    )
                    shares[holder] = (found.digest, blob)
            except PeerError:
                continue
        return shares

    def open(
        self,
        instruction: Signed[Instruction],
        record: Signed[Record],
        request: Signed[ShareRequest],
        shares: dict[str, tuple[str, bytes]],
    ) -> NDArray[np.int64]:
        """Opens the certified sum and publishes it with the model that follows.

        Returns:
            The opened int64 sum.

        Raises:
            PeerError: an opening that does not verify, naming the active set.
        """
        store, study = self.context.store, self.plan.study
        key_sum = store.get(round_key(study, self.round, None, "key-sum.bin"))
        bulk_sum = store.get(round_key(study, self.round, None, "bulk-sum.bin"))
        assert key_sum is not None
        assert bulk_sum is not None
        blobs = {holder: blob for holder, (_, blob) in shares.items()}
        opened = open_sum(
            self.round_context(instruction),
            record.predicate,
            record.digest,
            request.predicate,
            key_sum,
            bulk_sum,
            blobs,
        )
        result = opened.astype("<i8").tobytes()
        store.put(round_key(study, self.round, None, "result.bin"), result)
        after = self.next_state(opened)
        self._publish(
            round_key(study, self.round, None, "opening.json"),
            Opening(
                sid_star=self.public.sid_star,
                round=self.round,
                attempt=self.attempt,
                record=record.digest,
                request=request.digest,
                shares=tuple((holder, shares[holder][0]) for holder in sorted(shares)),
                bulk_sum=sha256_hex(bulk_sum),
                result=sha256_hex(result),
                model=state_digest(after),
            ),
        )
        return opened

    def log_opening(self) -> Signed[Opening]:
        """Enters the published opening into the study log."""
        opening = read_opening(self.context.store, self.plan, self.round)
        assert opening is not None
        self.context.log.append_once(
            self.plan.study, SumOpened(round=self.round, opening=opening.digest, model=opening.predicate.model)
        )
        return opening

    def recompute(self) -> tuple[NDArray[np.int64], Lineage]:
        """Recomputes the published opening as every site does; returns the sum and the model after the round.

        Raises:
            PeerError: the published messages do not open to the published sum.
        """
        after = extend_lineage(self.context.store, self.plan, lambda _: self.public, self.lineage, self.round)
        if after is None:
            raise OperationError("not-opened", f"Round {self.round} has no opening.", "Resume the study.")
        data = self.context.store.get(round_key(self.plan.study, self.round, None, "result.bin"))
        assert data is not None
        return np.frombuffer(data, dtype="<i8").astype(np.int64), after

    def next_state(self, opened: NDArray[np.int64]) -> ModelState:
        """Returns the model after this round; evaluation leaves it unchanged."""
        return apply_step(self.plan, self.lineage.state, opened) if self.kind == "train" else self.lineage.state

    def round_context(self, instruction: Signed[Instruction]) -> RoundContext:
        """Returns what the secure sum needs to know of this round."""
        return RoundContext.of(self.plan, self.public, instruction.predicate, instruction.digest)

    # --- parts

    def _publish(self, key: str, predicate: Predicate) -> None:
        self.context.store.put(key, sign_envelope(predicate, self.plan.study, self.context.identity.signing))

    def _verify_blobs(self, instruction: Signed[Instruction], site: str, contribution: Contribution) -> None:
        key = attempt_key(self.plan.study, self.round, self.attempt, site, "key.bin")
        blob = read_blob(self.context.store, key, contribution.key_ciphertext, site)
        verify_key_ciphertext(self.round_context(instruction), contribution, blob)
        for holder, digest in contribution.shamir:
            key = attempt_key(self.plan.study, self.round, self.attempt, site, f"shamir-{holder}.bin")
            read_blob(self.context.store, key, digest, site)
        key = attempt_key(self.plan.study, self.round, self.attempt, site, "bulk.bin")
        if self.context.store.size(key) != contribution.bulk_bytes:
            raise PeerError("blob-missing", site, "the bulk ciphertext is missing or has another size.")

    def _verify_enough(self, instruction: Signed[Instruction], answers: Answers, senders: set[str]) -> None:
        k_min = self.plan.threshold.k_min
        if len(senders) < k_min:
            self._verify_can_go_on(instruction, answers)
            missing = [s for s in instruction.predicate.participants if s not in senders]
            raise OperationError(
                "too-few-contributions",
                f"Round {self.round}: expected at least k_min = {k_min} contributions; "
                f"missing: {', '.join(f'{s} ({answers.state(s)})' for s in missing)}.",
                "Start the agents of the silent sites, ask the refusing ones, and resume.",
            )

    def _verify_can_go_on(self, instruction: Signed[Instruction], answers: Answers) -> None:
        people = set(instruction.predicate.participants)
        codes = {site: refusal.predicate.code for site, refusal in answers.refusals.items()}
        spent = {site for site, code in codes.items() if code in BUDGET_CODES}
        lost = {site for site, code in codes.items() if code == "epoch-lost"}
        if len(people - spent) < self.plan.threshold.k_min:
            raise BudgetExhausted(
                "budget-exhausted",
                f"Round {self.round}: the privacy budget is used up at {', '.join(sorted(spent))}.",
                "Ask for a plan that fits the sites' budgets (consilium site budget).",
            )
        if len(people - lost) < self.plan.threshold.k_min:
            raise EpochLost("epoch-lost", f"Round {self.round}: key shares are lost at {', '.join(sorted(lost))}.")

    def _dropped(
        self, instruction: Signed[Instruction], answers: Answers, senders: set[str]
    ) -> tuple[tuple[str, Reason], ...]:
        def reason(site: str) -> Reason:
            if site in answers.refusals:
                return "refused"
            return "invalid" if site in answers.invalid else "silent"

        return tuple((site, reason(site)) for site in instruction.predicate.participants if site not in senders)

    def _add_keys(self, instruction: Signed[Instruction], senders: list[str]) -> str:
        blobs: dict[str, bytes] = {}
        for site in senders:
            data = self.context.store.get(attempt_key(self.plan.study, self.round, self.attempt, site, "key.bin"))
            assert data is not None
            blobs[site] = data
        key_sum = add_key_ciphertexts(self.round_context(instruction), blobs)
        self.context.store.put(round_key(self.plan.study, self.round, None, "key-sum.bin"), key_sum.blob)
        return key_sum.digest

    def _add_bulk(self, instruction: Signed[Instruction], senders: list[str]) -> None:
        with TemporaryDirectory(dir=self.context.home) as folder:
            sources: dict[str, tuple[Contribution, Path]] = {}
            for site in senders:
                contribution = read_contribution(self.context.store, self.plan, site, instruction)
                assert contribution is not None
                key = attempt_key(self.plan.study, self.round, self.attempt, site, "bulk.bin")
                sources[site] = (contribution.predicate, self._download(key, Path(folder) / f"{site}.bin"))
            target = Path(folder) / "bulk-sum.bin"
            add_bulk(self.round_context(instruction), sources, target)
            self.context.store.put_file(round_key(self.plan.study, self.round, None, "bulk-sum.bin"), target)

    def _download(self, key: str, target: Path) -> Path:
        with self.context.store.open(key) as source, target.open("wb") as out:
            copyfileobj(source, out)
        return target
