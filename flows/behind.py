"""Lets the end of one round, its record in MLflow and on Prefect's pages, run behind the beginning of the next."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, ParamSpec, TypeVar

from schemas.errors import ConsiliumError

P = ParamSpec("P")
T = TypeVar("T")


async def beside(body: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Runs a body that blocks in a thread that a process which is told to stop does not wait for.

    The threads of `asyncio.to_thread` are waited for, and MLflow's client tries a server that is away for minutes.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if ended.cancelled():
            return
        if error is not None:
            ended.set_exception(error)
        else:
            ended.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result: T | None = None
        error: BaseException | None = None
        try:
            result = body(*args, **kwargs)
        except BaseException as caught:
            error = caught
        with suppress(RuntimeError):  # the loop has gone
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=contextvars.copy_context().run, args=(run,), name=body.__name__, daemon=True).start()
    return await ended


class Behind:
    """The round that is opened and still being recorded: at most one, and its failure ends the study."""

    def __init__(self) -> None:
        self._last: asyncio.Task[None] | None = None

    async def follow(self, round_: asyncio.Task[None], opened: asyncio.Future[T]) -> T:
        """Waits until `round_` has set `opened` and the round before it is recorded; returns what was opened.

        What is left of `round_` goes on while the next one runs.

        Raises:
            BaseException: what ended `round_`, or the record of the round before it.
        """
        try:
            while not opened.done():
                await self._wait(round_, opened)
                if round_.done() and not opened.done():
                    await round_
                    raise RuntimeError("A round ended without an opening.")
            await self.finish()
        except BaseException:
            await _end(round_)
            raise
        self._last = round_
        return opened.result()

    async def watch(self, work: Coroutine[object, object, T]) -> T:
        """Runs what comes between two rounds; returns what it returns.

        Raises:
            BaseException: what ended it, or the record of the round before it.
        """
        task = asyncio.create_task(work)
        try:
            while not task.done():
                await self._wait(task)
        except BaseException:
            await _end(task)
            raise
        return task.result()

    async def finish(self) -> None:
        """Waits until everything is recorded.

        Raises:
            BaseException: what ended the record.
        """
        last, self._last = self._last, None
        if last is not None:
            await last

    async def stop(self) -> None:
        """Ends the record, without its error: another one has ended the study."""
        last, self._last = self._last, None
        if last is not None:
            await _end(last)

    async def _wait(self, *watched: asyncio.Future[Any]) -> None:
        """Waits until one of `watched` is done; raises what ended the record, as soon as it has."""
        if self._last is not None and self._last.done():
            last, self._last = self._last, None
            last.result()
        also = [] if self._last is None else [self._last]
        await asyncio.wait([*watched, *also], return_when=asyncio.FIRST_COMPLETED)


@asynccontextmanager
async def behind_the_rounds() -> AsyncIterator[Behind]:
    """Gives a `Behind` that leaves nothing running; an error that is ours lets the record that is under way end."""
    behind = Behind()
    try:
        yield behind
        await behind.finish()
    except ConsiliumError as error:
        try:
            await behind.finish()
        except Exception as second:
            raise error from second
        raise
    finally:
        await behind.stop()


async def _end(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
