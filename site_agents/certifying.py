"""A key holder's part of a round: check sealed shares, certify the only record, answer share requests.

Invariants: one record per round is ever registered, and registered before anything is signed or shared for it; no share
leaves for a record that this site did not check itself; a stored share is replayed, never computed again.
"""

from __future__ import annotations

from schemas.canonical import sha256_hex
from schemas.envelope import sign_envelope
from schemas.errors import PeerError
from schemas.layout import attempt_key, round_key
from schemas.ledger import RecordSigned, ShareReleased
from schemas.messages import (
    Collected,
    Contribution,
    DecryptionShare,
    Record,
    RecordSignature,
    ShareRequest,
    SharesChecked,
)
from schemas.plan import Agreement
from site_agents.round import SiteRound
from tasks.rounds import MAXIMUM_REQUESTS, read_certificate, read_opening, read_record, read_request
from tasks.secure_sum.context import RoundContext
from tasks.secure_sum.epoch import EpochSecrets
from tasks.secure_sum.record import find_shamir_faults, key_ciphertext_bytes, sealed_shamir_bytes, verify_record
from tasks.secure_sum.share import make_share
from tasks.storage.mailbox import Signed, read_blob, read_signed


class Certifying:
    """The certifying and opening half of a site's round."""

    def __init__(self, work: SiteRound[Agreement]) -> None:
        self.work = work
        self._accepted: dict[str, bytes] = {}
        # By digest: what was checked stays what it was, though its sender may replace it where the store lets it.
        self._sealed_shares: dict[str, bytes] = {}
        self._key_ciphertexts: dict[str, bytes] = {}

    def check_shares(self) -> bool:
        """Opens the sealed shares of all collected contributions and answers which senders are faulty.

        Faulty is also a sender whose contribution, share or key ciphertext is no longer what it signed.

        Returns:
            False while the coordinator has not closed the collection, and at a site that holds no key.
        """
        if self.work.epoch.secrets is None:
            return False
        self.work.context.verify_member()
        name, study = self.work.context.name, self.work.plan.study
        coordinator = self.work.plan.coordinator
        key = attempt_key(study, self.work.round, self.work.attempt, None, "collected.json")
        collected = read_signed(
            self.work.context.store, key, Collected, study, coordinator.identity_key, coordinator.name
        )
        if collected is None:
            return False
        context = self.work.secure_sum()
        contributions, faulty = self._read_collected(context, collected.predicate)
        blobs = {sender: self._sealed(context, sender, given) for sender, given in contributions.items()}
        faulty += find_shamir_faults(self.work.epoch.secrets, context, contributions, blobs)
        message = SharesChecked(
            sid_star=self.work.epoch.public.sid_star,
            round=self.work.round,
            attempt=self.work.attempt,
            holder=name,
            collected=collected.digest,
            faulty=tuple(sorted(faulty)),
        )
        signing = self.work.epoch.secrets.signing_key
        self.work.context.outbox.answer(
            self.work.mine("shares-checked.json"), lambda: sign_envelope(message, study, signing)
        )
        return True

    def certify(self) -> bool:
        """Checks the proposed record, registers it as the round's only one, and signs it.

        Returns:
            False while there is no record, and at a site that holds no key.

        Raises:
            PeerError: the record must not be certified, or it is a second one.
        """
        record = read_record(self.work.context.store, self.work.plan, self.work.round)
        if record is None or self.work.epoch.secrets is None:
            return False
        self.work.context.verify_member()
        secrets = self.work.epoch.secrets
        self._accept_record(record, secrets)
        message = RecordSignature(
            sid_star=self.work.epoch.public.sid_star,
            round=self.work.round,
            holder=self.work.context.name,
            record=record.digest,
        )
        self.work.context.ledger.append_once(
            self.work.plan.study, RecordSigned(round=self.work.round, record=record.digest)
        )
        self.work.context.outbox.answer(
            self.work.of_round("record-signature.json"),
            lambda: sign_envelope(message, self.work.plan.study, secrets.signing_key),
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
            request = read_request(self.work.context.store, self.work.plan, self.work.round, number)
            if request is None or self.work.epoch.secrets is None:
                break
            if self.work.context.name in request.predicate.active_set:
                # The secrets may have been read before they were erased: whoever left shares nothing more.
                self.work.context.verify_member()
                self._answer(request, self.work.epoch.secrets)
                answered += 1
        return answered

    @property
    def collected(self) -> bool:
        """Whether the coordinator has closed the collection of this attempt."""
        key = attempt_key(self.work.plan.study, self.work.round, self.work.attempt, None, "collected.json")
        return self.work.context.store.exists(key)

    @property
    def proposed(self) -> bool:
        """Whether the coordinator has proposed a record."""
        return read_record(self.work.context.store, self.work.plan, self.work.round) is not None

    def count_requests(self, known: int) -> int:
        """Returns how many share requests there are, of which `known` were seen before."""
        number = known
        while number < MAXIMUM_REQUESTS and self.work.context.store.exists(
            round_key(self.work.plan.study, self.work.round, None, f"request-{number + 1}.json")
        ):
            number += 1
        return number

    @property
    def opened(self) -> bool:
        """Whether the coordinator has published the round's opening."""
        return read_opening(self.work.context.store, self.work.plan, self.work.round) is not None

    # --- parts

    def _read_collected(
        self, context: RoundContext, collected: Collected
    ) -> tuple[dict[str, Contribution], tuple[str, ...]]:
        """Reads and keeps what this holder needs of each contribution; returns them, and the senders at fault."""
        found: dict[str, Contribution] = {}
        faulty: tuple[str, ...] = ()
        for sender, digest in collected.contributions:
            try:
                contribution = self.work.contribution(sender, digest).predicate
                self._sealed(context, sender, contribution)
                self._key_blob(context, sender, contribution)
            except PeerError:
                faulty += (sender,)
            else:
                found[sender] = contribution
        return found, faulty

    def _sealed(self, context: RoundContext, sender: str, contribution: Contribution) -> bytes:
        name = self.work.context.name
        digest, size = dict(contribution.shamir)[name], sealed_shamir_bytes(context, sender, name)
        return self._read(self._sealed_shares, sender, f"shamir-{name}.bin", digest, size)

    def _key_blob(self, context: RoundContext, sender: str, contribution: Contribution) -> bytes:
        size = key_ciphertext_bytes(context, sender)
        return self._read(self._key_ciphertexts, sender, "key.bin", contribution.key_ciphertext, size)

    def _read(self, kept: dict[str, bytes], sender: str, item: str, digest: str, size_bytes: int) -> bytes:
        if digest not in kept:
            key = attempt_key(self.work.plan.study, self.work.round, self.work.attempt, sender, item)
            kept[digest] = read_blob(self.work.context.store, key, digest, sender, size_bytes)
        return kept[digest]

    def _accept_record(self, record: Signed[Record], secrets: EpochSecrets) -> bytes:
        """Checks a record as section 3.4 of the design asks, registers it, and returns the sum of key ciphertexts."""
        if self.work.context.released:
            raise PeerError("study-released", self.work.plan.coordinator.name, "the study was released: it is closed.")
        own = self.work.context.outbox.stored(self.work.mine("contribution.json"))
        registered = self.work.context.keystore.registered_record(record.predicate.epoch, self.work.round)
        if registered not in (None, record.digest):
            raise PeerError(
                "second-record",
                self.work.plan.coordinator.name,
                f"a second record was proposed for round {self.work.round}.",
            )
        if record.digest in self._accepted:
            # Signed a moment ago by this very object; what the sum consists of is bound by the record's digest.
            return self._accepted[record.digest]
        context, contributions = self.work.secure_sum(), self.work.contributions(record.predicate.contributions)
        key_blobs = {s: self._key_blob(context, s, c.predicate) for s, c in contributions.items()}
        sealed = {s: self._sealed(context, s, c.predicate) for s, c in contributions.items()}
        envelopes = {s: c.data for s, c in contributions.items()}
        total = verify_record(secrets, context, record.predicate, envelopes, key_blobs, sealed, own)
        self.work.context.keystore.register_record(record.predicate.epoch, self.work.round, record.digest)
        self._accepted[record.digest] = total.blob
        self._key_ciphertexts.clear()  # large, and added
        return total.blob

    def _answer(self, request: Signed[ShareRequest], secrets: EpochSecrets) -> None:
        number = request.predicate.number
        blob_key, message_key = self.work.of_round(f"share-{number}.bin"), self.work.of_round(f"share-{number}.json")
        if self.work.context.outbox.stored(message_key) is None:
            record = read_record(self.work.context.store, self.work.plan, self.work.round)
            if record is None:
                raise PeerError("request-mismatch", self.work.plan.coordinator.name, "there is no record to share for.")
            key_sum = self._accept_record(record, secrets)
            blob = self.work.context.outbox.decide(
                blob_key, lambda: self._make_share(record, request, secrets, key_sum)
            )
            message = DecryptionShare(
                sid_star=self.work.epoch.public.sid_star,
                round=self.work.round,
                holder=self.work.context.name,
                record=record.digest,
                request=request.digest,
                share=sha256_hex(blob),
            )
            body = ShareReleased(
                round=self.work.round, record=record.digest, request=request.digest, share=sha256_hex(blob)
            )
            self.work.context.ledger.append_once(self.work.plan.study, body)
            self.work.context.outbox.decide(
                message_key, lambda: sign_envelope(message, self.work.plan.study, secrets.signing_key)
            )
        self.work.context.outbox.send(blob_key)
        self.work.context.outbox.send(message_key)

    def _make_share(
        self, record: Signed[Record], request: Signed[ShareRequest], secrets: EpochSecrets, key_sum: bytes
    ) -> bytes:
        context, contributions = self.work.secure_sum(), self.work.contributions(record.predicate.contributions)
        sealed = {s: self._sealed(context, s, c.predicate) for s, c in contributions.items()}
        keys = self.work.epoch.public.signing_keys
        certificate = read_certificate(self.work.context.store, self.work.plan, keys, record, request)
        return make_share(
            secrets,
            context,
            record.predicate,
            record.digest,
            request.predicate,
            certificate,
            key_sum,
            {s: c.data for s, c in contributions.items()},
            sealed,
        )
