"""Verifying a whole log from bytes alone: signatures, hash chain, sequence, rules of the bodies, Merkle positions.

Pure: no path is opened here; the caller decides what a failure means. Every error names the entry (0-based) and rule.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from schemas.canonical import sha256_hex
from schemas.errors import EvidenceError
from schemas.ledger import FilterTotals, LedgerEntry, PrivacyEvent, PrivacyReserved
from schemas.messages import Checkpoint, LogPosition
from tasks.ledger.chain import FIRST_PREVIOUS, EntryReader
from tasks.ledger.merkle import MerkleTree
from tasks.ledger.rules import PARTS, LogRules


@dataclass(frozen=True)
class LogReport:
    """A verified log.

    Attributes:
        owner: Whose log.
        position: Size and root.
        entries: (study, entry) in order.
        filters: Totals per data part; empty if no cohort was registered.
    """

    owner: str
    position: LogPosition
    entries: tuple[tuple[str, LedgerEntry], ...]
    filters: tuple[FilterTotals, ...]

    @property
    def size(self) -> int:
        return self.position.size

    @property
    def root(self) -> str:
        return self.position.root

    def events(self, study: str) -> tuple[PrivacyEvent, ...]:
        """Returns the reserved events of `study`, committed or not, in order."""
        bodies = [entry.body for about, entry in self.entries if about == study]
        return tuple(body.event for body in bodies if isinstance(body, PrivacyReserved))


class LogState:
    """A log as far as it was read; `accept` verifies and takes in one more entry."""

    def __init__(self, owner: str, key_hex: str) -> None:
        self.owner = owner
        self.tree = MerkleTree()
        self.rules = LogRules()
        self.entries: list[tuple[str, LedgerEntry]] = []
        self.last_digest = FIRST_PREVIOUS
        self._reader = EntryReader(owner, key_hex)

    @property
    def size(self) -> int:
        return len(self.entries)

    @property
    def position(self) -> LogPosition:
        return LogPosition(size=self.size, root=self.tree.root())

    def accept(self, data: bytes) -> LedgerEntry:
        """Verifies `data` as the next entry and takes it in; on refusal nothing changes.

        Raises:
            EvidenceError: names entry and rule.
        """
        index = self.size
        try:
            study, entry = self._reader.read(data)
            if entry.sequence != index:
                raise EvidenceError("wrong-sequence", f"it says that it is entry {entry.sequence}.")
            if entry.previous != self.last_digest:
                raise EvidenceError("broken-chain", "it does not follow from the entry before.")
            self.rules.admit(study, entry.body)
        except EvidenceError as error:
            raise EvidenceError(error.code, f"Entry {index} of {self.owner}'s log: {error.message}") from None
        self.tree.append(data)
        self.entries.append((study, entry))
        self.last_digest = sha256_hex(data)
        return entry

    def accept_all(self, envelopes: Iterable[bytes]) -> None:
        """Verifies `envelopes` as the next entries and takes them in, up to the first that is refused.

        Raises:
            EvidenceError: names entry and rule.
        """
        with _entries_kept():
            for data in envelopes:
                self.accept(data)

    def report(self) -> LogReport:
        """Returns what was read so far."""
        filters = tuple(self.rules.filter_state(part) for part in PARTS) if self.rules.cohort else ()
        return LogReport(self.owner, self.position, tuple(self.entries), filters)


def verify_log(envelopes: Iterable[bytes], owner: str, key_hex: str, checkpoint: Checkpoint | None = None) -> LogReport:
    """Verifies every entry of one owner's log and, if given, that the log still contains a checkpointed state.

    Args:
        envelopes: All entries in order, as stored.
        owner: Name of the site or coordinator.
        key_hex: Its pinned Ed25519 key.
        checkpoint: A verified checkpoint (its envelope was opened by the caller).

    Raises:
        EvidenceError: names the entry and the rule; for the checkpoint `wrong-owner`, `truncated`, `position-mismatch`.
    """
    state = LogState(owner, key_hex)
    state.accept_all(envelopes)
    if checkpoint is not None:
        verify_checkpoint(state.tree, owner, checkpoint)
    return state.report()


@contextmanager
def _entries_kept() -> Iterator[None]:
    """Pauses the cycle collector: it would walk all accepted entries, none of which is garbage, over and over."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def verify_checkpoint(tree: MerkleTree, owner: str, checkpoint: Checkpoint) -> None:
    """Refuses a checkpoint of another log, or of a state that `owner`'s log never had.

    Raises:
        EvidenceError: `wrong-owner`, `truncated`, `position-mismatch`.
    """
    if checkpoint.owner != owner:
        raise EvidenceError("wrong-owner", f"The checkpoint is not of {owner}'s log.")
    verify_position(tree, owner, checkpoint.position)


def verify_position(tree: MerkleTree, owner: str, position: LogPosition) -> None:
    """Refuses a position that the log never had.

    Raises:
        EvidenceError: `truncated` if the log is shorter, `position-mismatch` if its past is another one.
    """
    if position.size > tree.size:
        raise EvidenceError(
            "truncated",
            f"{owner}'s log: expected at least {position.size} entries, got {tree.size}.",
            "Ask its owner for the missing entries.",
        )
    if tree.root(position.size) != position.root:
        raise EvidenceError(
            "position-mismatch",
            f"{owner}'s log: the first {position.size} entries are not those of the signed position.",
        )


def verify_positions(envelopes: Sequence[bytes], owner: str, positions: Iterable[LogPosition]) -> None:
    """Refuses the first of `positions` (from contributions, instructions, checkpoints) that the log never had.

    Raises:
        EvidenceError: `truncated`, `position-mismatch`.
    """
    tree = MerkleTree(envelopes)
    for position in positions:
        verify_position(tree, owner, position)


def roots_at(envelopes: Sequence[bytes], sizes: Iterable[int]) -> dict[int, str]:
    """Derives the root (hex) that the log had at each of `sizes`.

    Raises:
        EvidenceError: `truncated` if the log never had that size.
    """
    tree = MerkleTree(envelopes)
    try:
        return {size: tree.root(size) for size in sizes}
    except ValueError:
        raise EvidenceError("truncated", f"Expected a size of at most {tree.size} entries.") from None
