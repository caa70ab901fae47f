"""Builders for ledger tests: a store, and a valid log as bytes."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from schemas.ledger import (
    NO_STUDY,
    Body,
    CohortRegistered,
    FilterState,
    PlanApproved,
    PrivacyCommitted,
    PrivacyEvent,
    PrivacyReserved,
    RecordSigned,
    ShareReleased,
)
from tasks.ledger.chain import sign_entry
from tasks.ledger.store import LedgerStore
from tasks.ledger.verify import LogState
from tasks.privacy.accounting import exact, format_decimal, gdp_cost, gdp_limit
from tests.privacy.plans import digest, make_mechanism

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
KEY_HEX = KEY.public_key().public_bytes_raw().hex()
OWNER = "general-hospital"
STUDY, COHORT = digest("study"), digest("cohort")
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def make_store(folder: Path, epsilon: str | None = "3", study: str = STUDY) -> LedgerStore:
    """A store with a registered budget and an approved plan."""
    from tasks.ledger.budget import register_cohort

    store = LedgerStore(folder / "ledger.sqlite", OWNER, KEY, clock=lambda: NOW)
    if epsilon is not None:
        register_cohort(store, COHORT, epsilon, "1e-5")
    store.append_once(study, PlanApproved(approval=digest("approval", study)))
    return store


def reserved(event: PrivacyEvent, round_: int, before: str, epsilon: str = "3", **changes: object) -> PrivacyReserved:
    """A correct reservation after `before` was spent."""
    limit = format_decimal(gdp_limit(epsilon, "1e-5"))
    after = format_decimal(exact(before) + gdp_cost(event))
    values: dict[str, object] = {
        "cohort": COHORT,
        "instruction": digest("instruction", round_),
        "round": round_,
        "event": event,
        "before": FilterState(data=event.data, spent=before, limit=limit),
        "after": FilterState(data=event.data, spent=after, limit=limit),
    }
    return PrivacyReserved(**(values | changes))  # type: ignore[arg-type]


def round_bodies(rounds: int, epsilon: str = "3") -> list[tuple[str, Body]]:
    """Every entry that a key-holding site writes in a study of so many rounds."""
    event = make_mechanism().event()
    bodies: list[tuple[str, Body]] = [
        (NO_STUDY, CohortRegistered(cohort=COHORT, epsilon=epsilon, delta="1e-5")),
        (STUDY, PlanApproved(approval=digest("approval"))),
    ]
    for r in range(1, rounds + 1):
        spent = format_decimal((r - 1) * gdp_cost(event))
        record = digest("record", r)
        bodies += [
            (STUDY, reserved(event, r, spent, epsilon)),
            (
                STUDY,
                PrivacyCommitted(instruction=digest("instruction", r), round=r, contribution=digest("contribution", r)),
            ),
            (STUDY, RecordSigned(round=r, record=record)),
            (STUDY, ShareReleased(round=r, record=record, request=digest("request", r), share=digest("share", r))),
        ]
    return bodies


def sign_log(bodies: list[tuple[str, Body]], key: Ed25519PrivateKey = KEY, owner: str = OWNER) -> list[bytes]:
    """Signs any bodies as a correctly chained log, whatever they say."""
    from schemas.canonical import sha256_hex
    from tasks.ledger.chain import FIRST_PREVIOUS

    envelopes: list[bytes] = []
    previous = FIRST_PREVIOUS
    for sequence, (study, body) in enumerate(bodies):
        envelopes.append(sign_entry(key, owner, sequence, previous, study, body, NOW))
        previous = sha256_hex(envelopes[-1])
    return envelopes


def read_state(envelopes: list[bytes]) -> LogState:
    state = LogState(OWNER, KEY_HEX)
    for data in envelopes:
        state.accept(data)
    return state
