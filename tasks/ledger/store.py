"""A signed log in one SQLite file: a site's privacy ledger, or the coordinator's study log.

Invariants:
1. An entry that `append` returned is on disk (rollback journal, synchronous=EXTRA) and is never changed (triggers).
2. Deciding and appending happen in one IMMEDIATE transaction: of two processes, the second decides on what the first
   wrote. Everything decided on is read from signed entries; the file holds no other state.
3. Every entry read is verified first (signature, chain, rules), so an edited file is refused when it is opened.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from schemas.envelope import public_hex, sign_envelope
from schemas.errors import EvidenceError, OperationError
from schemas.ledger import Body, LedgerEntry
from schemas.messages import Checkpoint, LogPosition
from tasks.ledger.chain import sign_entry
from tasks.ledger.rules import LogRules
from tasks.ledger.verify import LogReport, LogState, verify_log

FORMAT = "consilium/ledger/1"
BUSY_TIMEOUT_SECONDS = 60
_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE entries (sequence INTEGER PRIMARY KEY, envelope BLOB NOT NULL) STRICT;
CREATE TRIGGER no_update BEFORE UPDATE ON entries BEGIN SELECT RAISE(ABORT, 'entries are append-only'); END;
CREATE TRIGGER no_delete BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'entries are append-only'); END;
"""


class Transaction:
    """Exclusive hold on the log: what `rules` says stays true until the transaction ends."""

    def __init__(self, store: LedgerStore, connection: sqlite3.Connection, state: LogState) -> None:
        self._store = store
        self._connection = connection
        self._state = state

    @property
    def rules(self) -> LogRules:
        """Everything known from the entries so far; read only."""
        return self._state.rules

    def append(self, study: str, body: Body) -> bytes:
        """Signs and inserts the next entry; durable when the transaction ends.

        Raises:
            EvidenceError: the entry would break a rule of the log.
        """
        state = self._state
        data = sign_entry(
            self._store.signing_key, state.owner, state.size, state.last_digest, study, body, self._store.clock()
        )
        state.accept(data)
        self._connection.execute("INSERT INTO entries VALUES (?, ?)", (state.size - 1, data))
        return data

    def take_back(self, data: bytes) -> None:
        """Takes in an entry of this very log that is missing at its end: verified as if it had been read here."""
        self._state.accept(data)
        self._connection.execute("INSERT INTO entries VALUES (?, ?)", (self._state.size - 1, data))

    def envelopes(self) -> list[bytes]:
        """Returns the stored bytes of all entries in order."""
        rows = self._connection.execute("SELECT envelope FROM entries ORDER BY sequence")
        return [bytes(row[0]) for row in rows]

    def envelope(self, sequence: int) -> bytes:
        """Returns the stored bytes of an entry."""
        query = "SELECT envelope FROM entries WHERE sequence = ?"
        return bytes(self._connection.execute(query, (sequence,)).fetchone()[0])


