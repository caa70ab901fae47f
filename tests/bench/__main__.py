"""`make bench`: what a secure sum of five hospitals costs, beside plain TenSEAL with one shared key.

CPU seconds of one party, one thread. TenSEAL encrypts the same values in `ckks_vector`s of 4,096 with coefficient sizes
[60, 40, 40] and lets one party decrypt: no threshold, no exactness. The ratios are what a reader should look at.
"""

from __future__ import annotations

import platform
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tenseal
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from tests.secure_sum.world import Round, make_context, shared_ceremony

SIZES = (30, 10_000, 1_000_000)
SITES = 5
TENSEAL_LARGEST = 1_000_000
VECTOR = 4096


@dataclass
class Cost:
    """CPU seconds by step and bytes by message, for one size."""

    size: int
    seconds: dict[str, float] = field(default_factory=dict)
    size_bytes: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        started = time.process_time()
        yield
        self.seconds[step] = time.process_time() - started


def measure_sum(size: int, folder: Path) -> Cost:
    """Runs one round of `SITES` honest sites and checks that the opened sum is exact."""
    cost, generator = Cost(size), np.random.default_rng(7)
    round_ = Round(shared_ceremony(SITES), make_context(shared_ceremony(SITES), size), folder)
    sites = round_.context.instruction.participants
    values = {site: generator.integers(-(1 << 20), 1 << 20, size) for site in sites}
    with cost.timed("contribute"):
        round_.contribute(sites[0], values[sites[0]])
    for site in sites[1:]:
        round_.contribute(site, values[site])
    round_.propose()
    with cost.timed("certify"):
        round_.verify_as(sites[0])
    round_.certify()
    request = round_.request(sites[: round_.plan.threshold.t])
    with cost.timed("share"):
        first = round_.share(request.active_set[0], request)
    shares = {holder: round_.share(holder, request) for holder in request.active_set}
    with cost.timed("add"):
        round_.add()
    with cost.timed("add and open"):
        opened = round_.open(request, shares)
    if not np.array_equal(opened, sum(values.values())):
        raise SystemExit(f"The opened sum of {size} coefficients is not exact.")
    parts = round_.parts[sites[0]]
    sealed = sum(map(len, parts.shamir.values()))
    cost.size_bytes = {"up": parts.bulk_bytes + len(parts.key_ciphertext) + sealed, "share": len(first)}
    cost.seconds["open"] = max(cost.seconds["add and open"] - cost.seconds["add"], 0.0)
    return cost


def measure_tenseal(size: int) -> Cost:
    """Encrypts, adds and decrypts `size` values with one shared TenSEAL key."""
    cost = Cost(size)
    context = tenseal.context(tenseal.SCHEME_TYPE.CKKS, 8192, coeff_mod_bit_sizes=[60, 40, 40], n_threads=1)
    context.global_scale = 2.0**40
    values: NDArray[np.float64] = np.random.default_rng(7).normal(size=size)
    pieces = [values[start : start + VECTOR].tolist() for start in range(0, size, VECTOR)]
    with cost.timed("contribute"):
        blobs = [tenseal.ckks_vector(context, piece).serialize() for piece in pieces]
    cost.size_bytes["up"] = sum(map(len, blobs))
    with cost.timed("add"):
        sums = []
        for blob in blobs:
            total = tenseal.ckks_vector_from(context, blob)
            for _ in range(SITES - 1):
                total += tenseal.ckks_vector_from(context, blob)
            sums.append(total)
    with cost.timed("open"):
        for total in sums:
            total.decrypt()
    return cost


def render(rows: list[tuple[Cost, Cost | None]], console: Console) -> None:
    """Prints costs and ratios."""
    table = Table(title=f"One round of {SITES} hospitals, CPU seconds of one party", title_justify="left")
    for heading in ("coefficients", "contribute", "certify", "add", "share", "open", "bytes up each", "share bytes"):
        table.add_column(heading, justify="right")
    ratios = Table(title="Ratio to plain TenSEAL with one shared key (lower is better)", title_justify="left")
    for heading in ("coefficients", "contribute", "add", "open", "share / its decryption", "bytes up"):
        ratios.add_column(heading, justify="right")
    for ours, plain in rows:
        steps = [f"{ours.seconds[s]:.3f}" for s in ("contribute", "certify", "add", "share", "open")]
        up = ours.size_bytes["up"] / ours.size
        table.add_row(f"{ours.size:,}", *steps, f"{up:.1f}", f"{ours.size_bytes['share']:,}")
        if plain is not None:
            timed = [f"{ours.seconds[s] / plain.seconds[s]:.2f}" for s in ("contribute", "add", "open")]
            share = f"{ours.seconds['share'] / plain.seconds['open']:.2f}"
            ratios.add_row(f"{ours.size:,}", *timed, share, f"{ours.size_bytes['up'] / plain.size_bytes['up']:.3f}")
    console.print(table)
    console.print(ratios)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    console.print(f"{platform.machine()}, Python {platform.python_version()}, peak memory {peak:.0f} MiB (all parties)")


def main(sizes: tuple[int, ...]) -> None:
    """Measures every size and prints the tables."""
    rows: list[tuple[Cost, Cost | None]] = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            ours = measure_sum(size, Path(folder))
        rows.append((ours, measure_tenseal(size) if size <= TENSEAL_LARGEST else None))
    render(rows, Console(width=None if sys.stdout.isatty() else 120))


if __name__ == "__main__":
    main(tuple(int(text.replace("_", "")) for text in sys.argv[1:]) or SIZES)
