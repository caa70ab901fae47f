"""Events that somebody may want to be woken for. They carry names and fractions of public figures, nothing else.

An automation of the Prefect server turns them into a notification (`infra.deployments`). A notice that cannot be sent
is logged and stops nothing: nobody's guarantee rests on it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Final

SITE_SILENT: Final = "consilium.site.silent"
BUDGET_LOW: Final = "consilium.budget.low"
AUDIT_FAILED: Final = "consilium.audit.failed"
AUDIT_PASSED: Final = "consilium.audit.passed"

_log = logging.getLogger("consilium.coordinator")


def site_resource(site: str) -> str:
    """Returns the resource id of a site's events."""
    return f"consilium.site.{site}"


def study_resource(study: str) -> str:
    """Returns the resource id of a study's events."""
    return f"consilium.study.{study[:12]}"


async def notify(event: str, study: str, resource: str, payload: Mapping[str, str]) -> None:
    """Emits `event` about `resource`; never raises."""
    from prefect.events import emit_event

    related = [{"prefect.resource.id": study_resource(study), "prefect.resource.role": "study"}]
    try:
        await asyncio.to_thread(
            emit_event,
            event,
            {"prefect.resource.id": resource},
            related=related,
            payload={"study": study[:12], **payload},
        )
    except Exception as error:  # whatever the event channel raises: a view must not stop a study
        _log.warning("an event could not be sent (%s)", type(error).__name__)
