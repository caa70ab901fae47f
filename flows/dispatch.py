"""Asks a site's agent to start one of its flows, and looks at how far it got. Nothing that a run returns is believed.

A dispatch is idempotent: the same key always names the same flow run. A run that died needs a new dispatch number in
its key, which changes nothing that a site signs: the site's outbox answers an instruction once, however often it is
asked.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import anyio
import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterIdempotencyKey
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments.flow_runs import arun_deployment
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.states import Crashed

from schemas.errors import OperationError

UNREADABLE_CODE: Final = "unreadable-code"
_CODE: Final = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


@dataclass(frozen=True)
class RunState:
    """How far a site's flow run got, by the server's account; evidence is only what the site signed.

    Args:
        type: Prefect's state type, e.g. `RUNNING`.
        name: Prefect's state name, e.g. `Refused`.
        code: The site's code for a refusal or failure; None for any other state.
    """

    type: str
    name: str
    code: str | None

    @property
    def is_final(self) -> bool:
        """Says whether the run has ended."""
        return self.type in {"COMPLETED", "FAILED", "CANCELLED", "CRASHED"}

    @property
    def has_started(self) -> bool:
        """Says whether the site's agent took the run up."""
        return self.is_final or self.type == "RUNNING"

    @property
    def is_refused(self) -> bool:
        """Says whether the site declined."""
        return self.type == "CANCELLED" and self.name == "Refused"


def dispatch_key(study: str, kind: str, site: str, *, round: int | None = None, dispatch: int = 1) -> str:
    """Returns the idempotency key of one dispatch.

    Args:
        study: The study id.
        kind: What is asked for: the site flow's name.
        round: Round or epoch number, where the flow has one.
        dispatch: 1 for the first; the next number after a run that died.
    """
    return "/".join([study, kind, "-" if round is None else str(round), site, str(dispatch)])


async def dispatch(
    site: str,
    flow_name: str,
    parameters: Mapping[str, Any],
    idempotency_key: str,
    *,
    run_name: str | None = None,
    tags: Sequence[str] = (),
    is_new: bool = False,
) -> str:
    """Starts the deployment `<flow_name>/<site>` and returns the flow run's id without waiting for it.

    Inside a flow the new run is linked as its child. Call it for one site after another: SQLite stalls on several
    writers, and on PostgreSQL four at once took longer (a round of 3.9 s instead of 3.2 on two cores).

    Args:
        is_new: `find_keys` has just not found the key: it is not looked for again.

    Raises:
        OperationError: `site-not-registered`, `dispatch-rejected`, `prefect-unreachable`.
    """
    deployment = f"{flow_name}/{site}"
    try:
        existing = [] if is_new else await _find_runs([idempotency_key])
        if existing:
            return str(existing[0].id)
        flow_run = await arun_deployment(
            deployment,
            parameters=dict(parameters),
            idempotency_key=idempotency_key,
            flow_run_name=run_name,
            tags=list(tags),
            timeout=0,
        )
    except ObjectNotFound:
        raise OperationError(
            "site-not-registered", f"There is no deployment {deployment}.", f"Start the agent of {site}."
        ) from None
    except PrefectHTTPStatusError as error:
        raise OperationError(
            "dispatch-rejected",
            f"The Prefect server rejected {deployment} (status {error.response.status_code}).",
            "Let coordinator and site run the same version.",
        ) from None
    except httpx.HTTPError:
        raise OperationError(
            "prefect-unreachable", "The Prefect server did not answer.", "Start it, then resume the study."
        ) from None
    return str(flow_run.id)


async def find_keys(idempotency_keys: Sequence[str]) -> set[str]:
    """Returns which of the keys name a run already: one request for all sites of a step.

    Raises:
        OperationError: `prefect-unreachable`.
    """
    try:
        return {run.idempotency_key or "" for run in await _find_runs(idempotency_keys)}
    except httpx.HTTPError:
        raise OperationError(
            "prefect-unreachable", "The Prefect server did not answer.", "Start it, then resume the study."
        ) from None


async def _find_runs(idempotency_keys: Sequence[str]) -> list[FlowRun]:
    """Returns the runs of these keys: asking first keeps a replay from leaving an empty child in the run graph."""
    wanted = FlowRunFilter(idempotency_key=FlowRunFilterIdempotencyKey(any_=list(idempotency_keys)))
    async with get_client() as client:
        return await client.read_flow_runs(flow_run_filter=wanted)


async def run_state(flow_run_id: str) -> RunState:
    """Returns the present state of a dispatched run; a run that the server lost counts as crashed.

    Raises:
        OperationError: `prefect-unreachable`.
    """
    try:
        async with get_client() as client:
            flow_run = await client.read_flow_run(UUID(flow_run_id))
    except ObjectNotFound:
        return RunState("CRASHED", "Lost", None)
    except httpx.HTTPError:
        raise OperationError(
            "prefect-unreachable", "The Prefect server did not answer.", "Start it, then resume the study."
        ) from None
    return _readable(flow_run.state)


def _readable(state: State[Any] | None) -> RunState:
    if state is None:
        return RunState("SCHEDULED", "Unknown", None)
    code = None
    if state.is_final() and not state.is_completed():
        # Written by the site or by whoever owns the server: shown to a person, so only a code is passed on.
        code = state.message if state.message and _CODE.fullmatch(state.message) else UNREADABLE_CODE
    return RunState(state.type.value, state.name or state.type.value, code)


async def wait_for_start(flow_run_id: str, deadline_seconds: float, poll_seconds: float = 0.2) -> RunState:
    """Waits until the site's agent took the run up; after the deadline returns the state as it is."""
    return await _wait(flow_run_id, deadline_seconds, poll_seconds, lambda state: state.has_started)


async def wait_for_end(flow_run_id: str, deadline_seconds: float, poll_seconds: float = 0.5) -> RunState:
    """Waits until the run has ended; after the deadline returns the state as it is, so look at `is_final`.

    An agent that was killed leaves its run in `Running` for ever: silence is a drop-out.
    """
    return await _wait(flow_run_id, deadline_seconds, poll_seconds, lambda state: state.is_final)


async def _wait(
    flow_run_id: str, deadline_seconds: float, poll_seconds: float, reached: Callable[[RunState], bool]
) -> RunState:
    deadline = time.monotonic() + deadline_seconds
    while True:
        state = await run_state(flow_run_id)
        if reached(state) or time.monotonic() >= deadline:
            return state
        await anyio.sleep(poll_seconds)


async def abandon_run(flow_run_id: str, code: str) -> None:
    """Marks a run that is given up as crashed, so that nobody sees it running for ever; an ended run stays as it is.

    An agent that still works on it notices and stops.

    Raises:
        OperationError: `prefect-unreachable`.
    """
    try:
        async with get_client() as client:
            flow_run = await client.read_flow_run(UUID(flow_run_id))
            if flow_run.state is None or not flow_run.state.is_final():
                await client.set_flow_run_state(flow_run.id, Crashed(message=code), force=True)
    except ObjectNotFound:
        return
    except httpx.HTTPError:
        raise OperationError(
            "prefect-unreachable", "The Prefect server did not answer.", "Start it, then resume the study."
        ) from None
