"""The key ceremony of one epoch: from fresh nonces to one collective key that nobody holds.

Phases, each one message per key holder: commit to a nonce and announce epoch keys, open it, commit to the public share,
open it and deal the secret share, self-test. Commit before open, else the last mover chooses a key that it alone can
decrypt with. State lives in memory only: a party that dies ends the ceremony, and a new epoch starts afresh.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from schemas.canonical import encode_parts, sha256_hex
from schemas.envelope import envelope_digest, open_envelope, public_hex
from schemas.errors import PeerError, PlanError
from schemas.messages import KeyCommit, KeyOpen, NonceCommit, NonceOpen, SelfTest, TranscriptSignature
from schemas.plan import Agreement
from schemas.wire import NO_REFERENCE, Kind, read_blob, write_blob
from tasks.hpke import generate_hpke_key, seal, unseal
from tasks.secure_sum import ckks
from tasks.secure_sum import transcript as rules
from tasks.secure_sum.epoch import EpochPublic, EpochSecrets, holder_points
from tasks.secure_sum.modular import Int64, UInt64, prime_field
from tasks.secure_sum.parameters import derive_parameters, derive_sid
from tasks.secure_sum.partial import ShareKeys, derive_partial
from tasks.secure_sum.sampling import os_stream, sample_binomial, sample_ternary
from tasks.secure_sum.shamir import generate_shares
from tasks.secure_sum.transcript import PHASES, derive_transcript

__all__ = ["PHASES", "CeremonyParty", "derive_public_epoch", "derive_transcript", "verify_transcript_signatures"]

_MASK_KEY_BYTES = 32
# ChaCha20-Poly1305 tag and the encapsulated key of MLKEM768-X25519.
SEALED_OVERHEAD = 1088 + 32 + 16


@dataclass(frozen=True)
class KeyOpenParts:
    """`message` is published; `public_share` and each of `sealed` (by recipient) are uploaded as blobs."""

    message: KeyOpen
    public_share: bytes
    sealed: dict[str, bytes]


@dataclass(frozen=True)
class SelfTestParts:
    """`message` is published; `shares` are uploaded in order."""

    message: SelfTest
    shares: tuple[bytes, ...]


@dataclass(frozen=True)
class FinishParts:
    """`secrets` stay with the holder; `message` is published."""

    secrets: EpochSecrets
    message: TranscriptSignature


class CeremonyParty:
    """One key holder's side of a ceremony; its methods are called once each, in order."""

    def __init__(self, plan: Agreement, epoch: int, name: str, signing_key: Ed25519PrivateKey) -> None:
        if name not in holder_points(plan):
            raise PlanError("not-a-key-holder", f"{name} holds no key in this plan.")
        if public_hex(signing_key) != plan.site(name).identity_key:
            raise PlanError("wrong-identity", f"The identity key of {name} is not the one in the plan.")
        self._plan, self._name, self._epoch, self._signing = plan, name, epoch, signing_key
        self._parameters = derive_parameters(plan)
        self._sid = derive_sid(plan, epoch)
        self._points = holder_points(plan)
        self._nonce = os.urandom(32).hex()
        self._epoch_signing = Ed25519PrivateKey.generate()
        self._epoch_hpke = generate_hpke_key()
        self._sent = {other: os.urandom(_MASK_KEY_BYTES) for other in self._points if other != name}
        self._noise = os.urandom(32)
        self._own: dict[str, object] = {}
        # What was accepted so far; a phase counts only when all of it verified, so that a refusal changes nothing.
        self._phases: list[Mapping[str, rules.CeremonyMessage]] = []

    @classmethod
    def begin(cls, plan: Agreement, epoch: int, name: str, signing_key: Ed25519PrivateKey) -> CeremonyParty:
        """Starts the ceremony of `epoch` with fresh keys of every kind; nothing is kept from an earlier one."""
        return cls(plan, epoch, name, signing_key)

    def nonce_commit(self) -> NonceCommit:
        """Commits to a nonce and announces the fresh epoch keys."""
        return self._remember(
            NonceCommit(
                sid=self._sid,
                sender=self._name,
                commitment=rules.commit_nonce(self._sid, self._name, self._nonce),
                epoch_signing_key=public_hex(self._epoch_signing),
                epoch_hpke_key=self._epoch_hpke.public_hex,
            )
        )

    def nonce_open(self, commits: Mapping[str, NonceCommit]) -> NonceOpen:
        """Opens the nonce after everybody committed."""
        rules.verify_nonce_commits(self._plan, commits)
        self._commits = self._phase(0, commits)
        self._phases.append(self._commits)
        return self._remember(NonceOpen(sid=self._sid, sender=self._name, nonce=self._nonce))

    def key_commit(self, opens: Mapping[str, NonceOpen]) -> KeyCommit:
        """Derives the common polynomial, draws the secret and commits to its public share."""
        self._nonces = self._phase(1, opens)
        self._seed = rules.derive_seed(self._sid, self._commits, self._nonces)
        self._phases.append(self._nonces)
        self._secret, public = self._generate_key()
        self._public_blob = rules.write_public_share(self._plan, self._sid, self._name, public, self._signing)
        self._blinding = os.urandom(32).hex()
        commitment = rules.commit_key(self._sid, self._name, self._blinding, sha256_hex(self._public_blob))
        return self._remember(KeyCommit(sid=self._sid, sender=self._name, commitment=commitment))

    def key_open(self, commits: Mapping[str, KeyCommit]) -> KeyOpenParts:
        """Opens the public share and seals one share of the secret, with a mask key, to every other holder."""
        self._key_commits = self._phase(2, commits)
        self._phases.append(self._key_commits)
        shares = self._deal()
        self._own_share = shares.pop(self._name)
        sealed = {other: self._seal(other, share) for other, share in shares.items()}
        message = KeyOpen(
            sid=self._sid,
            sender=self._name,
            blinding=self._blinding,
            public_share=sha256_hex(self._public_blob),
            sealed=tuple((other, sha256_hex(blob)) for other, blob in sorted(sealed.items())),
        )
        # The secret is erased: from here on only shares of it exist.
        del self._secret
        return KeyOpenParts(self._remember(message), self._public_blob, sealed)

    def self_test(
        self, opens: Mapping[str, KeyOpen], public_shares: Mapping[str, bytes], sealed: Mapping[str, bytes]
    ) -> SelfTestParts:
        """Sums public shares and dealt shares, and answers every self-test whose set the holder is in.

        Args:
            opens: All key openings.
            public_shares: Public-share blob of every holder.
            sealed: What every other holder sealed to this one.
        """
        self._opens = self._phase(3, opens)
        rules.verify_key_opens(self._plan, self._key_commits, self._opens)
        self._public_key = rules.sum_public_key(self._plan, self._sid, self._seed, self._opens, public_shares)
        self._keys = self._collect(sealed)
        self._phases.append(self._opens)
        self._test_seed = rules.derive_test_seed(self._phases)
        blobs = tuple(self._test_share(number) for number in rules.own_tests(self._plan, self._name))
        digests = tuple(sha256_hex(blob) for blob in blobs)
        return SelfTestParts(self._remember(SelfTest(sid=self._sid, sender=self._name, shares=digests)), blobs)

    def finish(
        self,
        tests: Mapping[str, SelfTest],
        shares: Mapping[str, Sequence[bytes]],
        digests: Mapping[tuple[str, str], str],
    ) -> FinishParts:
        """Verifies every self-test and signs the transcript.

        Args:
            tests: All self-test messages.
            shares: Self-test blobs of every holder, in order.
            digests: Envelope digests by (phase, holder), for all five phases.
        """
        verified = self._phase(4, tests)
        rules.verify_self_tests(self._plan, self._sid, self._public_key, self._test_seed, verified, shares)
        transcript, sid_star = derive_transcript(self._plan, self._epoch, digests)
        self._phases.append(verified)
        secrets = EpochSecrets(
            self._name, self._epoch, sid_star, transcript, self._keys, self._epoch_signing, self._epoch_hpke
        )
        message = TranscriptSignature(sid=self._sid, sender=self._name, transcript=transcript, sid_star=sid_star)
        return FinishParts(secrets, message)

    def _remember(self, message: rules.T) -> rules.T:
        self._own[type(message).__name__] = message
        return message

    def _phase(self, number: int, messages: Mapping[str, rules.T]) -> dict[str, rules.T]:
        if len(self._phases) != number:
            raise PeerError("ceremony-order", "coordinator", "a ceremony phase came twice or out of order.")
        verified = rules.verify_phase(self._plan, self._sid, messages)
        mine = verified[self._name]
        if mine != self._own.get(type(mine).__name__):
            raise PeerError("ceremony-mismatch", "coordinator", "this holder's own message came back altered.")
        return verified

    def _generate_key(self) -> tuple[Int64, UInt64]:
        p, stream = self._parameters, os_stream()
        primes = ckks.ring_primes(p)
        secret = ckks.transform(p, sample_ternary(stream, p.ring_degree), primes)
        error = ckks.transform(p, sample_binomial(stream, p.ring_degree), primes)
        product = ckks.multiply(ckks.expand_common(p, self._sid, self._seed), secret, primes)
        rows = []
        for prime, left, right in zip(primes, product, error, strict=True):
            rows.append(prime_field(prime).canonical(-(left + right).view(np.int64)))
        return secret[: len(p.data_primes)].view(np.int64), np.stack(rows)

    def _deal(self) -> dict[str, UInt64]:
        p, stream = self._parameters, os_stream()
        rows: dict[str, list[Int64]] = {name: [] for name in self._points}
        for prime, row in zip(p.data_primes, self._secret, strict=True):
            shares = generate_shares(prime_field(prime), row, p.threshold, p.key_holders, stream)
            for name, share in zip(self._points, shares, strict=True):
                rows[name].append(share)
        return {name: np.stack(parts).view(np.uint64) for name, parts in rows.items()}

    def _seal(self, other: str, share: UInt64) -> bytes:
        plaintext = rules.pack_rows(share, self._parameters.data_primes) + self._sent[other]
        info = _seal_info(self._sid, self._name, other)
        header = rules.ceremony_header(self._plan, self._sid, Kind.SEALED_KEY, self._name, other)
        return write_blob(header, seal(self._commits[other].epoch_hpke_key, info, plaintext), self._signing)

    def _collect(self, sealed: Mapping[str, bytes]) -> ShareKeys:
        p = self._parameters
        total, received = self._own_share, {}
        for sender, message in self._opens.items():
            if sender == self._name:
                continue
            blob = rules.require_blob(sealed, sender, dict(message.sealed)[self._name])
            share, received[sender] = self._unseal(sender, blob)
            total = ckks.add(p, total, share)
        return ShareKeys(sigma=total, sent=self._sent, received=received, noise=self._noise)

    def _unseal(self, sender: str, blob: bytes) -> tuple[UInt64, bytes]:
        p = self._parameters
        size = rules.packed_size(p.data_primes, p.ring_degree)
        header = rules.ceremony_header(self._plan, self._sid, Kind.SEALED_KEY, sender, self._name)
        key = self._plan.site(sender).identity_key
        body = read_blob(blob, header, size + _MASK_KEY_BYTES + SEALED_OVERHEAD, key, sender)
        plaintext = unseal(self._epoch_hpke, _seal_info(self._sid, sender, self._name), bytes(body))
        if plaintext is None:
            raise PeerError("ceremony-sealed", sender, "the share it dealt to this holder does not open.")
        return rules.unpack_rows(plaintext[:size], p.data_primes, p.ring_degree, sender), plaintext[size:]

    def _test_share(self, number: int) -> bytes:
        p = self._parameters
        active = rules.self_test_active(self._plan, number)
        _, ciphertext = ckks.self_test_ciphertext(p, self._public_key, self._test_seed, number)
        label = encode_parts("self-test-share", bytes.fromhex(self._sid), bytes.fromhex(self._test_seed), number)
        part = derive_partial(p, self._keys, self._name, active, ciphertext, label, lambda x: ckks.inverse(p, x))
        header = rules.ceremony_header(self._plan, self._sid, Kind.SELF_TEST, self._name, number=number + 1)
        return write_blob(header, rules.pack_rows(part, p.data_primes), self._signing)


