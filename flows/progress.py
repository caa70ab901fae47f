"""Progress events of a study: one JSON object per line in the coordinator's home, for the command line to follow.

Events carry names, round numbers, states, released figures and durations; never anything a site did not sign out.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


class Progress:
    """Appends events to `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def emit(self, event: str, **fields: Any) -> None:
        """Appends one event with the current UTC time."""
        line = json.dumps({"time": datetime.now(UTC).isoformat(), "event": event, **fields})
        with self._path.open("a") as out:
            out.write(line + "\n")
