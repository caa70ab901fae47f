"""A site's part of one round, as steps that never wait: verify, validate, reserve, train, encrypt, upload, check the
shares, certify, share.

Invariants: nothing is charged before every rule passed; nothing is computed before it is charged; what was decided once
is replayed; no share leaves for a record that this site did not check and register itself. The flow
(`site_agents.flows`) calls these in order and waits between them; the tests' simulator calls the same ones.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tasks.secure_sum.context import RoundContext
from tasks.secure_sum.contribute import contribute
from tasks.secure_sum.record import find_shamir_faults, verify_record
from tasks.secure_sum.share import make_share

from schemas.canonical import sha256_hex
from schemas.contract import ContractVerdict
from schemas.envelope import sign_envelope
from schemas.errors import ConsiliumError, OperationError, PeerError
from schemas.layout import attempt_key, round_key
from schemas.ledger import PrivacyReserved, RecordSigned, Refused, ShareReleased
from schemas.messages import (
    Collected,
    Contribution,
    DecryptionShare,
    Instruction,
    Record,
    RecordSignature,
    Refusal,
    ShareRequest,
    SharesChecked,
)
from site_agents.context import SiteContext
from site_agents.epoch import SiteEpoch, load_epoch
from site_agents.lineage import model_before
from site_agents.policy import Expected, verify_instruction, verify_record_rules, verify_request_rules
from tasks.ledger.budget import commit, reserve, would_admit
from tasks.privacy.mechanism import mechanism_for
from tasks.rounds import (
    MAXIMUM_REQUESTS,
    read_contribution,
    read_instruction,
    read_opening,
    read_record,
    read_record_signature,
    read_request,
)
from tasks.secure_sum.ceremony import EpochSecrets
from tasks.server_step import ModelState, released_weights, state_digest
from tasks.storage.mailbox import Signed, read_blob, read_signed

TRAINING_TIMEOUT_SECONDS = 600.0


class SiteRound:
    """This site's part of (round, attempt) of one study."""

    def __init__(self, context: SiteContext, round_: int, attempt: int) -> None:
        self.context = context
        self.plan = context.plan
        self.round = round_
        self.attempt = attempt
        self._instruction: Signed[Instruction] | None = None
        self._epoch: SiteEpoch | None = None
        self._state: ModelState | None = None

    # --- contribute

    @property
    def decided(self) -> bool:
        """Whether this site already contributed to, or refused, this attempt."""
        return any(self.context.outbox.stored(self._mine(item)) for item in ("contribution.json", "refusal.json"))

    @property
    def refused(self) -> bool:
        """Whether this site refused this attempt."""
        return self.context.outbox.stored(self._mine("refusal.json")) is not None

    def read(self) -> None:
        """Reads the instruction and its epoch: signed by the plan's coordinator, and of a ceremony that all signed."""
        _ = self.instruction, self.epoch

    def verify(self) -> None:
        """Checks the instruction: signature, plan, epoch, model lineage, replay, and that the budget would admit it.

        Raises:
            PeerError, BudgetError, OperationError: named as in `site_agents.policy` and `tasks.ledger.budget`.
        """
        instruction, epoch = self.instruction, self.epoch
        lineage = model_before(self.context, self.round)
        first = None
        if self.attempt > 1:
            earlier = read_instruction(self.context.store, self.plan, self.round, 1)
            first = earlier.predicate if earlier is not None else None
        expected = Expected(
            round=self.round,
            attempt=self.attempt,
            epoch=epoch.public.epoch,
            sid_star=epoch.public.sid_star,
            previous_opening=lineage.opening,
            model=state_digest(lineage.state),
            first_attempt=first,
        )
        verify_instruction(self.plan, instruction.predicate, self.context.name, expected)
        self._state = lineage.state
        if self.context.keystore.registered_record(epoch.public.epoch, self.round) is not None and not self.decided:
            raise PeerError("round-closed", self.plan.coordinator.name, "a record of this round was already certified.")
        if not self._reserved() and not self.decided:
            event = mechanism_for(self.plan, instruction.predicate.kind).event()
            would_admit(self.context.ledger, self.context.cohort, event, self.plan.budget, self.plan.study)

    def validate(self) -> ContractVerdict:
        """Checks the local table against the plan's contract.

        Raises:
            SiteDataError: naming rules, columns and the remedy, never a value.
        """
        from site_agents.cohort.reader import read_table
        from tasks.contract.suite import verify_table

        return verify_table(self.plan.contract, read_table(self.context.data, self.plan.contract))

    def reserve(self) -> None:
        """Charges the round's mechanism before data is touched; a replay charges nothing.

        Raises:
            BudgetError: `budget-exceeded`, naming requested, spent and limit.
        """
        if self._reserved():
            return
        event = mechanism_for(self.plan, self.instruction.predicate.kind).event()
        reserve(
            self.context.ledger,
            self.context.cohort,
            self.instruction.digest,
            self.round,
            event,
            self.plan.study,
            self.plan.budget,
        )

    def train(self) -> NDArray[np.int64]:
        """Computes the noised integers m_i, once per (sid*, round); they stay in the site's private folder.

        Raises:
            PeerError: `round-dead`: m_i was computed under another ceremony and is never encrypted under this one.
        """
        sid_star = self.epoch.public.sid_star
        private = f"private/{self.plan.study}/values-{self.round:04d}"
        if not self._reserved():
            raise OperationError("not-reserved", "The round was not charged.", "Report this: nothing was computed.")

        def compute() -> bytes:
            assert self._state is not None
            kind = self.instruction.predicate.kind
            weights = self._state.weights if kind == "train" else released_weights(self._state)
            values = self.context.compute(
                self.plan, self.instruction.predicate, weights, self.context.data, TRAINING_TIMEOUT_SECONDS
            )
            return sid_star.encode() + values.astype("<i8").tobytes()

        stored = self.context.outbox.decide(private, compute)
        if stored[:64].decode() != sid_star:
            raise PeerError(
                "round-dead", self.plan.coordinator.name, f"round {self.round} was begun under another key ceremony."
            )
        return np.frombuffer(stored[64:], dtype="<i8").astype(np.int64)

    def encrypt(self, values: NDArray[np.int64], verdict: ContractVerdict) -> None:
        """Encrypts m_i under a one-time key and decides the contribution; everything durable, nothing sent."""

        def build(folder: Path) -> None:
            key = self.context.home.identity.signing
            parts = contribute(self._round_context(), self.context.name, values, key, folder / "bulk.bin")
            (folder / "key.bin").write_bytes(parts.key_ciphertext)
            for holder, blob in parts.shamir.items():
                (folder / f"shamir-{holder}.bin").write_bytes(blob)
            message = Contribution(
                sid_star=self.epoch.public.sid_star,
                round=self.round,
                attempt=self.attempt,
                instruction=self.instruction.digest,
                sender=self.context.name,
                ledger=self.context.ledger.position(),
                verdict=verdict,
                **parts.digests(),
            )
            (folder / "contribution.json").write_bytes(sign_envelope(message, self.plan.study, key))

        self.context.outbox.decide_folder(self._mine("contribution.json").rsplit("/", 1)[0], build)

    def upload(self) -> None:
        """Sends the decided contribution and the ledger up to it, then commits the charge."""
        outbox = self.context.outbox
        stored = outbox.stored(self._mine("contribution.json"))
        assert stored is not None
        self.context.publish_ledger()
        for site in self.plan.key_holders:
            outbox.send(self._mine(f"shamir-{site.name}.bin"))
        for item in ("key.bin", "bulk.bin", "contribution.json"):
            outbox.send(self._mine(item))
        commit(self.context.ledger, self.plan.study, self.round, self._reserved_digest(), sha256_hex(stored))

    def refuse(self, error: ConsiliumError, verdict: ContractVerdict | None = None) -> None:
        """Declines this attempt: an entry in the ledger, then a signed refusal that carries only the error's code."""
        instruction = self.context.store.get(
            attempt_key(self.plan.study, self.round, self.attempt, None, "instruction.json")
        )
        digest = sha256_hex(instruction or b"")
        already = any(
            isinstance(entry.body, Refused) and entry.body.instruction == digest
            for entry in self.context.ledger.find(self.plan.study, "refused")
        )
        if not already:
            self.context.ledger.append_once(self.plan.study, Refused(instruction=digest, code=error.code))
        message = Refusal(
            instruction=digest,
            sender=self.context.name,
            code=error.code,
            detail=error.message[:400] if error.code == "budget-exceeded" else "",
            ledger=self.context.ledger.position(),
            verdict=verdict,
        )
        key = self.context.home.identity.signing
        self.context.outbox.answer(self._mine("refusal.json"), lambda: sign_envelope(message, self.plan.study, key))
        self.context.publish_ledger()

    def resend(self) -> None:
        """Sends again what was decided before this process started."""
        if self.refused:
            self.context.outbox.send(self._mine("refusal.json"))
        else:
            self.upload()

    # --- certify

    def check_shares(self) -> bool:
        """Opens the sealed shares of all collected contributions and answers which senders are faulty.

        Returns:
            False while the coordinator has not closed the collection, and at a site that holds no key.
        """
        if self.epoch.secrets is None:
            return False
        name, study = self.context.name, self.plan.study
        coordinator = self.plan.coordinator
        key = attempt_key(study, self.round, self.attempt, None, "collected.json")
        collected = read_signed(self.context.store, key, Collected, study, coordinator.identity_key, coordinator.name)
        if collected is None:
            return False
        contributions = self._contributions(collected.predicate.contributions)
        predicates = {sender: found.predicate for sender, found in contributions.items()}
        blobs = {sender: self._sealed(sender, predicate) for sender, predicate in predicates.items()}
        faulty = find_shamir_faults(self.epoch.secrets, self._round_context(), predicates, blobs)
        message = SharesChecked(
            sid_star=self.epoch.public.sid_star,
            round=self.round,
            attempt=self.attempt,
            holder=name,
            collected=collected.digest,
            faulty=faulty,
        )
        signing = self.epoch.secrets.signing_key
        self.context.outbox.answer(self._mine("shares-checked.json"), lambda: sign_envelope(message, study, signing))
        return True

    def certify(self) -> bool:
        """Checks the proposed record, registers it as the round's only one, and signs it.

        Returns:
            False while there is no record, and at a site that holds no key.

        Raises:
            PeerError: the record must not be certified, or it is a second one.
        """
        record = read_record(self.context.store, self.plan, self.round)
        if record is None or self.epoch.secrets is None:
            return False
        secrets = self.epoch.secrets
        self._accept_record(record, secrets)
        message = RecordSignature(
            sid_star=self.epoch.public.sid_star, round=self.round, holder=self.context.name, record=record.digest
        )
        self.context.ledger.append_once(self.plan.study, RecordSigned(round=self.round, record=record.digest))
        self.context.outbox.answer(
            self._my_round("record-signature.json"),
            lambda: sign_envelope(message, self.plan.study, secrets.signing_key),
        )
        return True

    def share(self) -> int:
        """Answers every share request that names this site and was not answered before.

        Returns:
            How many requests this site has answered in all.

        Raises:
            PeerError: the request is not for the certified record, or its certificate does not hold.
        """
        answered = 0
        for number in range(1, MAXIMUM_REQUESTS + 1):
            request = read_request(self.context.store, self.plan, self.round, number)
            if request is None or self.epoch.secrets is None:
                break
            if self.context.name in request.predicate.active_set:
                self._answer(request, self.epoch.secrets)
                answered += 1
        return answered

    @property
    def collected(self) -> bool:
        """Whether the coordinator has closed the collection of this attempt."""
        key = attempt_key(self.plan.study, self.round, self.attempt, None, "collected.json")
        return self.context.store.exists(key)

    @property
    def proposed(self) -> bool:
        """Whether the coordinator has proposed a record."""
        return read_record(self.context.store, self.plan, self.round) is not None

    @property
    def requests(self) -> int:
        """How many share requests there are."""
        number = 0
        while number < MAXIMUM_REQUESTS and self.context.store.exists(
            round_key(self.plan.study, self.round, None, f"request-{number + 1}.json")
        ):
            number += 1
        return number

    @property
    def opened(self) -> bool:
        """Whether the coordinator has published the round's opening."""
        return read_opening(self.context.store, self.plan, self.round) is not None

    # --- parts

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

    def _round_context(self) -> RoundContext:
        return RoundContext.of(self.plan, self.epoch.public, self.instruction.predicate, self.instruction.digest)

    def _reserved_digest(self) -> str:
        for entry in self.context.ledger.find(self.plan.study, "privacy-reserved"):
            if isinstance(entry.body, PrivacyReserved) and entry.body.round == self.round:
                return entry.body.instruction
        return ""

    def _reserved(self) -> bool:
        # One charge per round: a later attempt re-sends the same m_i.
        return self._reserved_digest() != ""

    def _contributions(self, listed: tuple[tuple[str, str], ...]) -> dict[str, Signed[Contribution]]:
        found: dict[str, Signed[Contribution]] = {}
        for sender, digest in listed:
            contribution = read_contribution(self.context.store, self.plan, sender, self.instruction)
            if contribution is None or contribution.digest != digest:
                raise PeerError(
                    "record-mismatch", self.plan.coordinator.name, f"the listed contribution of {sender} is not there."
                )
            found[sender] = contribution
        return found

    def _sealed(self, sender: str, contribution: Contribution) -> bytes:
        key = attempt_key(self.plan.study, self.round, self.attempt, sender, f"shamir-{self.context.name}.bin")
        return read_blob(self.context.store, key, dict(contribution.shamir)[self.context.name], sender)

    def _accept_record(self, record: Signed[Record], secrets: EpochSecrets) -> bytes:
        """Checks a record as section 3.4 of the design asks, registers it, and returns the sum of key ciphertexts."""
        own = self.context.outbox.stored(self._mine("contribution.json"))
        rules = (self.context.name, sha256_hex(own) if own is not None else None)
        if record.predicate.attempt != self.attempt:
            raise PeerError("record-mismatch", self.plan.coordinator.name, "the record is for another attempt.")
        verify_record_rules(self.plan, record.predicate, self.instruction.predicate, self.instruction.digest, rules)
        registered = self.context.keystore.registered_record(record.predicate.epoch, self.round)
        if registered not in (None, record.digest):
            raise PeerError(
                "second-record", self.plan.coordinator.name, f"a second record was proposed for round {self.round}."
            )
        contributions = self._contributions(record.predicate.contributions)
        key_blobs = {s: self._key_blob(s, c.predicate) for s, c in contributions.items()}
        sealed = {s: self._sealed(s, c.predicate) for s, c in contributions.items()}
        envelopes = {s: c.data for s, c in contributions.items()}
        key_sum = verify_record(secrets, self._round_context(), record.predicate, envelopes, key_blobs, sealed, own)
        self.context.keystore.register_record(record.predicate.epoch, self.round, record.digest)
        return key_sum

    def _key_blob(self, sender: str, contribution: Contribution) -> bytes:
        key = attempt_key(self.plan.study, self.round, self.attempt, sender, "key.bin")
        return read_blob(self.context.store, key, contribution.key_ciphertext, sender)

    def _answer(self, request: Signed[ShareRequest], secrets: EpochSecrets) -> None:
        number = request.predicate.number
        blob_key, message_key = self._my_round(f"share-{number}.bin"), self._my_round(f"share-{number}.json")
        if self.context.outbox.stored(message_key) is None:
            record = read_record(self.context.store, self.plan, self.round)
            if record is None:
                raise PeerError("request-mismatch", self.plan.coordinator.name, "there is no record to share for.")
            verify_request_rules(self.plan, request.predicate, record.predicate, record.digest)
            key_sum = self._accept_record(record, secrets)
            blob = self.context.outbox.decide(blob_key, lambda: self._make_share(record, request, secrets, key_sum))
            message = DecryptionShare(
                sid_star=self.epoch.public.sid_star,
                round=self.round,
                holder=self.context.name,
                record=record.digest,
                request=request.digest,
                share=sha256_hex(blob),
            )
            body = ShareReleased(round=self.round, record=record.digest, request=request.digest, share=sha256_hex(blob))
            self.context.ledger.append_once(self.plan.study, body)
            self.context.outbox.decide(
                message_key, lambda: sign_envelope(message, self.plan.study, secrets.signing_key)
            )
        self.context.outbox.send(blob_key)
        self.context.outbox.send(message_key)

    def _make_share(
        self, record: Signed[Record], request: Signed[ShareRequest], secrets: EpochSecrets, key_sum: bytes
    ) -> bytes:
        contributions = self._contributions(record.predicate.contributions)
        sealed = {s: self._sealed(s, c.predicate) for s, c in contributions.items()}
        certificate: dict[str, bytes] = {}
        for holder, digest in request.predicate.certificate:
            key_hex = self.epoch.public.signing_keys[holder]
            found = read_record_signature(self.context.store, self.plan, holder, key_hex, record)
            if found is None or found.digest != digest:
                raise PeerError(
                    "no-certificate", self.plan.coordinator.name, f"the signature of {holder} is not in the store."
                )
            certificate[holder] = found.data
        return make_share(
            secrets,
            self._round_context(),
            record.predicate,
            record.digest,
            request.predicate,
            certificate,
            key_sum,
            sealed,
            {s: c.predicate for s, c in contributions.items()},
        )

    def _mine(self, item: str) -> str:
        return attempt_key(self.plan.study, self.round, self.attempt, self.context.name, item)

    def _my_round(self, item: str) -> str:
        return round_key(self.plan.study, self.round, self.context.name, item)
