"""A hospital's Prefect worker: it runs the few flows installed here and nothing that the server describes.

Invariants
1. What runs is chosen by name from a mapping made on this machine. Entry points, commands, environments, pull steps,
   job variables, storage and retries that come with a run are never used; a run that carries any of them is refused.
2. Parameters are small JSON that passes a closed, strict model.
3. No result, exception or log line is stored anywhere that the server chooses.
4. A refused run ends as Cancelled(name="Refused", message=code), and the site is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import fcntl
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final
from uuid import UUID

import anyio.abc
import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import InfrastructureNotFound, ObjectAlreadyExists, ObjectNotFound, PrefectException
from prefect.states import Cancelled
from prefect.workers.base import BaseVariables, BaseWorker, BaseWorkerResult

from schemas.errors import OperationError
from site_agents.admission import AgentFlow, RefusedRunError, SiteJobConfiguration, accept_run, pool_name
from site_agents.flow_thread import FlowThread
from site_agents.leftovers import RememberedRuns
from site_agents.run_states import hide_exception_text, refused_state
from tasks.run_log import hide_expected_tracebacks

WORKER_TYPE: Final = "consilium-site"
_CLOSED_TEMPLATE: Final[dict[str, Any]] = {
    "job_configuration": {"name": None},
    "variables": {"type": "object", "properties": {}, "additionalProperties": False},
}
_LONGEST_BACKOFF_SECONDS: Final = 15.0
_CANCEL_CHECK_SECONDS: Final = 5.0
_EAGER_SECONDS: Final = 60.0
_CALM_POLL_SECONDS: Final = 3.0

_log = logging.getLogger("consilium.site")


class SiteResult(BaseWorkerResult):
    """What the worker reports of a finished run: that its thread has ended."""


class ConsiliumWorker(BaseWorker[SiteJobConfiguration, BaseVariables, SiteResult]):
    """Worker type `consilium-site`: the only way a run reaches a hospital."""

    type = WORKER_TYPE
    job_configuration = SiteJobConfiguration
    cleanup_max_concurrency: ClassVar[int | None] = 0  # the server sends this agent no clean-up work
    _description = "Runs the flows that a hospital has installed; ignores everything else."

    def __init__(
        self,
        work_pool_name: str,
        *,
        site: str,
        flows: Mapping[str, AgentFlow],
        on_refusal: Callable[[str, str], None],
        remembered: RememberedRuns | None = None,
    ) -> None:
        """Makes the worker of `site`; `on_refusal` is called with a code and the flow run's id.

        Args:
            remembered: Where running flows are marked, for the next start after a crash.
        """
        super().__init__(
            work_pool_name, name=f"{site}-{socket.gethostname()}-{os.getpid()}", create_pool_if_not_found=False
        )
        self._site = site
        self._flows = dict(flows)
        self._on_refusal = on_refusal
        self._remembered = remembered
        self._threads: dict[UUID, FlowThread] = {}
        self._last_run_ended = time.monotonic()
        self._run_ended = anyio.Event()

    @classmethod
    def get_default_base_job_template(cls) -> dict[str, Any]:
        """Returns the closed template: no variable can be set."""
        return copy.deepcopy(_CLOSED_TEMPLATE)

    async def run(
        self,
        flow_run: FlowRun,
        configuration: SiteJobConfiguration,
        task_status: anyio.abc.TaskStatus[Any] | None = None,
    ) -> SiteResult:
        """Runs an accepted flow run to its end, or refuses it."""
        with contextlib.nullcontext() if self._remembered is None else self._remembered.during(flow_run.id):
            return await self._run(flow_run, configuration, task_status)

    async def _run(
        self, flow_run: FlowRun, configuration: SiteJobConfiguration, task_status: anyio.abc.TaskStatus[Any] | None
    ) -> SiteResult:
        identifier = f"{self.name}:{flow_run.id}"
        try:
            accepted, parameters = accept_run(self._site, self._flows, flow_run, configuration)
        except RefusedRunError as refusal:
            await self._refuse(flow_run, str(refusal))
            _report_started(task_status, identifier)
            return SiteResult(identifier=identifier, status_code=0)
        thread = FlowThread(accepted.flow, flow_run, parameters.model_dump())
        self._threads[flow_run.id] = thread
        thread.start()
        _report_started(task_status, identifier)
        try:
            error = await thread.wait()
        except BaseException:
            thread.cancel()
            raise
        finally:
            self._threads.pop(flow_run.id, None)
            self._last_run_ended = time.monotonic()
            self._run_ended.set()
        if error is not None:
            _log.error("flow run %s ended early: %s", flow_run.id, type(error).__name__, exc_info=error)
        return SiteResult(identifier=identifier, status_code=0 if error is None else 1)

    async def _refuse(self, flow_run: FlowRun, code: str) -> None:
        _log.warning("refused flow run %s: %s", flow_run.id, code)
        try:
            self._on_refusal(code, str(flow_run.id))
        except Exception:
            _log.exception("could not record the refusal of flow run %s", flow_run.id)
        await self.client.set_flow_run_state(flow_run.id, refused_state(code), force=True)

    async def kill_infrastructure(
        self, infrastructure_pid: str, configuration: SiteJobConfiguration, grace_seconds: int = 30
    ) -> None:
        """Cancels the run that `infrastructure_pid` names and waits until its thread has ended.

        Raises:
            InfrastructureNotFound: the run is not one of this process's.
        """
        name, _, run_id = infrastructure_pid.rpartition(":")
        thread = self._threads.get(UUID(run_id)) if name == self.name else None
        if thread is None:
            raise InfrastructureNotFound("This agent does not run that flow run.")
        thread.cancel(Cancelled(message="cancelled-on-request"))
        with anyio.move_on_after(grace_seconds):
            await thread.wait()

    def pause_seconds(self, poll_seconds: float) -> float:
        """Returns the pause before the next question: short only when a next round is likely to be waiting."""
        expects_work = not self._threads and time.monotonic() - self._last_run_ended < _EAGER_SECONDS
        return poll_seconds if expects_work else max(poll_seconds, _CALM_POLL_SECONDS)

    async def pause(self, seconds: float) -> None:
        """Waits `seconds`, or until a run has ended: the next one may have been waiting for it."""
        with anyio.move_on_after(seconds):
            await self._run_ended.wait()
            self._run_ended = anyio.Event()

    async def _give_worker_labels_to_flow_run(self, flow_run_id: UUID) -> None:
        """Leaves out a request: the work pool's name tells the site."""

    async def _propose_submitting_state(self, flow_run: FlowRun) -> None:
        """Leaves out a request: this worker submits to nobody."""

    async def stop_withdrawn_runs(self) -> None:
        """Cancels the threads of runs that somebody cancelled, declared dead or deleted on the server."""
        for run_id, thread in list(self._threads.items()):
            if await self._is_withdrawn(run_id):
                thread.cancel(Cancelled(message="cancelled-on-request"))

    async def _is_withdrawn(self, run_id: UUID) -> bool:
        try:
            state = (await self.client.read_flow_run(run_id)).state
        except ObjectNotFound:
            return True
        return state is not None and (state.is_cancelling() or state.is_final())

    async def finish_runs(self, grace_seconds: float) -> None:
        """Gives running flows `grace_seconds` to end, then cancels them so that none stays `Running` for ever."""
        with anyio.move_on_after(grace_seconds):
            await self._wait_for_threads()
        for thread in self._threads.values():
            thread.cancel()
        with anyio.move_on_after(5.0):
            await self._wait_for_threads()

    async def _wait_for_threads(self) -> None:
        for thread in list(self._threads.values()):
            await thread.wait()


