"""A hospital that sends events without end, or of a time that never comes, fills nobody's database."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client

from infra.event_intake import BYTES_AT_ONCE, BYTES_PER_SECOND, Allowance, LimitedEvents, Message, present_event
from infra.prefect_server import LARGEST_EVENT_BYTES, PrefectServer, _server_environment

SHOW_SETTINGS = """
from prefect.settings import PREFECT_EVENTS_MAXIMUM_SIZE_BYTES, get_current_settings
s = get_current_settings().server
print(PREFECT_EVENTS_MAXIMUM_SIZE_BYTES.value(), s.events.retention_period.days, *s.services.db_vacuum.enabled)
"""


def event(occurred: object, payload: str = "") -> str:
    return json.dumps({"occurred": occurred, "event": "consilium.test.flood", "payload": {"text": payload}})


def now(**later: float) -> str:
    return (datetime.now(UTC) + timedelta(**later)).isoformat()


def test_a_hospital_is_held_up_once_its_burst_is_used_and_may_go_on_later() -> None:
    seconds = [0.0]
    allowance = Allowance(lambda: seconds[0])
    assert allowance.take(BYTES_AT_ONCE) == 0
    assert allowance.take(3 * BYTES_PER_SECOND) == 3
    seconds[0] = 5.0
    assert allowance.take(2 * BYTES_PER_SECOND) == 0
    seconds[0] = 1e6
    assert allowance.take(BYTES_AT_ONCE + BYTES_PER_SECOND) == 1, "it saves up no more than one burst"


def test_an_event_of_the_future_is_left_out_and_everything_else_is_passed_on() -> None:
    for kept in (event(now()), event(now(minutes=7)), event(now(days=-3)), '{"type": "auth", "token": null}'):
        assert json.loads(str(present_event(kept))) == json.loads(kept)
    future = now(days=9000)
    twice = f'{{"occurred": "{now()}", "occurred": "{future}"}}'
    for dropped in (event(future), event(4e9), event("4000000000"), event(now()[:19]), twice, "no json", "[]", ""):
        assert present_event(dropped) is None, dropped


def test_only_what_comes_through_the_proxy_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.event_intake.BYTES_AT_ONCE", 1000)
    sent = [event(now(), "x" * 30_000), event(now(days=9000)), event(now(), "y" * 30_000)]

    async def read(headers: list[tuple[bytes, bytes]]) -> tuple[int, float]:
        left: Iterator[Message] = iter([{"type": "websocket.receive", "text": text} for text in sent])
        seen: list[Message] = []

        async def receive() -> Message:
            return next(left, {"type": "websocket.disconnect"})

        async def send(_: Message) -> None:
            raise AssertionError("nothing is answered")

        async def app(scope: Message, receive: object, send: object) -> None:
            while (message := await receive())["type"] != "websocket.disconnect":  # type: ignore[operator]
                seen.append(message)

        started = asyncio.get_running_loop().time()
        await LimitedEvents(app)({"type": "websocket", "path": "/api/events/in", "headers": headers}, receive, send)
        return len(seen), asyncio.get_running_loop().time() - started

    assert asyncio.run(read([]))[0] == 3
    count, seconds = asyncio.run(read([(b"x-consilium-site", b"general")]))
    assert count == 2
    assert seconds > 0.8


def test_the_server_keeps_small_events_for_two_days(tmp_path: Path) -> None:
    environment = _server_environment(tmp_path, "sqlite+aiosqlite:///none.db", 4200)
    shown = subprocess.run(
        [sys.executable, "-c", SHOW_SETTINGS], env=environment, capture_output=True, text=True, check=True
    )
    assert shown.stdout.split() == [str(LARGEST_EVENT_BYTES), "2", "events"]
    assert "PREFECT_SERVER_EVENTS_RETENTION_PERIOD" not in os.environ


@pytest.mark.usefixtures("prefect_settings")
def test_a_large_event_is_not_stored_and_ours_are(server: PrefectServer) -> None:
    from prefect.events import emit_event

    async def found() -> set[str]:
        async with get_client() as client:
            wanted = {"filter": {"event": {"prefix": ["consilium.test.size"]}}}
            answer = (await client._client.post("/events/filter", json=wanted)).json()
        return {entry["event"] for entry in answer["events"]}

    async def scenario() -> set[str]:
        for name, size in (("large", LARGEST_EVENT_BYTES), ("ours", 2_000)):
            emit_event(
                f"consilium.test.size.{name}", {"prefect.resource.id": "consilium"}, payload={"text": "x" * size}
            )
        deadline = asyncio.get_running_loop().time() + 60
        while not (names := await found()) and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.5)
        return names

    assert asyncio.run(scenario()) == {"consilium.test.size.ours"}
