"""Spreads independent pieces of work over processes; the result does not depend on how many there are.

Invariant: results come in the order of the items and at most two items per process are under way, so memory stays
constant however many items there are.
"""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from schemas.errors import OperationError, PeerError

T = TypeVar("T")


def spread(function: Callable[..., T], items: Iterable[tuple[Any, ...]], processes: int) -> Iterator[T]:
    """Yields function(*item) for every item, in order.

    Args:
        function: Pure and picklable.
        items: Arguments, read lazily.
        processes: How many children of a fork server compute; 1 computes here and starts nothing.

    Raises:
        PeerError: as `function` raised it.
        OperationError: `bulk-process` if a process died.
    """
    if processes == 1:
        for item in items:
            yield function(*item)
        return
    under_way: deque[Future[tuple[T | None, tuple[str, ...] | None]]] = deque()
    # Not fork: the caller may have threads, whose locks a forked child would inherit in any state.
    pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("forkserver"))
    try:
        for item in items:
            under_way.append(pool.submit(_attempt, function, item))
            if len(under_way) == 2 * processes:
                yield _result(under_way.popleft())
        while under_way:
            yield _result(under_way.popleft())
    except BrokenProcessPool:
        raise OperationError(
            "bulk-process", "A process that computes on bulk ciphertexts died.", "Free memory and try again."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _attempt(function: Callable[..., T], item: tuple[Any, ...]) -> tuple[T | None, tuple[str, ...] | None]:
    # Errors with several arguments do not survive the way between processes; their parts do.
    try:
        return function(*item), None
    except PeerError as error:
        return None, (error.code, error.peer, error.message.removeprefix(f"{error.peer}: "), error.remedy)


def _result(future: Future[tuple[T | None, tuple[str, ...] | None]]) -> T:
    value, refusal = future.result()
    if refusal is not None:
        raise PeerError(*refusal)
    return value  # type: ignore[return-value]
