"""Looks at this machine's processes: whose children they are, what they were started as, who listens."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


def family(ancestor: int) -> dict[tuple[int, str], str]:
    """Returns `ancestor` and all its descendants, by id and start time (an id alone is given out again), with words."""
    parents = {pid: facts for pid in _pids() if (facts := _facts(pid)) is not None}
    found = {ancestor}
    while more := {pid for pid, (parent, _) in parents.items() if parent in found} - found:
        found |= more
    return {(pid, parents[pid][1]): _words(pid) for pid in found if pid in parents}


def still_there(processes: Iterable[tuple[int, str]]) -> set[int]:
    """Returns which of the processes have not ended."""
    return {pid for pid, started in processes if (facts := _facts(pid)) is not None and facts[1] == started}


def naming(folder: Path) -> dict[int, str]:
    """Returns every other process whose command line or environment names `folder`."""
    found = {pid: _words(pid) + _words(pid, "environ") for pid in _pids() if pid != os.getpid()}
    return {pid: words for pid, words in found.items() if str(folder) in words}


def listening(pids: Iterable[int]) -> set[int]:
    """Returns which of the processes hold a listening TCP socket or a bound UDP socket."""
    sockets = set()
    for name, state in (("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == state:
                sockets.add(f"socket:[{fields[9]}]")
    holders = set()
    for pid in pids:
        try:
            handles = list(Path(f"/proc/{pid}/fd").iterdir())
        except OSError:
            continue
        for handle in handles:
            try:
                if str(handle.readlink()) in sockets:
                    holders.add(pid)
            except OSError:
                continue
    return holders


def _pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]


def _facts(pid: int) -> tuple[int, str] | None:
    """Returns parent and start time; None for a process that has ended, reaped or not."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else (int(fields[1]), fields[19])


def _words(pid: int, name: str = "cmdline") -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
