"""Runs one accepted flow in a thread of its own, so that neither the server nor another study can disturb it."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import copy
import functools
import threading
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

from prefect.client.schemas.objects import FlowRun, State
from prefect.flow_engine import run_flow_async
from prefect.flows import Flow
from prefect.settings import get_current_settings
from prefect.states import Crashed

from site_agents.run_states import refused_state, state_of_error

AGENT_STOPPED: Final = "agent-stopped"

SiteFlow = Flow[..., Coroutine[Any, Any, Any]]


def guard_flow(flow: SiteFlow, cancelled_as: Callable[[], State[Any]]) -> SiteFlow:
    """Returns a copy whose body runs once, whose errors leave as codes and whose results stay in memory or here.

    `cancelled_as` says in which state a cancelled body ends.

    The server can name a result storage of its own for flows that name none, and can answer a finished run with
    "running" so that the engine starts the body again; both end here.
    """
    guarded = copy.copy(flow)
    body = flow.fn
    started = False

    @functools.wraps(body)
    async def run_once(*args: Any, **kwargs: Any) -> Any:
        nonlocal started
        if started:
            return refused_state("run-repeated")
        started = True
        try:
            return await body(*args, **kwargs)
        except asyncio.CancelledError:
            return cancelled_as()
        except Exception as error:
            return state_of_error(error)

    guarded.fn = run_once
    guarded.persist_result = bool(flow.persist_result)
    guarded.result_storage = get_current_settings().results.local_storage_path
    guarded.result_serializer = "json"
    return guarded


class FlowThread:
    """One flow run in a thread with its own event loop.

    A step that blocks holds up its own study only, and Prefect's signal handler, which wants the main thread, stays
    out of the agent's way.
    """

    def __init__(self, flow: SiteFlow, flow_run: FlowRun, parameters: Mapping[str, Any]) -> None:
        self._flow = guard_flow(flow, lambda: self._cancelled or Crashed(message=AGENT_STOPPED))
        # Without its deployment the engine opens no observer for suspension, which this site does not offer.
        self._flow_run = flow_run.model_copy(update={"deployment_id": None})
        self._parameters = dict(parameters)
        self._owner = asyncio.get_running_loop()
        self._ended: asyncio.Future[BaseException | None] = self._owner.create_future()
        self._lock = threading.Lock()
        self._inner: tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]] | None = None
        self._cancelled: State[Any] | None = None

    def start(self) -> None:
        """Starts the thread."""
        target = functools.partial(contextvars.copy_context().run, self._main)
        threading.Thread(target=target, name=f"flow-{self._flow.name}", daemon=True).start()

    async def wait(self) -> BaseException | None:
        """Waits for the end of the run; returns what ended its thread unexpectedly, if anything."""
        return await asyncio.shield(self._ended)

    def cancel(self, ends_as: State[Any] | None = None) -> None:
        """Asks the run to end, in the given state or as crashed because the agent stops."""
        with self._lock:
            self._cancelled = ends_as or Crashed(message=AGENT_STOPPED)
            if self._inner is not None:
                loop, task = self._inner
                with contextlib.suppress(RuntimeError):  # its loop has just closed
                    loop.call_soon_threadsafe(task.cancel)

    def _main(self) -> None:
        error: BaseException | None = None
        try:
            asyncio.run(self._run())
        except BaseException as caught:
            error = caught
        with contextlib.suppress(RuntimeError):  # the agent has gone
            self._owner.call_soon_threadsafe(self._finish, error)

    def _finish(self, error: BaseException | None) -> None:
        if not self._ended.done():
            self._ended.set_result(error)

    async def _run(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        with self._lock:
            self._inner = (asyncio.get_running_loop(), task)
            if self._cancelled:
                task.cancel()
        await run_flow_async(flow=self._flow, flow_run=self._flow_run, parameters=self._parameters, return_type="state")
