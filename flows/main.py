"""The coordinator's process: open the home, run the study, say how it ended."""

from __future__ import annotations

import asyncio
from pathlib import Path

from flows.context import open_coordinator
from flows.lease import hold_study
from flows.progress import Progress
from schemas.errors import ConsiliumError
from tasks.run_log import hide_expected_tracebacks


def run_coordinator(home: Path) -> None:
    """Runs the study of the coordinator's home to its release, continuing whatever an earlier run left.

    The environment must name the Prefect server (`PREFECT_API_URL`) before this is called.

    Raises:
        ConsiliumError: what stopped the study; also the last line of ``events.jsonl``, unless another run holds it.
    """
    hide_expected_tracebacks()
    progress = Progress(home / "events.jsonl")
    try:
        with hold_study(home):
            context = open_coordinator(home)
            from flows.study import run_study  # prefect reads its environment on import

            asyncio.run(run_study(context))
    except ConsiliumError as error:
        if error.code != "study-running":  # that stopped this call, not the study
            progress.emit("failed", code=error.code, message=error.message, remedy=error.remedy)
        raise
