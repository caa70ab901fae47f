"""Retry, timeout and cache policy of every task, on one page, with the reason. It is a security decision.

- No task is cached by Prefect (`NO_CACHE`): what must not happen twice is guarded by create-only names in the store and
  by the site's outbox, not by a cache that a restart or another server forgets.
- `retries=0` unless the body only reads: a retry re-runs a body, and deciding twice is what the protocol forbids.
- Nothing is persisted (`persist_result=False`): results stay in this process.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from prefect import Task, task
from prefect.cache_policies import NO_CACHE

T = TypeVar("T")


def deciding(name: str) -> Callable[[Callable[..., Awaitable[T]]], Task[..., Awaitable[T]]]:
    """Task that may sign, publish or append. Never retried by Prefect: a resumed flow finds what it decided."""
    return _task(name, retries=0)


def waiting(name: str) -> Callable[[Callable[..., Awaitable[T]]], Task[..., Awaitable[T]]]:
    """Task that only reads until a deadline of its own. Not retried: its deadline is the study's patience."""
    return _task(name, retries=0)


def recording(name: str) -> Callable[[Callable[..., Awaitable[T]]], Task[..., Awaitable[T]]]:
    """Task that writes the review view (MLflow), idempotent by tag lookup: one retry for a busy database."""
    return _task(name, retries=1)


def _task(name: str, retries: int) -> Callable[..., Any]:
    return task(
        name=name,
        task_run_name=name,  # otherwise Prefect appends random letters
        retries=retries,
        retry_delay_seconds=1,
        cache_policy=NO_CACHE,
        persist_result=False,
        log_prints=False,
    )
