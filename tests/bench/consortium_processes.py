"""What the processes of a consortium take: memory and processor time, by who they are, from /proc (Linux)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.consortium.proc import family

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Memory:
    """Memory of a group of processes.

    Attributes:
        peak_rss_bytes: Highest resident set that one process of the group ever had; shared pages count in full.
        pss_bytes: All processes of the group at one moment, shared pages divided by who shares them; 0 if unknown.
    """

    processes: int
    peak_rss_bytes: int
    pss_bytes: int


def groups(roots: Mapping[str, int]) -> dict[str, list[int]]:
    """Returns the process ids of every group: of `servers` each server, of the worker also the study's own process.

    Args:
        roots: Name of a supervised process -> its id; its descendants belong to it.
    """
    found: dict[str, list[int]] = {}
    for name, root in roots.items():
        for (pid, _), words in family(root).items():
            found.setdefault(_group(name, pid == root, words), []).append(pid)
    return found


def _group(name: str, is_root: bool, words: str) -> str:
    if name == "servers":
        for word, group in (("postgres", "PostgreSQL"), ("prefect_app", "Prefect server"), ("mlflow", "MLflow")):
            if word in words and not is_root:
                return group
        return "coordinator up" if is_root else "MLflow"
    if name == "worker":
        return "coordinator serve" if is_root else "study's flow"
    return name


def memory(pids: list[int]) -> Memory:
    """Returns what the processes take now and the highest that one of them took."""
    peak = pss = 0
    for pid in pids:
        peak = max(peak, _kib(pid, "status", "VmHWM:"))
        pss += _kib(pid, "smaps_rollup", "Pss:")
    return Memory(len(pids), peak * 1024, pss * 1024)


def larger(one: Memory | None, other: Memory) -> Memory:
    """Returns the larger of two readings, figure by figure."""
    if one is None:
        return other
    return Memory(
        max(one.processes, other.processes),
        max(one.peak_rss_bytes, other.peak_rss_bytes),
        max(one.pss_bytes, other.pss_bytes),
    )


def cpu_seconds(pids: list[int]) -> float:
    """Returns processor seconds of the processes and of their children that have ended."""
    total = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += sum(int(value) for value in fields[11:15])
    return total / _TICKS


def _kib(pid: int, file: str, label: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(label)), 0)
