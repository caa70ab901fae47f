"""An honest in-memory consortium: every message is signed, sealed and verified as in a study."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from schemas.contract import ContractVerdict, RuleVerdict
from schemas.envelope import Predicate, envelope_digest, sign_envelope
from schemas.messages import Contribution, Instruction, LogPosition, Record, RecordSignature, ShareRequest
from schemas.plan import StudyPlan, update_length
from tasks.secure_sum.bulk import add_bulk, verify_bulk
from tasks.secure_sum.ceremony import CeremonyParty, derive_public_epoch
from tasks.secure_sum.context import RoundContext
from tasks.secure_sum.contribute import ContributionParts, contribute
from tasks.secure_sum.epoch import EpochPublic, EpochSecrets
from tasks.secure_sum.opening import open_sum
from tasks.secure_sum.parameters import derive_parameters
from tasks.secure_sum.record import add_key_ciphertexts, verify_contribution, verify_record
from tasks.secure_sum.share import make_share
from tests.secure_sum.plans import identities, make_plan


@dataclass
class Ceremony:
    """A finished ceremony with everything that was published."""

    plan: StudyPlan
    epoch: int
    envelopes: dict[tuple[str, str], bytes] = field(default_factory=dict)
    blobs: dict[tuple[str, str], bytes] = field(default_factory=dict)
    sealed: dict[tuple[str, str], bytes] = field(default_factory=dict)
    secrets: dict[str, EpochSecrets] = field(default_factory=dict)

    def public(self) -> EpochPublic:
        return derive_public_epoch(self.plan, self.epoch, self.envelopes, self.blobs)


def hold_ceremony(plan: StudyPlan, epoch: int = 1) -> Ceremony:
    people = identities(len(plan.sites))
    names = [site.name for site in plan.key_holders]
    out = Ceremony(plan, epoch)
    parties = {n: CeremonyParty.begin(plan, epoch, n, people[n].signing) for n in names}

    def publish(phase: str, messages: dict[str, Any]) -> None:
        for name, message in messages.items():
            out.envelopes[phase, name] = sign_envelope(message, plan.study, people[name].signing)

    commits = {n: p.nonce_commit() for n, p in parties.items()}
    publish("nonce-commit", commits)
    opens = {n: p.nonce_open(commits) for n, p in parties.items()}
    publish("nonce-open", opens)
    key_commits = {n: p.key_commit(opens) for n, p in parties.items()}
    publish("key-commit", key_commits)
    parts = {n: p.key_open(key_commits) for n, p in parties.items()}
    publish("key-open", {n: k.message for n, k in parts.items()})
    for name, part in parts.items():
        out.blobs["public-share", name] = part.public_share
        out.sealed |= {(name, other): blob for other, blob in part.sealed.items()}
    tests = {
        n: p.self_test(
            {m: k.message for m, k in parts.items()},
            {m: k.public_share for m, k in parts.items()},
            {m: out.sealed[m, n] for m in names if m != n},
        )
        for n, p in parties.items()
    }
    publish("self-test", {n: t.message for n, t in tests.items()})
    for name, test in tests.items():
        out.blobs |= {(f"self-test-{k}", name): blob for k, blob in enumerate(test.shares, 1)}
    digests = {key: envelope_digest(data) for key, data in out.envelopes.items()}
    finished = {
        n: p.finish({m: t.message for m, t in tests.items()}, {m: t.shares for m, t in tests.items()}, digests)
        for n, p in parties.items()
    }
    publish("transcript", {n: f.message for n, f in finished.items()})
    out.secrets = {n: f.secrets for n, f in finished.items()}
    return out


@lru_cache(maxsize=4)
def shared_ceremony(sites: int = 5) -> Ceremony:
    """One ceremony per test session and number of sites; tests treat it as immutable."""
    return hold_ceremony(make_plan(sites))


def sign(message: Predicate, plan: StudyPlan, key: Any) -> tuple[bytes, str]:
    data = sign_envelope(message, plan.study, key)
    return data, envelope_digest(data)


@dataclass
class Round:
    """One round of honest sites, step by step; a test may alter any stored byte between steps."""

    ceremony: Ceremony
    context: RoundContext
    folder: Path
    values: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, ContributionParts] = field(default_factory=dict)
    envelopes: dict[str, bytes] = field(default_factory=dict)
    record: Record | None = None
    record_envelope: bytes = b""
    record_digest: str = ""
    key_sum: bytes = b""
    certificate: dict[str, bytes] = field(default_factory=dict)
    shares: dict[str, bytes] = field(default_factory=dict)

    @property
    def plan(self) -> StudyPlan:
        return self.ceremony.plan

    @property
    def people(self) -> dict[str, Any]:
        return identities(len(self.plan.sites))

    def bulk(self, site: str) -> Path:
        return self.folder / f"{site}-{self.context.instruction.round}-{self.context.instruction.attempt}.bulk"

    def contribute(self, site: str, values: Any) -> None:
        self.values[site] = values
        parts = contribute(self.context, site, values, self.people[site].signing, self.bulk(site))
        self.parts[site] = parts
        self.envelopes[site] = sign(self.message(site, parts), self.plan, self.people[site].signing)[0]

    def message(self, site: str, parts: ContributionParts) -> Contribution:
        i = self.context.instruction
        return Contribution(
            sid_star=i.sid_star,
            round=i.round,
            attempt=i.attempt,
            instruction=self.context.instruction_digest,
            sender=site,
            key_ciphertext=parts.key_digest,
            shamir=parts.shamir_digests,
            bulk_root=parts.bulk_root,
            bulk_bytes=parts.bulk_bytes,
            ledger=LogPosition(size=1, root="0" * 64),
            verdict=ContractVerdict(
                suite_digest="0" * 64, engine_version="1", rules=(RuleVerdict(rule="r", passed=True),)
            ),
        )

    def key_blobs(self) -> dict[str, bytes]:
        return {site: parts.key_ciphertext for site, parts in self.parts.items()}

    def shamir_blobs(self, holder: str) -> dict[str, bytes]:
        return {site: parts.shamir[holder] for site, parts in self.parts.items()}

    def opened(self) -> dict[str, Contribution]:
        return {site: verify_contribution(self.context, data, site) for site, data in self.envelopes.items()}

    def propose(self, drop: tuple[str, ...] = (), verify: bool = True) -> None:
        summed = {site: c for site, c in self.opened().items() if site not in drop}
        for site, message in summed.items() if verify else ():
            verify_bulk(self.context, message, self.bulk(site))
        total = add_key_ciphertexts(self.context, summed, self.key_blobs())
        i = self.context.instruction
        missing = sorted(set(i.participants) - set(summed))
        self.record = Record(
            sid_star=i.sid_star,
            epoch=i.epoch,
            round=i.round,
            attempt=i.attempt,
            instruction=self.context.instruction_digest,
            contributions=tuple((site, envelope_digest(self.envelopes[site])) for site in sorted(summed)),
            dropped=tuple((site, "silent") for site in missing),
            key_sum=total.digest,
        )
        self.key_sum = total.blob
        key = self.people["coordinator"].signing
        self.record_envelope, self.record_digest = sign(self.record, self.plan, key)

    def verify_as(self, holder: str, record: Record | None = None) -> Any:
        return verify_record(
            self.ceremony.secrets[holder],
            self.context,
            record or self.record,  # type: ignore[arg-type]
            self.envelopes,
            self.key_blobs(),
            self.shamir_blobs(holder),
            self.envelopes.get(holder),
        )

    def certify(self, holders: tuple[str, ...] | None = None) -> None:
        for holder in holders or tuple(self.ceremony.secrets):
            self.verify_as(holder)
            secrets = self.ceremony.secrets[holder]
            signature = RecordSignature(
                sid_star=secrets.sid_star,
                round=self.context.instruction.round,
                holder=holder,
                record=self.record_digest,
            )
            self.certificate[holder] = sign(signature, self.plan, secrets.signing_key)[0]

    def request(self, active: tuple[str, ...], number: int = 1) -> ShareRequest:
        return ShareRequest(
            sid_star=self.context.instruction.sid_star,
            round=self.context.instruction.round,
            record=self.record_digest,
            certificate=tuple((holder, envelope_digest(data)) for holder, data in sorted(self.certificate.items())),
            active_set=active,
            number=number,
        )

    def share(self, holder: str, request: ShareRequest, **changes: Any) -> bytes:
        arguments: dict[str, Any] = {
            "record": self.record,
            "record_digest": self.record_digest,
            "request": request,
            "certificate": self.certificate,
            "key_sum": self.key_sum,
            "envelopes": self.envelopes,
            "shamir_blobs": self.shamir_blobs(holder),
        } | changes
        return make_share(self.ceremony.secrets[holder], self.context, **arguments)

    def add(self) -> Path:
        assert self.record is not None
        opened = self.opened()
        out = self.folder / "sum.bulk"
        add_bulk(self.context, {site: (opened[site], self.bulk(site)) for site, _ in self.record.contributions}, out)
        return out

    def open(self, request: ShareRequest, shares: dict[str, bytes] | None = None) -> Any:
        shares = shares or {holder: self.share(holder, request) for holder in request.active_set}
        self.shares = shares
        assert self.record is not None
        return open_sum(self.context, self.record, self.record_digest, request, self.key_sum, self.add(), shares)


def make_context(ceremony: Ceremony, length: int | None = None, **changes: Any) -> RoundContext:
    """A context for any length: the rule that ties the length to the plan has its own test."""
    plan, public = ceremony.plan, shared_public(ceremony)
    fields: dict[str, Any] = {
        "kind": "train",
        "sid_star": public.sid_star,
        "epoch": ceremony.epoch,
        "round": 1,
        "attempt": 1,
        "participants": tuple(site.name for site in plan.contributors),
        "model": "0" * 64,
        "previous_opening": None,
        "length": length or update_length(plan),
        "log": LogPosition(size=1, root="0" * 64),
    } | changes
    instruction = Instruction(**fields)
    _, digest = sign(instruction, plan, identities(len(plan.sites))["coordinator"].signing)
    if length is None:
        return RoundContext.of(plan, public, instruction, digest)
    return RoundContext(plan, public, instruction, digest, derive_parameters(plan))


_PUBLIC: dict[int, EpochPublic] = {}


def shared_public(ceremony: Ceremony) -> EpochPublic:
    """The public epoch of a ceremony, derived once."""
    if id(ceremony) not in _PUBLIC:
        _PUBLIC[id(ceremony)] = ceremony.public()
    return _PUBLIC[id(ceremony)]
