"""How much a hospital may write into the Prefect server through its channel for events.

A token sends any event, and the server stores each. nginx counts connections but does not look into them, so the rest
is done here: of what comes through the proxy no more is read than a busy agent sends, the sender being held up
meanwhile, and nothing is taken that claims to be of the future, which Prefect would keep for ever.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, MutableMapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

# An agent sends about 16 kB in a round of some seconds.
BYTES_PER_SECOND: Final = 64 << 10
BYTES_AT_ONCE: Final = 4 << 20
_PATH: Final = "/api/events/in"
_SITE: Final = b"x-consilium-site"
_CLOCKS_DIFFER: Final = timedelta(hours=1)


class Allowance:
    """What one hospital may send: a burst, which fills again with time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._left = float(BYTES_AT_ONCE)
        self._counted = clock()

    def take(self, size_bytes: int) -> float:
        """Takes `size_bytes` and returns the seconds until they are covered; 0 mostly."""
        now = self._clock()
        earned = (now - self._counted) * BYTES_PER_SECOND
        self._left, self._counted = min(BYTES_AT_ONCE, self._left + earned) - size_bytes, now
        return max(0.0, -self._left / BYTES_PER_SECOND)


class LimitedEvents:
    """Holds up a hospital that sends too much; who is on this machine, without the proxy, is not limited."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._allowances: defaultdict[bytes, Allowance] = defaultdict(Allowance)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        # The proxy has verified the token: there are no more names than tokens.
        site = next((value for name, value in scope.get("headers", ()) if name == _SITE), None)
        if scope["type"] != "websocket" or scope["path"] != _PATH or site is None:
            await self._app(scope, receive, send)
            return
        allowance = self._allowances[site]

        async def receive_slowly() -> Message:
            while True:
                message = await receive()
                if message["type"] != "websocket.receive":
                    return message
                text = message.get("text") or ""
                await asyncio.sleep(allowance.take(len(text.encode())))
                if (event := present_event(text)) is not None:
                    return {"type": "websocket.receive", "text": event}

        await self._app(scope, receive_slowly, send)


def present_event(text: str) -> str | None:
    """Returns what a message says, written anew; None for what is no JSON object, or an event not yet due.

    The age of an event, as its sender says, decides when Prefect deletes it.
    """
    try:
        content = json.loads(text)
        if isinstance(content, dict) and "occurred" in content:
            late = datetime.fromisoformat(content["occurred"]) - datetime.now(UTC)
            return json.dumps(content) if late <= _CLOCKS_DIFFER else None
    except (TypeError, ValueError, OverflowError, RecursionError):
        return None
    return json.dumps(content) if isinstance(content, dict) else None
