"""Runs one step in a process of its own and says what it cost: CPU, wall clock, peak memory."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Cost:
    """What one step of one party took.

    Attributes:
        cpu_seconds: Processor time of the process; a fork server's children do not count here.
        wall_seconds: Elapsed time.
        peak_bytes: Largest resident memory of the process, interpreter, libraries and mapped files included.
    """

    cpu_seconds: float
    wall_seconds: float
    peak_bytes: int


def measure(step: Callable[[], T]) -> tuple[T, Cost]:
    """Runs `step` in a forked child, so that its peak memory is its own, and returns its result and cost."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_run, args=(step, sender))
    child.start()
    sender.close()
    try:
        result, cost = receiver.recv()
    except EOFError:
        raise SystemExit("A measured step failed; its error is above.") from None
    child.join()
    return result, cost


def _run(step: Callable[[], Any], sender: Any) -> None:
    _reset_peak()
    cpu, wall = time.process_time(), time.perf_counter()
    result = step()
    cost = Cost(time.process_time() - cpu, time.perf_counter() - wall, _peak_bytes())
    sender.send((result, cost))


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
