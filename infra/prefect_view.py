"""What a Prefect server says of agents and schedules, asked with plain requests: a view for people, no evidence."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from datetime import UTC, datetime
from typing import Any

from infra.prefect_server import proxies_for

_ANSWER_SECONDS = 5
_LONGEST_ANSWER = 1 << 20


def agent_seen(api_url: str, site: str, now: datetime | None = None, *, password: str | None = None) -> dict[str, Any]:
    """Returns how the site's agent stands, by its newest worker.

    An agent that was killed says nothing about it: the server calls it online until it has missed several heartbeats.

    Returns:
        ``agent``: ``online``, ``offline``, ``not registered`` or ``unknown``; ``heartbeat_seconds``: the age of its
        last sign of life, None where there is none.
    """
    workers = _ask(f"{api_url}/work_pools/consilium-{site}/workers/filter", {}, password)
    if not isinstance(workers, list):
        return {"agent": "not registered" if workers == 404 else "unknown", "heartbeat_seconds": None}
    beats = [(beat, worker) for worker in workers if (beat := _time(worker.get("last_heartbeat_time"))) is not None]
    if not beats:
        return {"agent": "offline", "heartbeat_seconds": None}
    beat, worker = max(beats, key=lambda pair: pair[0])
    age = ((now or datetime.now(UTC)) - beat).total_seconds()
    return {
        "agent": "online" if worker.get("status") == "ONLINE" else "offline",
        "heartbeat_seconds": max(0, round(age)),
    }


def study_schedule(api_url: str, study: str, *, password: str | None = None) -> dict[str, Any]:
    """Returns how the study's schedule stands.

    Returns:
        ``state``: ``active``, ``paused`` (by a person, or because the study is released), ``not deployed`` or
        ``unknown``; ``next_run``: when the study is due next, as ISO 8601, None where nothing is planned.
    """
    found = _ask(f"{api_url}/deployments/name/scheduled-study/study-{study[:12]}", None, password)
    if not isinstance(found, dict) or "id" not in found:
        return {"state": "not deployed" if found == 404 else "unknown", "next_run": None}
    active = not found.get("paused") and any(schedule.get("active") for schedule in found.get("schedules", ()))
    if not active:
        return {"state": "paused", "next_run": None}
    planned = _ask(
        f"{api_url}/flow_runs/filter",
        {
            "flow_runs": {"deployment_id": {"any_": [found["id"]]}, "state": {"type": {"any_": ["SCHEDULED"]}}},
            "sort": "NEXT_SCHEDULED_START_TIME_ASC",
            "limit": 1,
        },
        password,
    )
    next_run = planned[0].get("next_scheduled_start_time") if isinstance(planned, list) and planned else None
    return {"state": "active", "next_run": next_run}


def _ask(url: str, body: dict[str, Any] | None, password: str | None) -> Any:
    """Returns the parsed answer, the status of a refusal, or None without an answer; `password` is ``name:secret``."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})  # noqa: S310  the settings' own
    if password is not None:
        # Not for whoever a redirect leads to.
        request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(password.encode()).decode()}")
    try:
        with urllib.request.build_opener(proxies_for(url)).open(request, timeout=_ANSWER_SECONDS) as answer:
            return json.loads(answer.read(_LONGEST_ANSWER))
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, ValueError):
        return None


def _time(text: Any) -> datetime | None:
    try:
        found = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
