"""The second half of a round at the coordinator, as steps that never wait: add, propose, certify, request, open, apply.

Invariants: there is one record per round, durable before anybody sees it; a sum is opened only for a certificate of Q
signatures; what was opened is recomputed from the published messages before the study goes on.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from flows.active_sets import ActiveSet, choose_active_set
from flows.round_steps import Answers, Reason, SumSteps
from schemas.canonical import sha256_hex
from schemas.errors import OperationError, PeerError
from schemas.layout import attempt_key, round_key
from schemas.ledger import RecordProposed, SumOpened
from schemas.messages import Collected, Contribution, Instruction, Opening, Record, ShareRequest
from tasks.rounds import (
    MAXIMUM_REQUESTS,
    read_contribution,
    read_opening,
    read_record,
    read_record_signature,
    read_request,
    read_share,
)
from tasks.secure_sum.bulk import add_bulk
from tasks.secure_sum.opening import open_sum, share_blob_bytes, verify_share
from tasks.secure_sum.record import KeySum, add_key_ciphertexts, key_ciphertext_bytes
from tasks.storage.mailbox import Signed, read_blob

Shares = dict[str, tuple[str, bytes]]
_NOT_OPENED = frozenset({"share-mismatch", "bulk-residual"})


class OpeningSteps:
    """From closed collection to the published opening of one round."""

    def __init__(self, steps: SumSteps) -> None:
        self.steps = steps

    # --- record

    def propose(
        self,
        instruction: Signed[Instruction],
        answers: Answers,
        collected: Signed[Collected],
        checks: dict[str, tuple[str, ...]],
    ) -> Signed[Record]:
        """Adds the contributions that verify and decides on the round's only record.

        The record comes before the sums, which follow from it: a coordinator that dies in between adds them again.

        Raises:
            OperationError: `too-few-contributions`.
        """
        existing = read_record(self.steps.context.store, self.steps.plan, self.steps.round)
        if existing is None:
            listed = dict(collected.predicate.contributions)
            for site in sorted(self._named_faulty(checks, set(listed)) & set(listed)):
                answers.invalid.setdefault(site, "faulty-share")
            listed = {site: digest for site, digest in listed.items() if site not in answers.invalid}
            with TemporaryDirectory(dir=self.steps.context.home) as folder:
                key_sum, bulk_sum = self._add_valid(instruction, answers, listed, Path(folder))
                record = Record(
                    sid_star=self.steps.public.sid_star,
                    epoch=self.steps.public.epoch,
                    round=self.steps.round,
                    attempt=self.steps.attempt,
                    instruction=instruction.digest,
                    contributions=tuple(sorted(listed.items())),
                    dropped=self._dropped(instruction, answers, set(listed)),
                    key_sum=key_sum.digest,
                )
                self.steps.publish(round_key(self.steps.plan.study, self.steps.round, None, "record.json"), record)
                self._publish_sums(key_sum, bulk_sum)
        return self.complete_record(instruction)

    def complete_record(self, instruction: Signed[Instruction]) -> Signed[Record]:
        """Finishes what the decided record needs, also after a crash or in a restored home: its sums, its log entry."""
        existing = read_record(self.steps.context.store, self.steps.plan, self.steps.round)
        assert existing is not None
        self._complete_sums(instruction, existing)
        dropped = tuple((site, str(reason)) for site, reason in existing.predicate.dropped)
        self.steps.context.log.append_once(
            self.steps.plan.study, RecordProposed(round=self.steps.round, record=existing.digest, dropped=dropped)
        )
        return existing

    def read_signatures(self, record: Signed[Record]) -> dict[str, str]:
        """Returns (holder -> envelope digest) of the valid signatures on the record."""
        found: dict[str, str] = {}
        for holder, epoch_key in self.steps.public.signing_keys.items():
            try:
                signature = read_record_signature(self.steps.context.store, self.steps.plan, holder, epoch_key, record)
            except PeerError:
                continue
            if signature is not None:
                found[holder] = signature.digest
        return found

    # --- opening

    def request(
        self,
        record: Signed[Record],
        number: int,
        signatures: dict[str, str],
        silent: set[str],
        failed: Collection[ActiveSet] = (),
    ) -> Signed[ShareRequest]:
        """Decides the active set number `number`: holders that certified and did not stay silent before.

        Args:
            failed: The sets that answered before and did not open.

        Raises:
            OperationError: `no-quorum`, `no-active-set`.
        """
        key = round_key(self.steps.plan.study, self.steps.round, None, f"request-{number}.json")
        if not self.steps.context.store.exists(key):
            numbers = self.steps.plan.threshold
            if len(signatures) < numbers.certificate_quorum:
                raise OperationError(
                    "no-quorum",
                    f"Round {self.steps.round}: expected Q = {numbers.certificate_quorum} signatures on the record.",
                    "Start the agents of the silent key holders and resume.",
                )
            active = choose_active_set(set(signatures) - silent, numbers.t, failed)
            if active is None or number > MAXIMUM_REQUESTS:
                raise self._no_active_set(silent, failed)
            self.steps.publish(
                key,
                ShareRequest(
                    sid_star=self.steps.public.sid_star,
                    round=self.steps.round,
                    record=record.digest,
                    certificate=tuple(sorted(signatures.items())),
                    active_set=active,
                    number=number,
                ),
            )
        found = read_request(self.steps.context.store, self.steps.plan, self.steps.round, number)
        assert found is not None
        return found

    def read_shares(
        self, instruction: Signed[Instruction], record: Signed[Record], request: Signed[ShareRequest]
    ) -> Shares:
        """Returns (holder -> (envelope digest, share blob)) of the answers that have arrived and verify."""
        shares: Shares = {}
        context = self.steps.round_context(instruction)
        for holder in request.predicate.active_set:
            try:
                found = read_share(
                    self.steps.context.store, self.steps.plan, holder, self.steps.public.signing_keys[holder], request
                )
                if found is not None:
                    key = round_key(
                        self.steps.plan.study, self.steps.round, holder, f"share-{request.predicate.number}.bin"
                    )
                    size = share_blob_bytes(context, holder)
                    blob = read_blob(self.steps.context.store, key, found.predicate.share, holder, size)
                    verify_share(context, record.digest, request.predicate, holder, blob)
                    shares[holder] = (found.digest, blob)
            except PeerError:
                continue
        return shares

    def asked(self, instruction: Signed[Instruction], record: Signed[Record]) -> list[tuple[ActiveSet, Shares, bool]]:
        """Returns every active set that was asked, the shares that came from it, and whether they open the sum."""
        found: list[tuple[ActiveSet, Shares, bool]] = []
        for number in range(1, MAXIMUM_REQUESTS + 1):
            request = read_request(self.steps.context.store, self.steps.plan, self.steps.round, number)
            if request is None:
                break
            shares = self.read_shares(instruction, record, request)
            opens = self._open(instruction, record, request, shares) is not None
            found.append((request.predicate.active_set, shares, opens))
        return found

    def open(
        self, instruction: Signed[Instruction], record: Signed[Record], request: Signed[ShareRequest], shares: Shares
    ) -> NDArray[np.int64] | None:
        """Opens the certified sum and publishes it with the model that follows.

        Returns:
            The opened int64 sum; None if a share is missing, or if what the active set answered does not open it: then
            a share or a contribution is wrong, and another set may open.

        Raises:
            PeerError: what was published before does not verify.
        """
        store, study = self.steps.context.store, self.steps.plan.study
        digest = self._digest(round_key(study, self.steps.round, None, "bulk-sum.bin"))
        opened = self._open(instruction, record, request, shares, digest)
        if opened is None:
            return None
        result = opened.astype("<i8").tobytes()
        store.put(round_key(study, self.steps.round, None, "result.bin"), result)
        self.steps.publish(
            round_key(study, self.steps.round, None, "opening.json"),
            Opening(
                sid_star=self.steps.public.sid_star,
                round=self.steps.round,
                attempt=self.steps.attempt,
                record=record.digest,
                request=request.digest,
                shares=tuple((holder, shares[holder][0]) for holder in sorted(shares)),
                bulk_sum=digest,
                result=sha256_hex(result),
                model=self.steps.digest_after(opened),
            ),
        )
        return opened

    def log_opening(self) -> Signed[Opening]:
        """Enters the published opening into the study log."""
        opening = read_opening(self.steps.context.store, self.steps.plan, self.steps.round)
        assert opening is not None
        self.steps.context.log.append_once(
            self.steps.plan.study,
            SumOpened(round=self.steps.round, opening=opening.digest, model=opening.predicate.model),
        )
        return opening

    # --- parts

    def _open(
        self,
        instruction: Signed[Instruction],
        record: Signed[Record],
        request: Signed[ShareRequest],
        shares: Shares,
        bulk_digest: str | None = None,
    ) -> NDArray[np.int64] | None:
        if set(shares) != set(request.predicate.active_set):
            return None
        store, study = self.steps.context.store, self.steps.plan.study
        key_sum = store.get(round_key(study, self.steps.round, None, "key-sum.bin"))
        assert key_sum is not None
        blobs = {holder: blob for holder, (_, blob) in shares.items()}
        with store.open(round_key(study, self.steps.round, None, "bulk-sum.bin")) as bulk_sum:
            try:
                return open_sum(
                    self.steps.round_context(instruction),
                    record.predicate,
                    record.digest,
                    request.predicate,
                    key_sum,
                    bulk_sum,
                    blobs,
                    bulk_digest,
                )
            except PeerError as error:
                if error.code not in _NOT_OPENED:
                    raise
                return None

    def _no_active_set(self, silent: set[str], failed: Collection[ActiveSet]) -> OperationError:
        return OperationError(
            "no-active-set",
            f"Round {self.steps.round}: expected t = {self.steps.plan.threshold.t} key holders that answer and whose "
            f"shares open the sum; there is no further active set (silent: {', '.join(sorted(silent)) or 'nobody'}; "
            f"sets that answered and do not open it: {len(failed)}).",
            "Start the agents of the silent key holders and resume.",
        )

    def _named_faulty(self, checks: dict[str, tuple[str, ...]], senders: set[str]) -> set[str]:
        """Returns whom the holders name, without those who name so many that no sum would be left.

        Such a holder will not sign the record, whether it lies or was lied to; the certificate asks for Q others.
        """
        numbers, heard = self.steps.plan.threshold, sorted(checks.values(), key=len)
        faulty = {sender for named in heard for sender in named}
        while len(senders - faulty) < numbers.k_min and len(heard) > numbers.certificate_quorum:
            heard.pop()
            faulty = {sender for named in heard for sender in named}
        return faulty

    def _dropped(
        self, instruction: Signed[Instruction], answers: Answers, senders: set[str]
    ) -> tuple[tuple[str, Reason], ...]:
        def reason(site: str) -> Reason:
            if site in answers.refusals:
                return "refused"
            return "invalid" if site in answers.invalid else "silent"

        return tuple((site, reason(site)) for site in instruction.predicate.participants if site not in senders)

    def _add_valid(
        self, instruction: Signed[Instruction], answers: Answers, listed: dict[str, str], folder: Path
    ) -> tuple[KeySum, Path]:
        # A site that signs and then sends something else is left out by name; it does not stop the round.
        while True:
            self.steps.verify_enough(instruction, answers, set(listed))
            try:
                return self._add(instruction, listed, folder)
            except PeerError as error:
                faulty = set(error.peer.split(",")) & set(listed)
                if not faulty:
                    raise
                for site in faulty:
                    answers.invalid[site] = error.code
                    del listed[site]

    def _complete_sums(self, instruction: Signed[Instruction], record: Signed[Record]) -> None:
        keys = [round_key(self.steps.plan.study, self.steps.round, None, n) for n in ("key-sum.bin", "bulk-sum.bin")]
        if not all(self.steps.context.store.exists(key) for key in keys):
            with TemporaryDirectory(dir=self.steps.context.home) as folder:
                listed = dict(record.predicate.contributions)
                self._publish_sums(*self._add(instruction, listed, Path(folder)))

    def _publish_sums(self, key_sum: KeySum, bulk_sum: Path) -> None:
        store, study, number = self.steps.context.store, self.steps.plan.study, self.steps.round
        store.put(round_key(study, number, None, "key-sum.bin"), key_sum.blob)
        store.put_file(round_key(study, number, None, "bulk-sum.bin"), bulk_sum)

    def _add(self, instruction: Signed[Instruction], listed: dict[str, str], folder: Path) -> tuple[KeySum, Path]:
        contributions = {site: self._contribution(instruction, site, digest) for site, digest in listed.items()}
        context, blobs = self.steps.round_context(instruction), {}
        sources: dict[str, tuple[Contribution, Path | bytes]] = {}
        for site, contribution in contributions.items():
            place = partial(attempt_key, self.steps.plan.study, self.steps.round, self.steps.attempt, site)
            size = key_ciphertext_bytes(context, site)
            blobs[site] = read_blob(self.steps.context.store, place("key.bin"), contribution.key_ciphertext, site, size)
            target = folder / f"{site}.bin"
            sources[site] = (
                contribution,
                target if target.exists() else self.steps.download_bulk(contribution, target),
            )
        add_bulk(context, sources, folder / "bulk-sum.bin")
        return add_key_ciphertexts(context, contributions, blobs), folder / "bulk-sum.bin"

    def _contribution(self, instruction: Signed[Instruction], site: str, digest: str) -> Contribution:
        found = read_contribution(self.steps.context.store, self.steps.plan, site, instruction)
        if found is None or found.digest != digest:
            raise PeerError("contribution-changed", site, "its contribution is not the one that was collected.")
        return found.predicate

    def _digest(self, key: str) -> str:
        digest = sha256()
        with self.steps.context.store.open(key) as source:
            while block := source.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()


class ActiveSets:
    """The active sets of one record: which is asked next, and what became of those that were.

    A request that an earlier run made is read back, and its shares are tried again: so this run comes to the same next
    set as that one would have.
    """

    def __init__(self, opening: OpeningSteps, instruction: Signed[Instruction], record: Signed[Record]) -> None:
        self.silent: set[str] = set()
        self.failed: list[ActiveSet] = []
        self._opening = opening
        self._instruction = instruction
        self._record = record
        self._number = 0

    def next(self, signatures: dict[str, str]) -> Signed[ShareRequest]:
        """Asks the next set, of holders that certified and were not silent.

        Raises:
            OperationError: `no-quorum`; `no-active-set` when there is no further one, or 16 were asked.
        """
        self._number += 1
        return self._opening.request(self._record, self._number, signatures, self.silent, self.failed)

    def open(self, request: Signed[ShareRequest], shares: Shares) -> bool:
        """Opens the sum with what a set answered; otherwise remembers who was silent, or that the set does not open it.

        Raises:
            PeerError: what was published before does not verify.
        """
        missing = set(request.predicate.active_set) - set(shares)
        if not missing and self._opening.open(self._instruction, self._record, request, shares) is not None:
            return True
        self.silent |= missing
        if not missing:
            self.failed.append(request.predicate.active_set)
        return False