def _report_started(task_status: anyio.abc.TaskStatus[Any] | None, identifier: str) -> None:
    if task_status is not None:
        task_status.started(identifier)


async def ensure_site_pool(site: str) -> None:
    """Makes the site's closed work pool unless it exists.

    Raises:
        OperationError: `work-pool-foreign`, when the name belongs to a pool of another type.
    """
    async with get_client() as client:
        try:
            await client.read_work_pool(pool_name(site))
        except ObjectNotFound:
            wanted = WorkPoolCreate(name=pool_name(site), type=WORKER_TYPE, base_job_template=_CLOSED_TEMPLATE)
            with contextlib.suppress(ObjectAlreadyExists):
                await client.create_work_pool(wanted)
        await _check_pool(client, site)


async def ensure_site_deployments(site: str, flows: Mapping[str, AgentFlow]) -> None:
    """Makes or renews the deployments `<flow name>/<site>` with closed, enforced parameters; no code, no path."""
    async with get_client() as client:
        for name, entry in flows.items():
            await client.create_deployment(
                flow_id=await client.create_flow_from_name(name),
                name=site,
                description=entry.flow.description,
                work_pool_name=pool_name(site),
                parameter_openapi_schema=entry.parameters.model_json_schema(),
                enforce_parameter_schema=True,
            )


@contextlib.asynccontextmanager
async def _alone(lock: Path | None) -> AsyncIterator[None]:
    """Holds the lock file, if there is one; the kernel gives it back however its holder ends."""
    if lock is None:
        yield
        return
    with lock.open("ab") as handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await anyio.sleep(0.1)
        yield


