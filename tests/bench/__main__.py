"""`make bench`: what a secure sum of five hospitals costs, beside plain TenSEAL with one shared key.

Every step runs in a process of its own, one thread. TenSEAL encrypts the same values in `ckks_vector`s of 4,096 with
coefficient sizes [60, 40, 40] and lets one party decrypt: no threshold, no exactness, no signatures. Its column is the
encryption, the addition or the decryption alone: writing its ciphertexts is not counted. Ours is all that the party
does: packing, hashing, signing, writing and, at the coordinator, verifying every upload.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tenseal
from rich import box
from rich.console import Console
from rich.table import Table

from tests.bench.audit import render_audit
from tests.bench.measure import Cost, measure
from tests.bench.models import render_models
from tests.secure_sum.protocol import Blobs, SecureSum
from tests.secure_sum.threshold_ckks import ThresholdCkksSum

SIZES = (30, 10_000, 1_000_000, 25_000_000)
SITES = 5
TENSEAL_LARGEST = 1_000_000
VECTOR = 4096
PIECE = 1 << 17
STEPS = {
    "contribute": ("site", "encrypt", "0.15"),
    "certify": ("site", None, ""),
    "share": ("site", "decrypt", "0.15"),
    "add": ("coordinator", "add", ""),
    "open": ("coordinator", "decrypt", "0.60"),
}


@dataclass
class Measured:
    """Costs by step and sizes by message of one sum."""

    size: int
    costs: dict[str, Cost] = field(default_factory=dict)
    size_bytes: dict[str, int] = field(default_factory=dict)


def pieces_of(site: str, size: int) -> Iterator[Any]:
    """A site's values, made as they are needed: int64 pieces."""
    generator = np.random.default_rng(int(site[-2:]))
    for start in range(0, size, PIECE):
        yield generator.integers(-(1 << 20), 1 << 20, min(PIECE, size - start))


def measure_sum(protocol: SecureSum, size: int, folder: Path) -> Measured:
    """Runs one sum among honest sites and checks that the opened integers are exact."""
    out, sites = Measured(size), protocol.sites
    protocol.set_up()
    first = mapped_values(folder / "values", sites[0], size)
    uploads: dict[str, Blobs] = {}
    for site in sites:
        values = first if site == sites[0] else pieces_of(site, size)
        uploads[site], cost = measure(partial(protocol.contribute, site, values))
        out.costs.setdefault("contribute", cost)
    total, out.costs["add"] = measure(partial(protocol.add, uploads))
    _, out.costs["certify"] = measure(partial(protocol.certify, sites[0], total))
    certificate = {site: protocol.certify(site, total) for site in sites}
    active = sites[: protocol.threshold]
    share, out.costs["share"] = measure(partial(protocol.share, sites[0], total, certificate, active))
    shares = {site: protocol.share(site, total, certificate, active) for site in active}

    def open_to_file() -> None:
        protocol.open(total, certificate, shares).tofile(folder / "opened")

    _, out.costs["open"] = measure(open_to_file)
    verify_exact(folder / "opened", size, sites)
    out.size_bytes = {"up": sum(map(size_of, uploads[sites[0]].values())), "share": len(share)}
    return out


def mapped_values(path: Path, site: str, size: int) -> Any:
    """A site's values in a file, as a site holds an update that is larger than its memory."""
    with path.open("wb") as out:
        for piece in pieces_of(site, size):
            out.write(piece.tobytes())
    return np.memmap(path, dtype=np.int64, mode="r", shape=(size,))


def size_of(blob: bytes | Path) -> int:
    """Returns the bytes of one message."""
    return len(blob) if isinstance(blob, bytes) else blob.stat().st_size


def verify_exact(path: Path, size: int, sites: tuple[str, ...]) -> None:
    """Ends the run unless every opened integer is the sum of the sites' integers."""
    opened = np.memmap(path, dtype=np.int64, mode="r", shape=(size,))
    for number, pieces in enumerate(zip(*(pieces_of(site, size) for site in sites), strict=True)):
        if not np.array_equal(opened[number * PIECE : (number + 1) * PIECE], sum(pieces)):
            raise SystemExit(f"The opened sum of {size} coefficients is not exact.")


