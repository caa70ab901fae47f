"""What Prefect's engine may write to a log about an error that was raised on purpose: nothing.

Such an error has a name and a remedy, which are said once, by whoever meets it. The engine would add a traceback for
every task and flow that it passes. What nobody foresaw keeps its traceback.
"""

from __future__ import annotations

import logging
import os
from typing import Final

from schemas.errors import ConsiliumError

_ENGINE_LOGGERS: Final = ("prefect.flow_runs", "prefect.task_runs", "prefect.engine")


def hide_expected_tracebacks() -> None:
    """Silences Prefect's engine about expected errors, in this process; `CONSILIUM_DEBUG=1` shows all of it."""
    if os.environ.get("CONSILIUM_DEBUG", "") not in ("", "0"):
        return
    for name in _ENGINE_LOGGERS:
        logging.getLogger(name).addFilter(is_unforeseen)  # the same function is never added twice


def is_unforeseen(record: logging.LogRecord) -> bool:
    """Says whether a line of the engine tells what nobody else says."""
    if record.levelno >= logging.ERROR and str(record.msg).startswith("Finished in state "):
        return False  # the line before it, or whoever made that state, has said why
    if not record.exc_info:
        return True
    error = record.exc_info[1]
    # Without an exception the body returned a failed state, whose reason is in the log of whoever made it.
    return error is not None and not isinstance(error, ConsiliumError)
