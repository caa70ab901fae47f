"""Waits for a fact instead of a time."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(fact: Callable[[], bool], limit_seconds: float = 90.0) -> None:
    """Returns once `fact()` holds; fails the test after `limit_seconds`."""
    deadline = time.monotonic() + limit_seconds
    while not fact():
        if time.monotonic() > deadline:
            raise AssertionError("what was waited for did not happen")
        time.sleep(0.02)
