"""How a site's success, refusal or failure looks from outside: a state's name and a code, nothing else.

Whatever a run state says is stored by the Prefect server. An exception's text may quote a record, so at a site no
exception becomes a state: steps end in `Refused` or `Failed` with a stable code from the errors' allow-list.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, ParamSpec, TypeVar

import prefect._internal.states
import prefect.states
from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Failed

from schemas.errors import ConsiliumError, OperationError

P = ParamSpec("P")
R = TypeVar("R")

REFUSED: Final = "Refused"
INTERNAL_ERROR: Final = "internal-error"

_log = logging.getLogger("consilium.site")
_LOGGED: Final = "_consilium_logged"


def refused_state(code: str) -> State[Any]:
    """Returns the final state of a step that the site declined to do; `code` is all that leaves."""
    return Cancelled(name=REFUSED, message=code)


def failed_state(code: str) -> State[Any]:
    """Returns the final state of a step that could not be done; `code` is all that leaves."""
    return Failed(message=code)


def state_of_error(error: Exception) -> State[Any]:
    """Returns the state of a step that raised: a refusal, unless only the operator can help.

    The error itself goes to the site's own log, once: what ended a step usually ends its flow as well.
    """
    # On the error itself: Python's own exceptions take attributes, but no weak references.
    if not vars(error).get(_LOGGED, False):
        vars(error)[_LOGGED] = True
        _write(error)
    if isinstance(error, OperationError):
        return failed_state(error.code)
    return refused_state(error.code) if isinstance(error, ConsiliumError) else failed_state(INTERNAL_ERROR)


def _write(error: Exception) -> None:
    if isinstance(error, OperationError):
        _log.error("step failed (%s): %s", error.code, error)
    elif isinstance(error, ConsiliumError):
        _log.warning("step refused (%s): %s", error.code, error)
    else:
        _log.error("step failed unexpectedly", exc_info=error)


def coded(step: Callable[P, Awaitable[R]]) -> Callable[P, Coroutine[Any, Any, R | State[Any]]]:
    """Wraps an async step, below Prefect's `@task`, so that an error ends it in a coded state instead of a traceback.

    Call such a task with `return_state=True` where the flow goes on after a refusal.
    """

    @functools.wraps(step)
    async def run(*args: P.args, **kwargs: P.kwargs) -> R | State[Any]:
        try:
            return await step(*args, **kwargs)
        except Exception as error:
            return state_of_error(error)

    return run


def hide_exception_text() -> None:
    """Stops Prefect from quoting an exception in a state: the second wall, for a step that forgot `coded`.

    Raises:
        OperationError: `prefect-version`, when Prefect builds its messages elsewhere than expected.
    """
    for module in (prefect.states, prefect._internal.states):
        if not callable(getattr(module, "format_exception", None)):
            raise OperationError(
                "prefect-version",
                f"Expected {module.__name__} to have format_exception.",
                "Install the versions of constraints.txt.",
            )
        setattr(module, "format_exception", _code_of)  # noqa: B010  both modules import the name


def _code_of(error: BaseException, tb: object = None) -> str:
    return error.code if isinstance(error, ConsiliumError) else INTERNAL_ERROR