def measure_tenseal(size: int) -> Measured:
    """Encrypts, adds and decrypts `size` values with one shared TenSEAL key."""
    out = Measured(size)
    context = tenseal.context(tenseal.SCHEME_TYPE.CKKS, 8192, coeff_mod_bit_sizes=[60, 40, 40], n_threads=1)
    context.global_scale = 2.0**40
    values = np.concatenate(list(pieces_of("site-00", size))).astype(np.float64)
    pieces = [values[start : start + VECTOR].tolist() for start in range(0, size, VECTOR)]

    def run() -> tuple[dict[str, Cost], int]:
        costs: dict[str, Cost] = {}

        def timed(step: str, work: Any) -> Any:
            cpu, wall = time.process_time(), time.perf_counter()
            result = work()
            costs[step] = Cost(time.process_time() - cpu, time.perf_counter() - wall, 0)
            return result

        vectors = timed("encrypt", lambda: [tenseal.ckks_vector(context, piece) for piece in pieces])
        blobs = timed("serialize", lambda: [vector.serialize() for vector in vectors])
        sums = timed("add", lambda: [_add(context, blob) for blob in blobs])
        timed("decrypt", lambda: [total.decrypt() for total in sums])
        return costs, sum(map(len, blobs))

    (out.costs, out.size_bytes["up"]), whole = measure(run)
    out.costs["whole"] = whole
    return out


def _add(context: Any, blob: bytes) -> Any:
    total = tenseal.ckks_vector_from(context, blob)
    for _ in range(SITES - 1):
        total += tenseal.ckks_vector_from(context, blob)
    return total


def render(rows: list[tuple[Measured, Measured | None]], console: Console, processes: int = 1) -> None:
    """Prints costs and ratios; the tables are Markdown, so that they can be kept."""
    table = Table(box=box.MARKDOWN)
    for heading in ("coefficients", "step", "at", "CPU s", "wall s", "peak MiB", "TenSEAL CPU s", "ratio", "target"):
        table.add_column(heading, justify="left" if heading in ("step", "at") else "right")
    upload = Table(box=box.MARKDOWN)
    for heading in (
        "coefficients",
        "bytes up",
        "per coefficient",
        "TenSEAL bytes up",
        "ratio",
        "target",
        "share bytes",
    ):
        upload.add_column(heading, justify="right")
    for ours, plain in rows:
        for step, (place, counterpart, target) in STEPS.items():
            cost = ours.costs[step]
            other = plain.costs[counterpart] if plain is not None and counterpart else None
            ratio = f"{cost.cpu_seconds / max(other.cpu_seconds, 1e-9):.2f}" if other else ""
            figures = [f"{cost.cpu_seconds:.3f}", f"{cost.wall_seconds:.3f}", f"{cost.peak_bytes / 2**20:.0f}"]
            aim = target if ours.size == TENSEAL_LARGEST else ""
            theirs = f"{other.cpu_seconds:.3f}" if other else ""
            table.add_row(f"{ours.size:,}", step, place, *figures, theirs, ratio, aim)
        up, sent = ours.size_bytes["up"], plain.size_bytes["up"] if plain is not None else 0
        compared = (
            [f"{sent:,}", f"{up / sent:.3f}", "0.12" if ours.size == TENSEAL_LARGEST else ""] if sent else [""] * 3
        )
        upload.add_row(f"{ours.size:,}", f"{up:,}", f"{up / ours.size:.2f}", *compared, f"{ours.size_bytes['share']:,}")
    console.print(f"One round of {SITES} hospitals (t = 3), one party's share of the work, {processes} process(es):\n")
    console.print(table)
    console.print("\nBytes, ratio to plain TenSEAL with one shared key:\n")
    console.print(upload)
    if processes > 1:
        console.print("\nCPU s and peak MiB are of the leading process alone: read wall s.")
    console.print(f"\n{describe_machine()}")


def describe_machine() -> str:
    """Returns processor, cores and Python version."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown processor"
    )
    load = os.getloadavg()[0]
    return (
        f"{model}, {os.cpu_count()} cores, load {load:.1f}, Python {platform.python_version()}, numpy {np.__version__}"
    )


def main() -> None:
    """Measures every size and prints the tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__.splitlines()[0])
    parser.add_argument("sizes", nargs="*", type=lambda text: int(text.replace("_", "").replace(",", "")))
    parser.add_argument("--processes", type=int, default=1, help="over how many processes bulk work is spread")
    parser.add_argument("--models", action="store_true", help="only training steps and ledger verification")
    parser.add_argument("--audit", action="store_true", help="only the audit of a small and of a large study")
    given = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 160)
    if given.audit:
        render_audit(console)
        console.print(f"\n{describe_machine()}")
        return
    if given.models:
        render_models(console)
        console.print(f"\n{describe_machine()}")
        return
    rows: list[tuple[Measured, Measured | None]] = []
    for size in given.sizes or SIZES:
        with tempfile.TemporaryDirectory() as folder:
            protocol = ThresholdCkksSum(SITES, size, Path(folder), given.processes)
            ours = measure_sum(protocol, size, Path(folder))
        rows.append((ours, measure_tenseal(size) if size <= TENSEAL_LARGEST else None))
    render(rows, console, given.processes)
    if not given.sizes:
        render_models(console)
        render_audit(console)


if __name__ == "__main__":
    main()
