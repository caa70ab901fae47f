"""A site's part of a key ceremony, as steps that never wait.

Invariants: one sid per epoch and epochs only increase; secrets are drawn once per epoch and process (a restarted agent
does not draw new ones after announcing others: that epoch is dead and the coordinator opens the next); the secrets are
in the memory folder before the transcript is signed; the transcript binds every message, so that a coordinator who told
two holders different things gets no signature that fits both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from schemas.canonical import MAX_JSON_BYTES, sha256_hex
from schemas.envelope import Predicate, sign_envelope
from schemas.errors import PeerError
from schemas.layout import ceremony_key
from schemas.ledger import KeyCeremony
from schemas.messages import CeremonyInstruction, KeyCommit, KeyOpen, NonceCommit, NonceOpen, SelfTest
from schemas.plan import Agreement
from schemas.wire import Kind
from site_agents.context import SiteContext
from site_agents.epoch import public_epoch
from site_agents.policy import verify_member
from tasks.ceremonies import missing_messages
from tasks.secure_sum.ceremony import CeremonyParty, ceremony_blob_bytes
from tasks.secure_sum.parameters import derive_sid, parameters_digest
from tasks.secure_sum.transcript import PHASES, own_tests
from tasks.storage.mailbox import Signed, read_blob, read_signed

P = TypeVar("P", bound=Predicate)


class SiteCeremony:
    """This site's part of one epoch's ceremony. Steps run in order, each after all holders did the one before."""

    def __init__(self, context: SiteContext[Agreement], epoch: int) -> None:
        self.context = context
        self.plan = context.plan
        self.epoch = epoch
        self._party: CeremonyParty | None = None

    def verify(self) -> None:
        """Checks the ceremony instruction and accepts its sid as the epoch's only one.

        Raises:
            PeerError: `instruction-missing`, `wrong-ceremony`, `epoch-reused`, `epoch-went-back`.
            SiteDataError: `site-left`.
        """
        coordinator, study = self.plan.coordinator, self.plan.study
        verify_member(self.context.home.settings, study)
        key = ceremony_key(study, self.epoch, None, "instruction.json")
        found = read_signed(
            self.context.store, key, CeremonyInstruction, study, coordinator.identity_key, coordinator.name
        )
        if found is None:
            raise PeerError("instruction-missing", coordinator.name, "there is no signed ceremony instruction.")
        expected = CeremonyInstruction(
            epoch=self.epoch, sid=derive_sid(self.plan, self.epoch), parameters=parameters_digest(self.plan)
        )
        if found.predicate != expected:
            raise PeerError(
                "wrong-ceremony", coordinator.name, "the ceremony is not the one that follows from the plan."
            )
        self.context.keystore.accept_epoch(self.epoch, expected.sid)

    @property
    def finished(self) -> bool:
        """Whether this site signed the epoch's transcript."""
        return self.context.outbox.stored(self._mine("transcript.json")) is not None

    def ready(self, phase: str) -> bool:
        """Tells whether every holder's message of `phase` is in the store."""
        return not missing_messages(self.context.store, self.plan, self.epoch, phase)

    def nonce_commit(self) -> None:
        """Draws this epoch's secrets and commits to the nonce."""
        self.context.keystore.begin_ceremony(self.epoch)
        signing = self.context.home.identity.signing
        self._party = CeremonyParty.begin(self.plan, self.epoch, self.context.name, signing)
        self._send("nonce-commit", self.party.nonce_commit())

    def nonce_open(self) -> None:
        self._send("nonce-open", self.party.nonce_open(self._all("nonce-commit", NonceCommit)))

    def key_commit(self) -> None:
        self._send("key-commit", self.party.key_commit(self._all("nonce-open", NonceOpen)))

    def key_open(self) -> None:
        parts = self.party.key_open(self._all("key-commit", KeyCommit))
        self._send_blob("public-share.bin", parts.public_share)
        for holder, blob in parts.sealed.items():
            self._send_blob(f"sealed-{holder}.bin", blob)
        self._send("key-open", parts.message)

    def self_test(self) -> None:
        opens = self._all("key-open", KeyOpen)
        public = {n: self._blob(n, "public-share.bin", m.public_share, Kind.PUBLIC_SHARE) for n, m in opens.items()}
        mine = self.context.name
        sealed = {
            n: self._blob(n, f"sealed-{mine}.bin", dict(m.sealed)[mine], Kind.SEALED_KEY, mine)
            for n, m in opens.items()
            if n != mine
        }
        parts = self.party.self_test(opens, public, sealed)
        for number, blob in enumerate(parts.shares, start=1):
            self._send_blob(f"self-test-{number}.bin", blob)
        self._send("self-test", parts.message)

    def finish(self) -> None:
        """Verifies everybody's self-test, keeps the secrets and signs the transcript."""
        tests = self._all("self-test", SelfTest)
        shares = {
            name: [
                self._blob(name, f"self-test-{k}.bin", message.shares[k - 1], Kind.SELF_TEST) for k in self._tests(name)
            ]
            for name, message in tests.items()
        }
        digests = {
            (phase, site.name): sha256_hex(self._required(site.name, phase))
            for phase in PHASES
            for site in self.plan.key_holders
        }
        parts = self.party.finish(tests, shares, digests)
        self.context.verify_member()
        self.context.keystore.save_secrets(self.epoch, parts.secrets.sid_star, parts.secrets.to_bytes())
        self._send("transcript", parts.message)

    def confirm(self) -> str:
        """Verifies the whole signed ceremony and enters it into the ledger; returns sid*."""
        public = public_epoch(self.context, self.epoch)
        self.context.ledger.append_once(self.plan.study, KeyCeremony(epoch=self.epoch, sid_star=public.sid_star))
        return public.sid_star

    # --- parts

    @property
    def party(self) -> CeremonyParty:
        if self._party is None:
            raise RuntimeError("nonce_commit comes first")
        return self._party

    def _tests(self, name: str) -> range:
        return range(1, len(own_tests(self.plan, name)) + 1)

    def _mine(self, item: str) -> str:
        return ceremony_key(self.plan.study, self.epoch, self.context.name, item)

    def _send(self, phase: str, message: Predicate) -> None:
        signing = self.context.home.identity.signing
        self.context.outbox.answer(
            self._mine(f"{phase}.json"), lambda: sign_envelope(message, self.plan.study, signing)
        )

    def _send_blob(self, item: str, blob: bytes) -> None:
        self.context.outbox.answer(self._mine(item), lambda: blob)

    def _blob(self, sender: str, item: str, digest: str, kind: Kind, recipient: str = "") -> bytes:
        key = ceremony_key(self.plan.study, self.epoch, sender, item)
        return read_blob(
            self.context.store, key, digest, sender, ceremony_blob_bytes(self.plan, kind, sender, recipient)
        )

    def _required(self, sender: str, phase: str) -> bytes:
        key = ceremony_key(self.plan.study, self.epoch, sender, f"{phase}.json")
        data = self.context.store.get(key, MAX_JSON_BYTES)
        if data is None:
            raise PeerError("ceremony-incomplete", sender, f"its {phase} message is missing.")
        return data

    def _all(self, phase: str, model: type[P]) -> dict[str, P]:
        messages: dict[str, P] = {}
        for site in self.plan.key_holders:
            key = ceremony_key(self.plan.study, self.epoch, site.name, f"{phase}.json")
            found: Signed[P] | None = read_signed(
                self.context.store, key, model, self.plan.study, site.identity_key, site.name
            )
            if found is None:
                raise PeerError("ceremony-incomplete", site.name, f"its {phase} message is missing.")
            messages[site.name] = found.predicate
        return messages


STEPS: tuple[tuple[str, str | None, Callable[[SiteCeremony], None]], ...] = (
    ("nonce-commit", None, SiteCeremony.nonce_commit),
    ("nonce-open", "nonce-commit", SiteCeremony.nonce_open),
    ("key-commit", "nonce-open", SiteCeremony.key_commit),
    ("key-open", "key-commit", SiteCeremony.key_open),
    ("self-test", "key-open", SiteCeremony.self_test),
    ("transcript", "self-test", SiteCeremony.finish),
)
"""Name of each step, the phase that must be complete before it, and what it does."""
