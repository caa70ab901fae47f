"""Epsilon recomputed from ledger events by two other parties' accountants: Google's dp-accounting and Opacus.

They read nothing but each event's own figures (noise multiplier = effective_sigma / sensitivity, steps) and share no
code with `tasks.privacy.accounting`. Opacus imports torch, so an auditor runs it in a child process, if installed:
``python -m tasks.privacy.recompute`` reads {"delta", "events"} as JSON and prints the epsilon.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from schemas.errors import EvidenceError, OperationError
from schemas.ledger import GaussianEvent, PrivacyEvent
from tasks.privacy.accounting import epsilon_of_gdp, exact, gdp_cost

ORDERS = tuple([1 + x / 10 for x in range(1, 100)] + list(range(11, 64)) + [2.0**k for k in range(6, 13)])
# Allowed differences, relative and absolute. PLD rounds losses up to a grid, so it may stand above the exact value.
PLD_TOLERANCE = (0.005, 0.002)
RDP_TOLERANCE = (0.02, 0.002)
CHILD_TIMEOUT_SECONDS = 300


@dataclass(frozen=True)
class Recomputation:
    """Epsilon of a list of events, by privacy loss distribution and by Renyi divergences."""

    pld: float
    rdp: float


@dataclass(frozen=True)
class RecomputationCheck:
    """One comparison; `passed` is None where an accountant is not installed."""

    name: str
    passed: bool | None
    detail: str


def recompute_with_dp_accounting(events: Sequence[PrivacyEvent], delta: str) -> Recomputation:
    """Recomputes epsilon at `delta` by dp-accounting; the larger of training and held-out events, each composed."""
    from dp_accounting import GaussianDpEvent, SelfComposedDpEvent
    from dp_accounting.pld import PLDAccountant
    from dp_accounting.rdp import RdpAccountant

    pld = rdp = 0.0
    for part in _parts(events):
        by_pld, by_rdp = PLDAccountant(), RdpAccountant(orders=ORDERS)
        for multiplier, steps in _count_runs(part):
            event = SelfComposedDpEvent(GaussianDpEvent(multiplier), steps)
            by_pld.compose(event)
            by_rdp.compose(event)
        pld = max(pld, float(by_pld.get_epsilon(float(delta))))
        rdp = max(rdp, float(by_rdp.get_epsilon(float(delta))))
    return Recomputation(pld, rdp)


def recompute_with_opacus(events: Sequence[PrivacyEvent], delta: str) -> float:
    """Recomputes epsilon at `delta` by Opacus' RDP accountant (imports torch)."""
    from opacus.accountants import RDPAccountant

    worst = 0.0
    for part in _parts(events):
        accountant = RDPAccountant()
        accountant.history = [(multiplier, 1.0, steps) for multiplier, steps in _count_runs(part)]
        epsilon, _ = accountant.get_privacy_spent(delta=float(delta), alphas=list(ORDERS))
        worst = max(worst, float(epsilon))
    return worst


def run_opacus_in_subprocess(events: Sequence[PrivacyEvent], delta: str) -> float | None:
    """Runs `recompute_with_opacus` in a child process; None if Opacus is not installed.

    Raises:
        OperationError: `recomputation-failed` if the child fails.
    """
    if find_spec("opacus") is None:
        return None
    request = json.dumps({"delta": delta, "events": [event.model_dump(mode="json") for event in events]})
    command = [sys.executable, "-m", "tasks.privacy.recompute"]
    try:
        done = subprocess.run(
            command, input=request, capture_output=True, text=True, timeout=CHILD_TIMEOUT_SECONDS, check=True
        )
        return float(done.stdout.strip().splitlines()[-1])
    except (subprocess.SubprocessError, ValueError, IndexError):
        raise OperationError(
            "recomputation-failed", "The Opacus accountant did not answer.", "Run the audit again."
        ) from None


def check_recomputations(
    events: Sequence[PrivacyEvent], delta: str, with_opacus: bool = True
) -> tuple[RecomputationCheck, ...]:
    """Compares our epsilon with the independent ones: PLD agrees, PLD <= RDP, the two RDPs agree within 2 %.

    Raises:
        EvidenceError: `no-events`; an empty list would pass everything.
    """
    if not events:
        raise EvidenceError("no-events", "Expected at least one privacy event to recompute.")
    ours = max(epsilon_of_gdp(math.sqrt(sum(map(gdp_cost, part))), float(delta)) for part in _parts(events))
    theirs = recompute_with_dp_accounting(events, delta)
    opacus = run_opacus_in_subprocess(events, delta) if with_opacus else None
    below = theirs.pld <= theirs.rdp + _allowed(PLD_TOLERANCE, theirs.rdp)
    return (
        RecomputationCheck("pld-agrees", _close(ours, theirs.pld, PLD_TOLERANCE), f"{ours:.4f} and {theirs.pld:.4f}"),
        RecomputationCheck("pld-below-rdp", below, f"{theirs.pld:.4f} and {theirs.rdp:.4f}"),
        RecomputationCheck(
            "rdp-agrees",
            None if opacus is None else _close(opacus, theirs.rdp, RDP_TOLERANCE),
            "Opacus was not run" if opacus is None else f"{opacus:.4f} and {theirs.rdp:.4f}",
        ),
    )


def _parts(events: Sequence[PrivacyEvent]) -> list[list[GaussianEvent]]:
    parts = [[event for event in events if event.data == name] for name in ("training", "held-out")]
    return [part for part in parts if part]


def _count_runs(events: Sequence[GaussianEvent]) -> list[tuple[float, int]]:
    """Returns (noise multiplier, steps), equal multipliers joined."""
    counts: dict[float, int] = {}
    for event in events:
        multiplier = float(exact(event.effective_sigma) / event.sensitivity)
        counts[multiplier] = counts.get(multiplier, 0) + sum(steps for _, _, steps in event.runs)
    return sorted(counts.items())


def _close(left: float, right: float, tolerance: tuple[float, float]) -> bool:
    return abs(left - right) <= _allowed(tolerance, max(left, right))


def _allowed(tolerance: tuple[float, float], size: float) -> float:
    relative, absolute = tolerance
    return relative * size + absolute


def _main() -> None:
    request = json.load(sys.stdin)
    events = [GaussianEvent.model_validate_json(json.dumps(item)) for item in request["events"]]
    print(recompute_with_opacus(events, request["delta"]))


if __name__ == "__main__":
    _main()
