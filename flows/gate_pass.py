"""One pass of the release gate, with or without Prefect around it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from flows.context import CoordinatorContext, open_coordinator
from flows.gate_steps import GateState, look_at_doors, settle
from flows.lease import hold_study


def pass_gate(home: Path, brought: Iterable[bytes] = ()) -> tuple[CoordinatorContext, GateState]:
    """Opens the coordinator's home and passes its gate once, for a person or a timer.

    Args:
        home: The coordinator's home.
        brought: Signed decisions that came as files.

    Raises:
        OperationError, EvidenceError: as `pass_doors_once`.
    """
    context = open_coordinator(home)
    return context, pass_doors_once(context, tuple(brought))


def pass_doors_once(context: CoordinatorContext, brought: tuple[bytes, ...]) -> GateState:
    """Looks at all doors and does what follows from the signed decisions behind them.

    Raises:
        OperationError: `study-running`, `no-reviewers`, `not-a-candidate`, `version-unknown`.
        EvidenceError: `evidence-failed`, `registry-altered`: nothing was released.
    """
    with hold_study(context.home):
        return settle(context, look_at_doors(context, brought))
