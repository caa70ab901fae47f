"""One participant's log as an evidence folder holds it: slices put together, verified, with its checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from schemas.layout import ledger_key
from schemas.ledger import LedgerEntry
from schemas.messages import Checkpoint
from tasks.audit.names import Item
from tasks.audit.registry import AuditFailure
from tasks.audit.signed import Signed
from tasks.ledger.verify import LogReport, verify_log

if TYPE_CHECKING:
    from tasks.audit.context import AuditContext


@dataclass(frozen=True)
class Log:
    """One participant's log as published.

    Attributes:
        owner: Coordinator or site.
        envelopes: Entries in order; `places` names file and line of each.
        report: What `tasks.ledger.verify.verify_log` made of them.
        checkpoint: The closing checkpoint, or None if the owner was not there to sign one.
        later: The coordinator's checkpoints after reviewers' decisions, by size.
    """

    owner: str
    envelopes: tuple[bytes, ...]
    places: tuple[str, ...]
    report: LogReport
    checkpoint: Signed[Checkpoint] | None
    later: tuple[Signed[Checkpoint], ...] = ()

    @property
    def checkpoints(self) -> tuple[Signed[Checkpoint], ...]:
        """Every checkpoint of the log, the closing one first."""
        return (*((self.checkpoint,) if self.checkpoint is not None else ()), *self.later)

    @property
    def entries(self) -> tuple[tuple[str, str, LedgerEntry], ...]:
        """(place, study, entry) of every entry in order."""
        return tuple((place, *pair) for place, pair in zip(self.places, self.report.entries, strict=True))

    def about(self, study: str) -> Iterator[tuple[str, LedgerEntry]]:
        """Yields (place, entry) of the entries about one study."""
        return ((place, entry) for place, subject, entry in self.entries if subject == study)


def read_log(context: AuditContext, owner: str) -> Log:
    """Returns a participant's log, verified from its first entry to its checkpoints.

    Raises:
        AuditFailure: slices are missing or broken.
        ConsiliumError: an entry or checkpoint does not verify.
    """
    envelopes, places = _read_entries(context, owner)
    checkpoint = _read_checkpoint(context, owner)
    report = verify_log(
        envelopes, owner, context.identity_key(owner), checkpoint.predicate if checkpoint is not None else None
    )
    later: list[Signed[Checkpoint]] = []
    if owner == context.plan.coordinator.name:
        later = [context.from_coordinator(item.path, Checkpoint) for item in context.select("later-checkpoint")]
    by_size = sorted(later, key=lambda found: found.predicate.position.size)
    return Log(owner, envelopes, places, report, checkpoint, tuple(by_size))


def _read_entries(context: AuditContext, owner: str) -> tuple[tuple[bytes, ...], tuple[str, ...]]:
    envelopes: list[bytes] = []
    places: list[str] = []
    for item in slices_of(context, owner):
        if item.number != len(envelopes):
            raise AuditFailure(item.path, f"expected the entries from {len(envelopes)} on: entries are missing")
        data = context.evidence.read(item.path)
        if not data.endswith(b"\n"):
            raise AuditFailure(item.path, "does not end with a whole entry")
        lines = data[:-1].split(b"\n")
        envelopes += lines
        places += [f"{item.path}, line {line}" for line in range(1, len(lines) + 1)]
    if not envelopes:
        raise AuditFailure(f"ledger of {owner}", "no entry was published")
    return tuple(envelopes), tuple(places)


def _read_checkpoint(context: AuditContext, owner: str) -> Signed[Checkpoint] | None:
    path = ledger_key(context.study, owner, owner == context.plan.coordinator.name, "checkpoint.json")
    if not context.evidence.exists(path):
        return None
    return context.signed(path, Checkpoint, owner, context.identity_key(owner))


def slices_of(context: AuditContext, owner: str) -> list[Item]:
    """Returns the slices of a participant's log in order."""
    site = None if owner == context.plan.coordinator.name else owner
    return sorted((i for i in context.select("entries") if i.site == site), key=lambda item: item.number)
