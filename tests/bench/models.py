"""Clipped per-patient sums beside plain SGD, and the verification of a long ledger: CPU seconds, one thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from schemas.plan import update_length
from tasks.ledger.verify import verify_log
from tasks.privacy.accounting import gdp_cost
from tests.ledger import logs
from tests.privacy.plans import make_mechanism
from tests.training.plans import make_cohort, make_contract, make_plan

FEATURES, HIDDEN = 60, 32
ROWS = 8192
TARGET_RATIO = 2.0
ENTRIES = 10_000
TARGET_SECONDS = 2.0
_REPEATS = 9


def cpu_seconds(step: Callable[[], object], repeats: int = _REPEATS) -> float:
    """Returns the median processor time of a step, after one run that warms up."""
    step()
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        step()
        taken.append(time.process_time() - start)
    return float(np.median(taken))


def plain_sgd(cohort: Any, outputs: int) -> Callable[[], None]:
    """One full-batch step of plain SGD by autograd in float64, the engine's own type: no clipping, no privacy."""
    import torch

    sizes = {"dtype": torch.float64}
    net = torch.nn.Sequential(
        torch.nn.Linear(FEATURES, HIDDEN, **sizes), torch.nn.Tanh(), torch.nn.Linear(HIDDEN, outputs, **sizes)
    )
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    features, labels = torch.from_numpy(cohort.features), torch.from_numpy(cohort.labels.astype(np.int64))

    def step() -> None:
        optimizer.zero_grad()
        logits = net(features)
        if outputs == 1:
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 0], labels.double())
        else:
            loss = torch.nn.functional.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()

    return step


def measure_training(rows: int = ROWS) -> dict[str, float]:
    """CPU seconds of one step over `rows` patients: plain SGD and ways to the sum of clipped gradients."""
    from tasks.training.closed_form import clipped_sum
    from tasks.training.gradients import patient_gradients, use_single_thread
    from tasks.training.train import train_sum

    use_single_thread()
    plan = make_plan(make_contract(FEATURES), hidden=(HIDDEN,))
    cohort = make_cohort(rows, features=FEATURES)
    cohort = replace(cohort, held_out=np.zeros_like(cohort.held_out))
    weights = np.random.default_rng(0).normal(0, 0.2, update_length(plan))
    return {
        "plain SGD 60-32-1": cpu_seconds(plain_sgd(cohort, 1)),
        "plain SGD 60-32-2": cpu_seconds(plain_sgd(cohort, 2)),
        "closed form, clipped exact sum": cpu_seconds(lambda: clipped_sum(plan, cohort, weights, 1 << 16)),
        "whole train_sum": cpu_seconds(lambda: train_sum(plan, cohort, weights)),
        "every patient's gradient in memory": cpu_seconds(lambda: patient_gradients(plan, cohort, weights), 2),
    }


def long_log(entries: int) -> list[bytes]:
    """A valid log of reservations, commits, records and shares."""
    event = make_mechanism(noise_multiplier="100").event()
    assert entries // 4 * gdp_cost(event) < 0.5
    original, logs.make_mechanism = logs.make_mechanism, lambda: make_mechanism(noise_multiplier="100")
    try:
        return logs.sign_log(logs.round_bodies(entries // 4))[:entries]
    finally:
        logs.make_mechanism = original


def measure_ledger(entries: int = ENTRIES) -> dict[str, float]:
    """CPU seconds of verifying a long log, and of its signatures alone."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    log, key = long_log(entries), Ed25519PrivateKey.generate()
    message = bytes(1100)
    signature, public = key.sign(message), key.public_key()

    def signatures() -> None:
        for _ in range(entries):
            public.verify(signature, message)

    return {
        "signatures alone": cpu_seconds(signatures, 2),
        "whole verification": cpu_seconds(lambda: verify_log(log, logs.OWNER, logs.KEY_HEX), 3),
    }


def render_models(console: Console, rows: int = ROWS, entries: int = ENTRIES) -> None:
    """Measures and prints both tables as Markdown."""
    table = Table(box=box.MARKDOWN)
    for heading in ("one step", "CPU ms", "ratio", "target"):
        table.add_column(heading, justify="left" if heading == "one step" else "right")
    found = measure_training(rows)
    plain = found["plain SGD 60-32-1"]
    for name, seconds in found.items():
        target = f"{TARGET_RATIO:g}" if name in ("closed form, clipped exact sum", "whole train_sum") else ""
        table.add_row(name, f"{seconds * 1e3:.2f}", f"{seconds / plain:.2f}", target)
    console.print(f"\nOne step over {rows:,} patients, MLP 60-32-1 (one logit), float64, one thread:\n")
    console.print(table)
    ledger = Table(box=box.MARKDOWN)
    for heading in ("ledger", "CPU s", "target"):
        ledger.add_column(heading, justify="left" if heading == "ledger" else "right")
    for name, seconds in measure_ledger(entries).items():
        ledger.add_row(name, f"{seconds:.2f}", f"{TARGET_SECONDS:g}" if name == "whole verification" else "")
    console.print(f"\n{entries:,} ledger entries:\n")
    console.print(ledger)
