"""The coordinator's log in the store: published before anything refers to it, and read back into a restored home.

Invariant: an instruction names no position of the log that is not published. A log from any older backup is therefore
completed from the store, byte for byte, and goes on; it is never written a second time from some earlier point.
"""

from __future__ import annotations

from flows.context import CoordinatorContext
from schemas.layout import ledger_key
from schemas.plan import Agreement
from tasks.study_log import published_size


def publish_entries(context: CoordinatorContext[Agreement]) -> None:
    """Publishes what was entered since the last time, as one slice.

    The store is create-only: a slice that a crash left behind stays, and the next one begins after it.
    """
    name, entries = context.plan.coordinator.name, context.log.entries()
    published = published_size(context.store, context.study, name)
    if published < len(entries):
        later = b"".join(entry + b"\n" for entry in entries[published:])
        context.store.put(ledger_key(context.study, name, True, f"entries-{published:06d}.jsonl"), later)
