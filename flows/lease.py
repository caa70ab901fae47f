"""One coordinator process per study: a lease that the kernel gives back however its holder ends."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from schemas.errors import OperationError

LOCK = "coordinator.lock"


@contextmanager
def hold_study(home: Path) -> Iterator[None]:
    """Holds the study of a coordinator's home for this process.

    Two schedules that overlap, or a person and a schedule, must not both sign instructions: the second one is told so
    and does nothing. A lock on an open file, not the presence of a file: a killed process leaves nothing to clean up.

    Raises:
        OperationError: `study-running`.
    """
    with (home / LOCK).open("ab") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OperationError(
                "study-running",
                "Another process is running this study.",
                "Wait until it ends; a schedule tries again by itself.",
            ) from None
        yield
