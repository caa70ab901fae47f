"""`make bench-consortium`: figures of a deployment: four hospitals, a coordinator on PostgreSQL and S3, one machine.

A study of real processes: PostgreSQL, Prefect, MLflow, nginx with TLS and tokens, an S3 server (radosgw with policy
and TLS where it is installed, else moto), a coordinator's worker and four agents, each connection through a relay that
counts. Round 1 warms up; the rounds after it are measured; then, with --recover, one part after another is killed at
the beginning of a round, and started again at once.

Beyond compute = the time from one round's beginning to the next one's, less the seconds that the slowest site worked on
rows and ciphertexts (its task runs validate, train, encrypt, check-shares, certify and share; Prefect's account).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from infra.postgres import find_postgres_programs
from tasks.audit.keys import read_public_keys
from tasks.audit.verify import verify_evidence
from tests.bench.__main__ import describe_machine
from tests.bench.consortium_figures import RoundTime, derive_rounds, median_steps, per_round
from tests.bench.consortium_place import Consortium, running_consortium
from tests.bench.consortium_processes import Memory, cpu_seconds, groups, larger, memory
from tests.bench.consortium_recover import Recovery, kinds, strike

AIM_SECONDS = 1.5


@dataclass
class Figures:
    """Everything that was measured.

    Attributes:
        wire: Connection -> bytes sent and received per round, median.
        cpu: Group of processes -> processor seconds per round, median.
    """

    poll_seconds: float
    rounds: list[RoundTime] = field(default_factory=list)
    wire: dict[str, tuple[float, ...]] = field(default_factory=dict)
    cpu: dict[str, tuple[float, ...]] = field(default_factory=dict)
    memory: dict[str, Memory] = field(default_factory=dict)
    recoveries: list[Recovery] = field(default_factory=list)
    seconds: float = 0.0


def measure(rounds: int, poll_seconds: float, recover: bool, kept: Path | None) -> Figures:
    """Runs a whole study and returns its figures.

    Raises:
        SystemExit: something did not happen in time, or the audit failed: a wrong study has no figures.
    """
    begun = time.monotonic()
    found = Figures(poll_seconds)
    deaths = 12 if recover else 0  # six kinds; by the time that one is over, the round after it has begun
    # One round to warm up, one behind the measured ones that ends the last of them.
    with running_consortium(rounds + 2 + deaths, poll_seconds, kept) as consortium:
        _follow_rounds(consortium, rounds, found)
        last = rounds + 1
        if not any(event["event"] == "round-done" and event["round"] == last for event in consortium.events):
            # It is recorded behind the next round.
            consortium.until(lambda event: bool(event["event"] == "round-done" and event["round"] == last))
        undisturbed = list(consortium.events)
        if recover:
            for what, kill in kinds(consortium).items():
                found.recoveries.append(strike(consortium, what, kill))
        end = time.monotonic() + 300
        while not consortium.finished:
            if time.monotonic() > end:
                raise SystemExit(f"The study was not released; see {consortium.place.folder}.")
            consortium.look()
        found.rounds = derive_rounds(undisturbed, consortium.steps(), range(2, rounds + 2))
        _verify(consortium)
    found.seconds = time.monotonic() - begun
    return found


def _follow_rounds(consortium: Consortium, rounds: int, found: Figures) -> None:
    """Reads counters as each measured round begins, and memory while the first one runs."""
    wire: list[Mapping[str, Sequence[float]]] = []
    cpu: list[Mapping[str, Sequence[float]]] = []
    for number in range(1, rounds + 3):
        _sample(consortium, found, number)
        if number == 1:
            continue
        wire.append(consortium.wire.counts())
        cpu.append({name: (cpu_seconds(pids),) for name, pids in groups(consortium.pids()).items()})
    found.wire, found.cpu = per_round(wire), per_round(cpu)
    _read_memory(consortium, found)


def _sample(consortium: Consortium, found: Figures, number: int) -> None:
    """Waits until round `number` begins; reads memory twice a second in the round that is not measured."""
    end, read = time.monotonic() + 600, 0.0
    while time.monotonic() < end:
        if any(event["event"] == "round-started" and event["round"] == number for event in consortium.look()):
            return
        if number == 2 and time.monotonic() - read > 0.5:
            read = time.monotonic()
            _read_memory(consortium, found)
    raise SystemExit(f"Round {number} did not begin; see {consortium.place.folder}.")


def _read_memory(consortium: Consortium, found: Figures) -> None:
    for name, pids in groups(consortium.pids()).items():
        found.memory[name] = larger(found.memory.get(name), memory(pids))


def _verify(consortium: Consortium) -> None:
    home = consortium.place.coordinator
    report = verify_evidence(home / "evidence", read_public_keys(home / "public-keys.json"))
    failed = [result.check for result in report.results if result.status == "failed"]
    if failed:
        raise SystemExit(f"The audit of the bench's own study failed: {', '.join(failed)}.")


def render(found: Figures, console: Console) -> None:
    """Prints the figures as Markdown."""
    wall, beyond = median(r.wall for r in found.rounds), median(r.beyond for r in found.rounds)
    strict = median(r.wall - r.training for r in found.rounds)
    console.print(
        f"{len(found.rounds)} training rounds, four hospitals, poll {found.poll_seconds:g} s: median {wall:.2f} s a "
        f"round, of which [bold]{beyond:.2f} s beyond compute[/bold] (aim: under {AIM_SECONDS:g} s), "
        f"{strict:.2f} s beyond validation, training and encryption alone.\n"
    )
    _table(
        console,
        ("round", "wall s", "slowest site", "compute s", "beyond s"),
        [(r.round, f"{r.wall:.2f}", r.slowest, f"{r.compute:.2f}", f"{r.beyond:.2f}") for r in found.rounds],
    )
    console.print(
        "\nMedian seconds of the coordinator's steps; it waits in them for the sites, their compute included:"
    )
    _table(console, ("step", "s"), [(name, f"{seconds:.2f}") for name, seconds in median_steps(found.rounds).items()])
    console.print("\nPer measured round (median) and process: CPU s; peak RSS of its largest process, PSS of all:")
    _table(
        console,
        ("process", "processes", "CPU s", "peak RSS MiB", "PSS MiB"),
        [
            (
                name,
                m.processes,
                f"{sum(found.cpu.get(name, ())):.2f}",
                _mib(m.peak_rss_bytes),
                _mib(m.pss_bytes),
            )
            for name, m in found.memory.items()
        ],
    )
    console.print("\nBytes on the wire per round, TLS and HTTP headers included; MLflow's are the coordinator's:")
    _table(
        console,
        ("connection", "sent", "received"),
        [(n, *(f"{v:,.0f}" for v in b)) for n, b in sorted(found.wire.items())],
    )
    if found.recoveries:
        console.print("\nKilled as a round began, started again at once; seconds since the kill:")
        _table(
            console,
            ("killed", "answers again", "study goes on", "round done", "study started anew", "round without"),
            [
                (
                    r.what,
                    f"{r.answers:.1f}",
                    f"{r.goes_on:.1f}",
                    f"{r.round_done:.1f}",
                    r.study_starts,
                    ", ".join(r.without) or "nobody",
                )
                for r in found.recoveries
            ],
        )
    console.print(f"\n{found.seconds:.0f} s in all. {describe_machine()}")


def _table(console: Console, headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    table = Table(box=box.MARKDOWN)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    console.print(table)


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f}"


def as_json(found: Figures) -> dict[str, Any]:
    """Returns the figures with the medians that people look for first."""
    medians = {
        "wall": median(r.wall for r in found.rounds),
        "beyond_compute": median(r.beyond for r in found.rounds),
        "beyond_training": median(r.wall - r.training for r in found.rounds),
        "steps": median_steps(found.rounds),
    }
    return {"median_seconds": medians, **asdict(found), "machine": describe_machine()}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.consortium", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="measured training rounds")
    parser.add_argument("--poll", type=float, default=0.3, help="longest pause between two looks, seconds")
    parser.add_argument("--recover", action=argparse.BooleanOptionalAction, default=True, help="kill every part once")
    parser.add_argument("--folder", type=Path, help="use this new folder and keep it")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if find_postgres_programs() is None:
        raise SystemExit("PostgreSQL is not installed.")
    found = measure(given.rounds, given.poll, given.recover, given.folder)
    if given.json:
        print(json.dumps(as_json(found), indent=2))
        return
    render(found, Console(width=None if sys.stdout.isatty() else 160))


if __name__ == "__main__":
    main()