class LedgerStore:
    """The log of `owner`. Any number of processes and threads may hold one on the same path.

    Args:
        path: SQLite file, created if missing; its folder must exist.
        owner: Name of the site or coordinator.
        signing_key: The owner's identity key.
        clock: Returns an aware time; the only use of time, informative.

    Raises:
        OperationError: `ledger-format`, `ledger-owner`, `ledger-unreadable`, `ledger-unwritable`.
    """

    def __init__(
        self,
        path: Path,
        owner: str,
        signing_key: Ed25519PrivateKey,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.path = path
        self.owner = owner
        self.signing_key = signing_key
        self.clock = clock
        self._key_hex = public_hex(signing_key)
        self._lock = threading.RLock()
        self._state = LogState(owner, self._key_hex)
        with self._begin("IMMEDIATE") as connection:
            self._prepare(connection)

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Holds the log exclusively; what is appended becomes durable together, or not at all on an exception.

        Raises:
            EvidenceError: the stored entries do not verify.
            OperationError: `ledger-busy`, `ledger-unwritable`, `ledger-unreadable`.
        """
        with self._lock:
            before = self._state.size
            try:
                with self._begin("IMMEDIATE") as connection:
                    self._read_new(connection)
                    before = self._state.size
                    yield Transaction(self, connection, self._state)
            except BaseException:
                if self._state.size != before:
                    # The rules have taken in entries that were rolled back: read everything again.
                    self._state = LogState(self.owner, self._key_hex)
                raise

    def append(self, study: str, body: Body) -> bytes:
        """Appends one entry and returns its envelope bytes once they are durable.

        Raises:
            EvidenceError: the entry would break a rule of the log, or the stored entries do not verify.
            OperationError: see `transaction`.
        """
        with self.transaction() as log:
            return log.append(study, body)

    def append_once(self, study: str, body: Body) -> bytes:
        """Like `append`, but returns the stored bytes if this very body is there already: for resumed steps."""
        with self.transaction() as log:
            for sequence, (about, entry) in enumerate(self._state.entries):
                if about == study and entry.body == body:
                    return log.envelope(sequence)
            return log.append(study, body)

    def complete(self, published: Sequence[bytes]) -> int:
        """Takes back what this log published and has lost since, as after a restored backup; returns how many entries.

        Raises:
            EvidenceError: an entry is not this owner's, does not follow, or breaks a rule; nothing is taken then.
            OperationError: `log-forked`: this log went another way than the published one.
        """
        with self.transaction() as log:
            own = log.envelopes()
            if own[: len(published)] != list(published[: len(own)]):
                raise OperationError(
                    "log-forked", f"{self.path.name} is not the log that was published.", "Restore it from a backup."
                )
            for data in published[len(own) :]:
                log.take_back(data)
        return max(0, len(published) - len(own))

    def position(self) -> LogPosition:
        """Returns size and Merkle root of the log."""
        return self._read().position

    def entries(self) -> list[bytes]:
        """Returns the envelope bytes of all entries in order."""
        with self._lock, self._begin("DEFERRED") as connection:
            return [bytes(row[0]) for row in connection.execute("SELECT envelope FROM entries ORDER BY sequence")]

    def entries_for(self, study: str) -> list[LedgerEntry]:
        """Returns the entries about `study` in order."""
        return [entry for about, entry in self._read().entries if about == study]

    def find(self, study: str, kind: str) -> list[LedgerEntry]:
        """Returns the entries about `study` whose body is of `kind`, in order."""
        return [entry for entry in self.entries_for(study) if entry.body.kind == kind]

    def read_rules(self) -> LogRules:
        """Returns what the log says now (totals, reservations); a snapshot for display, never for a decision."""
        return self._read().rules

    def holds(self, position: LogPosition) -> bool:
        """Says whether the log that had this position is a prefix of the present one."""
        tree = self._read().tree
        return position.size <= tree.size and tree.root(position.size) == position.root

    def prove_consistency(self, old_size: int) -> tuple[str, ...]:
        """Returns the RFC 6962 proof that the log of `old_size` entries is a prefix of the present one."""
        return self._read().tree.prove_consistency(old_size)

    def sign_checkpoint(self, study: str, position: LogPosition | None = None) -> bytes:
        """Signs a position of this log, by default the present one, for `study` and returns the envelope bytes."""
        checkpoint = Checkpoint(owner=self.owner, position=position or self.position())
        return sign_envelope(checkpoint, study, self.signing_key)

    def verify(self, checkpoint: Checkpoint | None = None) -> LogReport:
        """Reads the whole file again and verifies it, also against a checkpoint that was published before.

        Raises:
            EvidenceError: names the entry and the rule; `truncated` if the file is older than the checkpoint.
        """
        return verify_log(self.entries(), self.owner, self._key_hex, checkpoint)

    def _read(self) -> LogState:
        with self._lock:
            with self._begin("DEFERRED") as connection:
                self._read_new(connection)
            return self._state

    def _read_new(self, connection: sqlite3.Connection) -> None:
        (stored,) = connection.execute("SELECT count(*) FROM entries").fetchone()
        if stored < self._state.size:
            raise EvidenceError(
                "truncated",
                f"{self.owner}'s log: expected {self._state.size} entries, got {stored}.",
                "Restore the file.",
            )
        query = "SELECT envelope FROM entries WHERE sequence >= ? ORDER BY sequence"
        for (data,) in connection.execute(query, (self._state.size,)):
            self._state.accept(bytes(data))

    def _prepare(self, connection: sqlite3.Connection) -> None:
        expected = {"format": FORMAT, "owner": self.owner, "key": self._key_hex}
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone():
            for statement in _SCHEMA.strip().split("\n"):
                connection.execute(statement)
            connection.executemany("INSERT INTO meta VALUES (?, ?)", expected.items())
        found = dict(connection.execute("SELECT key, value FROM meta"))
        if found.get("format") != FORMAT:
            raise OperationError(
                "ledger-format",
                f"Expected a ledger of format {FORMAT} at {self.path.name}.",
                "Use the version that wrote it.",
            )
        if found != expected:
            raise OperationError(
                "ledger-owner", f"{self.path.name} belongs to another name or key.", "Use the owner's identity file."
            )

    @contextmanager
    def _begin(self, kind: str) -> Iterator[sqlite3.Connection]:
        """Opens a connection (never shared, so that threads and forked children are safe) and one transaction."""
        connection = None
        try:
            connection = sqlite3.connect(self.path, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None)
            connection.execute("PRAGMA synchronous = EXTRA")
            connection.execute(f"BEGIN {kind}")
            yield connection
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise _explain(error, self.path) from None
        finally:
            if connection is not None:
                # Closing without COMMIT rolls back.
                connection.close()


def _explain(error: sqlite3.Error, path: Path) -> OperationError:
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return OperationError("ledger-busy", f"{path.name} is held by another process.", "Try again when it has ended.")
    if name.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT", "SQLITE_ERROR")):
        return OperationError("ledger-unreadable", f"{path.name} is not a readable ledger.", "Restore it from a copy.")
    return OperationError("ledger-unwritable", f"{path.name} cannot be written.", "Check its folder and free space.")