async def _check_pool(client: PrefectClient, site: str) -> None:
    try:
        pool = await client.read_work_pool(pool_name(site))
    except ObjectNotFound:
        # A stock worker would create a pool under a mistyped name and wait there for ever.
        raise OperationError(
            "work-pool-missing",
            f"There is no work pool {pool_name(site)}.",
            "The coordinator makes it with coordinator deploy; then start the agent again. Is the site's name right?",
        ) from None
    except httpx.HTTPStatusError as error:
        raise OperationError(
            "prefect-unreachable",
            f"The coordinator's server does not let this agent in: {_words(error)}.",
            "Ask the coordinator for the newest token, write it to token_file and start the agent again.",
        ) from None
    if pool.type != WORKER_TYPE:
        raise OperationError(
            "work-pool-foreign", f"Expected work pool {pool.name} of type {WORKER_TYPE}, got {pool.type}.", "Remove it."
        )


async def run_agent(
    site: str,
    flows: Mapping[str, AgentFlow],
    *,
    on_refusal: Callable[[str, str], None],
    poll_seconds: float = 0.3,
    register: bool = True,
    registration_lock: Path | None = None,
    remembered: RememberedRuns | None = None,
    on_ready: Callable[[], None] | None = None,
    grace_seconds: float = 20.0,
    stop: asyncio.Event | None = None,
) -> None:
    """Serves the site's work pool until SIGTERM, SIGINT or `stop`.

    Args:
        site: The site's name; its pool and deployments are named after it.
        flows: Flow name to local flow.
        on_refusal: Called with (code, flow run id) for each refused run.
        poll_seconds: Pause between two questions to the server while a run is expected; three seconds otherwise.
        register: Make pool and deployments first; False in a deployment whose coordinator made them.
        remembered: Where running flows are marked, for the next start after a crash.
        registration_lock: Held while registering; agents that share it register one after another.
        on_ready: Called once the first question is about to be asked.
        grace_seconds: Time that running flows get to end after the signal.

    Raises:
        OperationError: `work-pool-missing`, `work-pool-foreign`, `prefect-unreachable`.
    """
    hide_exception_text()
    hide_expected_tracebacks()
    for name, entry in flows.items():
        if entry.flow.name != name:
            raise TypeError(f"Expected flow {name}, got {entry.flow.name}.")
    if register:
        async with _alone(registration_lock):
            await ensure_site_pool(site)
            await ensure_site_deployments(site, flows)
    async with get_client() as client:
        await _check_pool(client, site)
    stop = stop or asyncio.Event()
    async with (
        _signals_set(stop),
        ConsiliumWorker(
            pool_name(site), site=site, flows=flows, on_refusal=on_refusal, remembered=remembered
        ) as worker,
    ):
        async with anyio.create_task_group() as loops:
            loops.start_soon(
                _repeat, worker.get_and_submit_flow_runs, lambda: worker.pause_seconds(poll_seconds), worker.pause
            )
            loops.start_soon(_repeat, worker.sync_with_backend, lambda: worker.heartbeat_interval_seconds)
            loops.start_soon(_repeat, worker.stop_withdrawn_runs, lambda: max(_CANCEL_CHECK_SECONDS, poll_seconds))
            if on_ready is not None:
                on_ready()
            await stop.wait()
            loops.cancel_scope.cancel()
        await worker.finish_runs(grace_seconds)


async def _repeat(
    work: Callable[[], Awaitable[object]],
    pause_seconds: Callable[[], float],
    pause: Callable[[float], Awaitable[None]] = anyio.sleep,
) -> None:
    """Calls `work` for ever; a server that is away, or answers nonsense, is asked less often and never given up."""
    failures = 0
    while True:
        try:
            await work()
            failures = 0
        # ValueError: an answer that is no JSON, or not what was asked for.
        except (httpx.HTTPError, OSError, PrefectException, ValueError) as error:
            failures += 1
            if failures in (1, 10) or failures % 100 == 0:
                _log.warning("the Prefect server does not answer (%s); trying again", _words(error))
        seconds = pause_seconds()
        await pause(min(seconds * 2 ** min(failures, 8), max(seconds, _LONGEST_BACKOFF_SECONDS)))


def _words(error: Exception) -> str:
    """Says what went wrong; neither address nor answer."""
    if not isinstance(error, httpx.HTTPStatusError):
        return type(error).__name__
    status = error.response.status_code
    return "it refuses the site's token" if status == httpx.codes.UNAUTHORIZED else f"status {status}"


@contextlib.asynccontextmanager
async def _signals_set(stop: asyncio.Event) -> AsyncIterator[None]:
    """Lets SIGTERM and SIGINT set `stop`, where this loop runs in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
