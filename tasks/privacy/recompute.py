"""Epsilon recomputed from ledger events by two other parties' accountants: Google's dp-accounting and Opacus.

They read nothing but each event's own figures (sampling probability, noise multiplier = effective_sigma / sensitivity,
steps) and share no code with `tasks.privacy.accounting`. Opacus imports torch, so an auditor runs it in a child
process, if installed: ``python -m tasks.privacy.recompute`` reads {"delta", "events"} as JSON and prints the epsilon.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from schemas.errors import EvidenceError, OperationError
from schemas.ledger import GaussianEvent, LaplaceEvent, PrivacyEvent
from tasks.privacy.accounting import REPORT_ORDERS, epsilon_of_events, exact, is_sampled

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
    from dp_accounting import GaussianDpEvent, LaplaceDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
    from dp_accounting.pld import PLDAccountant
    from dp_accounting.rdp import RdpAccountant

    pld = rdp = 0.0
    for part in _parts(events):
        by_pld, by_rdp = PLDAccountant(), RdpAccountant(orders=_orders(part))
        for multiplier, probability, steps in _count_runs(part):
            one = GaussianDpEvent(multiplier)
            event = SelfComposedDpEvent(one if probability == 1 else PoissonSampledDpEvent(probability, one), steps)
            by_pld.compose(event)
            by_rdp.compose(event)
        for laplace in _laplace_events(part):
            one = LaplaceDpEvent(float(exact(laplace.scale) / laplace.sensitivity))
            by_pld.compose(one)
            by_rdp.compose(one)
        pld = max(pld, float(by_pld.get_epsilon(float(delta))))
        rdp = max(rdp, float(by_rdp.get_epsilon(float(delta))))
    return Recomputation(pld, rdp)


def recompute_with_opacus(events: Sequence[PrivacyEvent], delta: str) -> float:
    """Recomputes epsilon at `delta` by Opacus' RDP accountant (imports torch), which knows no Laplace noise.

    Raises:
        ValueError: an event is not Gaussian.
    """
    from opacus.accountants import RDPAccountant

    worst = 0.0
    for part in _parts(events):
        if _laplace_events(part):
            raise ValueError("Opacus has no accountant for Laplace noise")
        accountant = RDPAccountant()
        accountant.history = _count_runs(part)
        epsilon, _ = accountant.get_privacy_spent(delta=float(delta), alphas=_orders(part))
        worst = max(worst, float(epsilon))
    return worst


def run_opacus_in_subprocess(events: Sequence[PrivacyEvent], delta: str) -> float | None:
    """Runs `recompute_with_opacus` in a child process; None if it is not installed or an event is not Gaussian.

    Raises:
        OperationError: `recomputation-failed` if the child fails.
    """
    if find_spec("opacus") is None or _laplace_events(events):
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

    Of sampled batches our epsilon is a Renyi one: it must agree with dp-accounting's, and PLD must be below it. A
    purely epsilon-private event is charged for the worst such mechanism: with one, PLD must be below ours.

    Raises:
        EvidenceError: `no-events`; an empty list would pass everything.
    """
    if not events:
        raise EvidenceError("no-events", "Expected at least one privacy event to recompute.")
    theirs = recompute_with_dp_accounting(events, delta)
    opacus = run_opacus_in_subprocess(events, delta) if with_opacus else None
    below = theirs.pld <= theirs.rdp + _allowed(PLD_TOLERANCE, theirs.rdp)
    return (
        *(_check_part(part, delta) for part in _parts(events)),
        RecomputationCheck("pld-below-rdp", below, f"{theirs.pld:.4f} and {theirs.rdp:.4f}"),
        RecomputationCheck(
            "rdp-agrees",
            None if opacus is None else _close(opacus, theirs.rdp, RDP_TOLERANCE),
            "Opacus was not run" if opacus is None else f"{opacus:.4f} and {theirs.rdp:.4f}",
        ),
    )


def _check_part(part: Sequence[PrivacyEvent], delta: str) -> RecomputationCheck:
    ours, theirs = float(epsilon_of_events(part, delta)), recompute_with_dp_accounting(part, delta)
    if _laplace_events(part):
        below = theirs.pld <= ours + _allowed(PLD_TOLERANCE, ours)
        return RecomputationCheck("pld-below", below, f"{ours:.4f} and {theirs.pld:.4f}")
    if any(is_sampled(event) for event in part):
        agrees = _close(ours, theirs.rdp, RDP_TOLERANCE) and theirs.pld <= ours + _allowed(PLD_TOLERANCE, ours)
        return RecomputationCheck("renyi-agrees", agrees, f"{ours:.4f} and {theirs.rdp:.4f}")
    return RecomputationCheck("pld-agrees", _close(ours, theirs.pld, PLD_TOLERANCE), f"{ours:.4f} and {theirs.pld:.4f}")


def _orders(part: Sequence[PrivacyEvent]) -> list[float]:
    """Returns the orders to search: for sampled batches the integer ones, where the formula is a finite sum."""
    return [float(a) for a in REPORT_ORDERS] if any(is_sampled(event) for event in part) else list(ORDERS)


def _parts(events: Sequence[PrivacyEvent]) -> list[list[PrivacyEvent]]:
    parts = [[event for event in events if event.data == name] for name in ("training", "held-out")]
    return [part for part in parts if part]


def _laplace_events(events: Sequence[PrivacyEvent]) -> list[LaplaceEvent]:
    return [event for event in events if isinstance(event, LaplaceEvent)]


def _count_runs(events: Sequence[PrivacyEvent]) -> list[tuple[float, float, int]]:
    """Returns (noise multiplier, sampling probability, steps) of the Gaussian events, equal runs joined."""
    counts: dict[tuple[float, float], int] = {}
    for event in events:
        if isinstance(event, LaplaceEvent):
            continue
        multiplier = float(exact(event.effective_sigma) / event.sensitivity)
        for probability, _, steps in event.runs:
            run = (multiplier, float(exact(probability)))
            counts[run] = counts.get(run, 0) + steps
    return [(*run, steps) for run, steps in sorted(counts.items())]


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
