"""An honest in-memory consortium: every message is signed, sealed and verified as in a study."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from schemas.envelope import Predicate, envelope_digest, sign_envelope
from schemas.plan import StudyPlan
from tasks.secure_sum.ceremony import CeremonyParty, derive_public_epoch
from tasks.secure_sum.epoch import EpochPublic, EpochSecrets
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
