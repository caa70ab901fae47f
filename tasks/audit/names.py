"""Every name that evidence may contain, and what lies under it; a name that is not here fails the audit."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from schemas.envelope import Predicate
from schemas.messages import (
    CeremonyInstruction,
    Checkpoint,
    Closing,
    Collected,
    Contribution,
    DecryptionShare,
    Instruction,
    KeyCommit,
    KeyOpen,
    ModelRelease,
    NonceCommit,
    NonceOpen,
    Opening,
    PlanApproval,
    Record,
    RecordSignature,
    Refusal,
    SelfTest,
    ShareRequest,
    SharesChecked,
    StatisticsRelease,
    TranscriptSignature,
    Witness,
)
from schemas.review import ReviewDecision

MANIFEST = "manifest.json"
# Derived by the export from the other files, and derived again by the checks that compare them.
CRATE = "ro-crate-metadata.json"
_PROOFS = re.compile(r"^logs/(?P<owner>[a-z][a-z0-9-]{0,30})/consistency\.json$")
# What an export without bulk leaves out: ciphertexts, and shares of their keys.
BULK_KINDS = frozenset({"bulk", "bulk-sum", "key", "key-sum", "shamir", "sealed", "share-blob"})

Form = type[Predicate] | Literal["plan", "entries", "blob"]

_SITE = r"[a-z][a-z0-9-]{0,30}"
_EPOCH = r"epoch-(?P<epoch>\d{3}|[1-9]\d{3,8})/ceremony"
_ROUND = r"round-(?P<round>\d{4}|[1-9]\d{4,8})"
_ATTEMPT = rf"{_ROUND}/attempt-(?P<attempt>\d\d|[1-9]\d{{2,8}})"
_NUMBER = r"(?P<number>[1-9]\d{0,8})"
_ENTRIES = r"ledger/entries-(?P<number>\d{6}|[1-9]\d{6,8})\.jsonl"

_COMMON: tuple[tuple[str, str, Form], ...] = (
    (r"approval\.json", "approval", PlanApproval),
    (_ENTRIES, "entries", "entries"),
    (r"ledger/checkpoint\.json", "checkpoint", Checkpoint),
    (r"ledger/witness\.json", "witness", Witness),
)
_COORDINATOR: tuple[tuple[str, str, Form], ...] = (
    *_COMMON,
    (r"plan\.json", "plan", "plan"),
    (r"ledger/closing\.json", "closing", Closing),
    (r"ledger/checkpoint-(?P<number>\d{6}|[1-9]\d{6,8})\.json", "later-checkpoint", Checkpoint),
    (rf"review/decision-(?P<peer>{_SITE})-{_NUMBER}\.json", "review-decision", ReviewDecision),
    (rf"{_EPOCH}/instruction\.json", "ceremony-instruction", CeremonyInstruction),
    (rf"{_ATTEMPT}/instruction\.json", "instruction", Instruction),
    (rf"{_ATTEMPT}/collected\.json", "collected", Collected),
    (rf"{_ROUND}/record\.json", "record", Record),
    (rf"{_ROUND}/request-{_NUMBER}\.json", "request", ShareRequest),
    (rf"{_ROUND}/opening\.json", "opening", Opening),
    (rf"{_ROUND}/key-sum\.bin", "key-sum", "blob"),
    (rf"{_ROUND}/bulk-sum\.bin", "bulk-sum", "blob"),
    (rf"{_ROUND}/result\.bin", "result", "blob"),
    (r"release/release\.json", "release", ModelRelease),
    (r"release/answer\.json", "answer", StatisticsRelease),
    (r"release/weights\.safetensors", "weights", "blob"),
)
_SITES: tuple[tuple[str, str, Form], ...] = (
    *_COMMON,
    (rf"{_EPOCH}/nonce-commit\.json", "nonce-commit", NonceCommit),
    (rf"{_EPOCH}/nonce-open\.json", "nonce-open", NonceOpen),
    (rf"{_EPOCH}/key-commit\.json", "key-commit", KeyCommit),
    (rf"{_EPOCH}/key-open\.json", "key-open", KeyOpen),
    (rf"{_EPOCH}/public-share\.bin", "public-share", "blob"),
    (rf"{_EPOCH}/sealed-(?P<peer>{_SITE})\.bin", "sealed", "blob"),
    (rf"{_EPOCH}/self-test\.json", "self-test", SelfTest),
    (rf"{_EPOCH}/self-test-{_NUMBER}\.bin", "self-test-share", "blob"),
    (rf"{_EPOCH}/transcript\.json", "transcript", TranscriptSignature),
    (rf"{_ATTEMPT}/contribution\.json", "contribution", Contribution),
    (rf"{_ATTEMPT}/refusal\.json", "refusal", Refusal),
    (rf"{_ATTEMPT}/key\.bin", "key", "blob"),
    (rf"{_ATTEMPT}/shamir-(?P<peer>{_SITE})\.bin", "shamir", "blob"),
    (rf"{_ATTEMPT}/bulk\.bin", "bulk", "blob"),
    (rf"{_ATTEMPT}/shares-checked\.json", "shares-checked", SharesChecked),
    (rf"{_ROUND}/record-signature\.json", "record-signature", RecordSignature),
    (rf"{_ROUND}/share-{_NUMBER}\.json", "share", DecryptionShare),
    (rf"{_ROUND}/share-{_NUMBER}\.bin", "share-blob", "blob"),
)
_OWNER = re.compile(rf"^(?:coordinator|sites/(?P<site>{_SITE}))/(?P<study>[0-9a-f]{{64}})/(?P<rest>.+)$")
_TABLES = {
    None: tuple((re.compile(p), kind, form) for p, kind, form in _COORDINATOR),
    "site": tuple((re.compile(p), kind, form) for p, kind, form in _SITES),
}


@dataclass(frozen=True)
class Item:
    """One file, as its name says.

    Attributes:
        site: Owning site, or None for the coordinator.
        kind: E.g. ``instruction``, ``share-blob``.
        form: Predicate of the envelope, or ``plan``, ``entries`` (ledger slice), ``blob``.
        epoch, round, attempt, number: As in the name; 0 where the name has none.
        peer: The other site in ``shamir-<peer>.bin`` and ``sealed-<peer>.bin``; the reviewer of a decision.
    """

    path: str
    study: str
    site: str | None
    kind: str
    form: Form
    epoch: int = 0
    round: int = 0
    attempt: int = 0
    number: int = 0
    peer: str = ""


def proofs_name(owner: str) -> str:
    """Returns the path of the consistency proofs of a participant's log."""
    return f"logs/{owner}/consistency.json"


def proofs_owner(path: str) -> str | None:
    """Returns whose consistency proofs lie at `path`, or None if it is another file."""
    found = _PROOFS.match(path)
    return found["owner"] if found else None


def parse_name(path: str) -> Item | None:
    """Returns what a path inside evidence names, or None if it is unknown."""
    outer = _OWNER.match(path)
    if outer is None:
        return None
    site = outer["site"]
    for pattern, kind, form in _TABLES["site" if site else None]:
        found = pattern.fullmatch(outer["rest"])
        if found is not None:
            groups = found.groupdict()
            numbers = {key: int(groups[key]) for key in ("epoch", "round", "attempt", "number") if groups.get(key)}
            return Item(path, outer["study"], site, kind, form, peer=groups.get("peer") or "", **numbers)
    return None
