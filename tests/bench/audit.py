"""What `consilium audit verify` costs: processor seconds for a small and for a large study, real evidence of each."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from tasks.audit.keys import read_public_keys
from tasks.audit.verify import verify_evidence
from tests.bench.measure import Cost, measure
from tests.simulator import open_consortium, prepare

STUDIES = ((5, 2), (32, 20))
TARGET_STUDY, TARGET_SECONDS = (32, 20), 10.0


def make_evidence(folder: Path, sites: int, rounds: int) -> tuple[Path, Path]:
    """Runs a whole study in this process, encrypted, and returns its evidence and the file of public keys."""
    prepared = prepare(folder, rounds=rounds, sites=sites)
    consortium = open_consortium(prepared)
    public = consortium.run_ceremony()
    for round_ in range(1, rounds + 1):
        consortium.run_round(public, round_)
    evaluation = consortium.run_round(public, rounds + 1, "evaluate")
    return consortium.release(rounds, evaluation), prepared.keys


def measure_audit(evidence: Path, keys: Path) -> Cost:
    """Costs of one audit in a process of its own.

    Raises:
        SystemExit: a check failed; a wrong audit has no figure.
    """
    report, cost = measure(lambda: verify_evidence(evidence, read_public_keys(keys)))
    failed = [result.check for result in report.results if result.status == "failed"]
    if failed:
        raise SystemExit(f"The audit of the bench's own study failed: {', '.join(failed)}.")
    return cost


def render_audit(console: Console, studies: tuple[tuple[int, int], ...] = STUDIES) -> None:
    """Makes a study of each size, audits it and prints the costs as Markdown."""
    table = Table(box=box.MARKDOWN)
    for heading in (
        "sites",
        "rounds",
        "files",
        "MB",
        "audit CPU s",
        "wall s",
        "peak MiB",
        "target CPU s",
        "making it, s",
    ):
        table.add_column(heading, justify="right")
    for sites, rounds in studies:
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            evidence, keys = make_evidence(Path(folder) / "study", sites, rounds)
            made = time.perf_counter() - started
            sizes = [path.stat().st_size for path in evidence.rglob("*") if path.is_file()]
            cost = measure_audit(evidence, keys)
        target = f"{TARGET_SECONDS:g}" if (sites, rounds) == TARGET_STUDY else ""
        figures = (f"{cost.cpu_seconds:.2f}", f"{cost.wall_seconds:.2f}", f"{cost.peak_bytes / 2**20:.0f}")
        table.add_row(
            f"{sites}", f"{rounds}", f"{len(sizes):,}", f"{sum(sizes) / 1e6:.0f}", *figures, target, f"{made:.0f}"
        )
    console.print("\n`consilium audit verify` of a whole encrypted study, every check:\n")
    console.print(table)
    console.print("\nCheck C28 asks Opacus in a child process, whose time is in wall s alone.")