def ceremony_blob_bytes(plan: Agreement, kind: Kind, sender: str, recipient: str = "") -> int:
    """Returns the exact size of a ceremony blob, whatever the epoch and the number of the self-test."""
    p = derive_parameters(plan)
    bodies = {
        Kind.PUBLIC_SHARE: rules.packed_size(ckks.ring_primes(p), p.ring_degree),
        Kind.SEALED_KEY: rules.packed_size(p.data_primes, p.ring_degree) + _MASK_KEY_BYTES + SEALED_OVERHEAD,
        Kind.SELF_TEST: rules.packed_size(p.data_primes, p.bulk_degree),
    }
    return rules.ceremony_header(plan, NO_REFERENCE, kind, sender, recipient).blob_bytes(bodies[kind])


def derive_public_epoch(
    plan: Agreement,
    epoch: int,
    envelopes: Mapping[tuple[str, str], bytes],
    blobs: Mapping[tuple[str, str], bytes],
) -> EpochPublic:
    """Verifies everything public of a ceremony and returns its result; no secret is needed.

    Args:
        plan: The signed plan.
        epoch: Which epoch.
        envelopes: Envelope bytes by (phase, holder): the five `PHASES` and ``transcript``.
        blobs: ("public-share", holder) and ("self-test-<k>", holder), k from 1.

    Raises:
        PeerError: the first rule that is broken, naming the holder at fault or the active set.
    """
    sid = derive_sid(plan, epoch)
    names = [site.name for site in plan.key_holders]
    commits = _open_phase(plan, sid, "nonce-commit", NonceCommit, envelopes)
    nonces = _open_phase(plan, sid, "nonce-open", NonceOpen, envelopes)
    key_commits = _open_phase(plan, sid, "key-commit", KeyCommit, envelopes)
    opens = _open_phase(plan, sid, "key-open", KeyOpen, envelopes)
    tests = _open_phase(plan, sid, "self-test", SelfTest, envelopes)
    rules.verify_nonce_commits(plan, commits)
    seed = rules.derive_seed(sid, commits, nonces)
    rules.verify_key_opens(plan, key_commits, opens)
    shares = {name: blobs[item, name] for item, name in blobs if item == "public-share"}
    public_key = rules.sum_public_key(plan, sid, seed, opens, shares)
    test_seed = rules.derive_test_seed([commits, nonces, key_commits, opens])
    test_blobs = {
        name: [blobs.get((f"self-test-{k}", name), b"") for k in range(1, len(tests[name].shares) + 1)]
        for name in names
    }
    rules.verify_self_tests(plan, sid, public_key, test_seed, tests, test_blobs)
    digests = {(phase, name): envelope_digest(envelopes[phase, name]) for phase in PHASES for name in names}
    transcript, sid_star = derive_transcript(plan, epoch, digests)
    signatures = _open_phase(plan, sid, "transcript", TranscriptSignature, envelopes)
    verify_transcript_signatures(transcript, sid_star, signatures)
    return EpochPublic(
        study=plan.study,
        epoch=epoch,
        sid=sid,
        transcript=transcript,
        sid_star=sid_star,
        public_key=public_key,
        signing_keys={name: commits[name].epoch_signing_key for name in names},
        hpke_keys={name: commits[name].epoch_hpke_key for name in names},
    )


def verify_transcript_signatures(transcript: str, sid_star: str, signatures: Mapping[str, TranscriptSignature]) -> None:
    """Refuses a ceremony that two holders saw differently.

    Raises:
        PeerError: `transcript-fork`.
    """
    for name, message in signatures.items():
        if (message.transcript, message.sid_star) != (transcript, sid_star):
            raise PeerError(
                "transcript-fork", name, "it signed another transcript.", "Start a new ceremony; somebody equivocated."
            )


def _open_phase(
    plan: Agreement, sid: str, phase: str, model: type[rules.T], envelopes: Mapping[tuple[str, str], bytes]
) -> dict[str, rules.T]:
    opened = {
        name: open_envelope(model, data, plan.study, plan.site(name).identity_key, name)
        for (found, name), data in envelopes.items()
        if found == phase
    }
    return rules.verify_phase(plan, sid, opened)


def _seal_info(sid: str, sender: str, recipient: str) -> bytes:
    return encode_parts("sealed-key", bytes.fromhex(sid), sender, recipient)
