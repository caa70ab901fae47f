"""What every contribution of a site has in common: bound to one instruction, encrypted once, sent, or refused.

Invariant: what was decided once is replayed, with the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from schemas.canonical import canonical_bytes, sha256_hex
from schemas.contract import ContractVerdict, ContractViolation
from schemas.envelope import sign_envelope
from schemas.errors import BudgetError, ConsiliumError, PeerError
from schemas.layout import attempt_key
from schemas.ledger import NO_STUDY
from schemas.messages import Contribution, LogPosition, Refusal
from schemas.plan import Agreement
from site_agents.epoch import EPOCH_LOST, said_lost
from site_agents.policy import verify_cohort_size, verify_willing
from site_agents.round import SiteRound
from tasks.ledger.budget import commit, record_refusal
from tasks.secure_sum.contribute import contribute

NO_LOG = LogPosition(size=0, root="0" * 64)


class Sending:
    """From noised integers to a sent contribution, in a study or a question."""

    def __init__(self, work: SiteRound[Agreement]) -> None:
        self.work = work

    @property
    def decided(self) -> bool:
        """Whether this site already contributed to, or refused, this attempt."""
        return any(
            self.work.context.outbox.stored(self.work.mine(item)) for item in ("contribution.json", "refusal.json")
        )

    @property
    def refused(self) -> bool:
        """Whether this site refused this attempt."""
        return self.work.context.outbox.stored(self.work.mine("refusal.json")) is not None

    def bind(self) -> None:
        """Binds this round to the first instruction that passed, whatever the store shows later.

        A later attempt may differ in attempt and participants only: another model would let the coordinator tell sites
        apart inside one sum, another kind would release what was never charged.
        """
        verify_willing(self.work.context.home.settings, self.work.plan.study)
        coordinator, epoch = self.work.plan.coordinator.name, self.work.epoch.public.epoch
        if self.work.context.released:
            raise PeerError("study-released", coordinator, "the study was released: nothing more is trained in it.")
        if self.work.context.keystore.registered_record(epoch, self.work.round) is not None and not self.decided:
            raise PeerError("round-closed", coordinator, "a record of this round was already certified.")
        fixed = self.work.instruction.predicate.model_copy(update={"attempt": 1, "participants": (), "log": NO_LOG})
        content = canonical_bytes(fixed)
        key = f"private/{self.work.plan.study}/instruction-{self.work.round:04d}"
        if self.work.context.outbox.decide(key, lambda: content) != content:
            raise PeerError(
                "instruction-changed",
                coordinator,
                "the instruction differs from the round's first in more than attempt and participants.",
            )

    def validate(self) -> ContractVerdict:
        """Checks the local table against the plan's contract.

        Raises:
            SiteDataError: naming rules, columns and the remedy, never a value; `cohort-size` if more patients are
                there than the declared size covers.
        """
        from site_agents.cohort.checking import check_cohort

        plan = self.work.plan
        checked = check_cohort(self.work.context.data, plan.contract)
        verify_cohort_size(plan, self.work.context.name, checked.patients)
        return checked.verdict

    def decide_values(self, compute: Callable[[], NDArray[np.int64]]) -> NDArray[np.int64]:
        """Computes m_i once per (sid*, round) and keeps it in the site's private folder; afterwards returns it.

        Raises:
            PeerError: `round-dead`: m_i was computed under another ceremony and is never encrypted under this one.
        """
        sid_star = self.work.epoch.public.sid_star
        private = f"private/{self.work.plan.study}/values-{self.work.round:04d}"
        stored = self.work.context.outbox.decide(private, lambda: sid_star.encode() + compute().astype("<i8").tobytes())
        if stored[:64].decode() != sid_star:
            raise PeerError(
                "round-dead",
                self.work.plan.coordinator.name,
                f"round {self.work.round} was begun under another key ceremony.",
            )
        return np.frombuffer(stored, dtype="<i8", offset=64).astype(np.int64, copy=False)

    def encrypt(self, values: NDArray[np.int64], verdict: ContractVerdict) -> None:
        """Encrypts m_i under a one-time key and decides the contribution; everything durable, nothing sent.

        Raises:
            SiteDataError: `site-left`, if the site's people left meanwhile.
        """
        self.work.context.verify_member()

        def build(folder: Path) -> None:
            key = self.work.context.home.identity.signing
            parts = contribute(self.work.secure_sum(), self.work.context.name, values, key, folder / "bulk.bin")
            (folder / "key.bin").write_bytes(parts.key_ciphertext)
            for holder, blob in parts.shamir.items():
                (folder / f"shamir-{holder}.bin").write_bytes(blob)
            message = Contribution(
                sid_star=self.work.epoch.public.sid_star,
                round=self.work.round,
                attempt=self.work.attempt,
                instruction=self.work.instruction.digest,
                sender=self.work.context.name,
                ledger=self.work.context.ledger.position(),
                verdict=verdict,
                key_ciphertext=parts.key_digest,
                shamir=parts.shamir_digests,
                bulk_root=parts.bulk_root,
                bulk_bytes=parts.bulk_bytes,
            )
            (folder / "contribution.json").write_bytes(sign_envelope(message, self.work.plan.study, key))

        self.work.context.outbox.decide_folder(self.work.mine("contribution.json").rsplit("/", 1)[0], build)

    def upload(self) -> None:
        """Sends the decided contribution and the ledger up to it, then commits the charge."""
        outbox = self.work.context.outbox
        stored = outbox.stored(self.work.mine("contribution.json"))
        assert stored is not None
        self.work.context.publish_ledger()
        for site in self.work.plan.key_holders:
            outbox.send(self.work.mine(f"shamir-{site.name}.bin"))
        for item in ("key.bin", "bulk.bin", "contribution.json"):
            outbox.send(self.work.mine(item))
        asked, contribution = self.work.instruction.digest, sha256_hex(stored)
        commit(self.work.context.ledger, self.work.plan.study, self.work.round, asked, contribution)

    def refuse(self, error: ConsiliumError, verdict: ContractVerdict | None = None) -> None:
        """Declines this attempt: an entry in the ledger, then a signed refusal that carries the error's
        code and, for a broken contract, pass or fail per rule.

        What was decided for the attempt stays: a contribution is never followed by a refusal, nor one by another. That
        the key share is lost is said in the ledger in any case: who waits for this holder would wait for ever.
        """
        if error.code == EPOCH_LOST:
            self.work.context.ledger.append_once(NO_STUDY, said_lost(self.work.instruction.predicate.sid_star))
        if self.decided:
            self.work.context.publish_ledger()
            return
        instruction = self.work.context.store.get(
            attempt_key(self.work.plan.study, self.work.round, self.work.attempt, None, "instruction.json")
        )
        received = instruction or b""
        record_refusal(self.work.context.ledger, self.work.plan.study, received, error)
        message = Refusal(
            instruction=sha256_hex(received),
            sender=self.work.context.name,
            code=error.code,
            detail=error.message[:400] if isinstance(error, BudgetError) else "",
            ledger=self.work.context.ledger.position(),
            verdict=error.verdict if isinstance(error, ContractViolation) else verdict,
        )
        key = self.work.context.home.identity.signing
        self.work.context.outbox.answer(
            self.work.mine("refusal.json"), lambda: sign_envelope(message, self.work.plan.study, key)
        )
        # After the refusal: a published entry whose refusal is not there would look as if somebody had dropped it.
        self.work.context.publish_ledger()

    def resend(self) -> None:
        """Sends again what was decided before this process started."""
        if self.refused:
            self.work.context.outbox.send(self.work.mine("refusal.json"))
        else:
            self.upload()
