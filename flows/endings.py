"""How a scheduled run of the coordinator ends when something was refused: named, once in its log, no traceback."""

from __future__ import annotations

import logging
from typing import Any

from prefect.client.schemas.objects import State
from prefect.states import Failed

from schemas.errors import ConsiliumError

_log = logging.getLogger("consilium.coordinator")


def failed_state(error: ConsiliumError) -> State[Any]:
    """Writes the error to the log and returns the run's last state, which says the same on Prefect's page."""
    said = f"{error.code}: {error.message} {error.remedy} To act: {error.who_must_act}."
    _log.error("%s", said)
    return Failed(message=said)
