"""The Prefect server's application, closed to web pages of other origins.

The server has no password on its own machine, and whoever makes a deployment in the coordinator's work pool runs a
command as the coordinator. Prefect answers any origin, and takes a body without a content type, which a page may send
without asking. So a page that its operator happens to read could do it; here such a request ends before Prefect.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import urlsplit

from infra.event_intake import App, LimitedEvents, Message, Receive, Send

_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")


class OwnPagesOnly:
    """Refuses what a browser sends for a page that did not come from this server."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or _is_own(scope["headers"]):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        else:
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"This server answers its own pages only.\n"})


def create_app() -> App:
    """Makes Prefect's application behind its guards, for uvicorn."""
    from prefect.server.api.server import create_app as create

    return OwnPagesOnly(LimitedEvents(create()))


def _is_own(headers: list[tuple[bytes, bytes]]) -> bool:
    hosts = [value.decode("latin-1") for name, value in headers if name == b"host"]
    origins = [value.decode("latin-1") for name, value in headers if name == b"origin"]
    try:
        # Another name that leads here would make its owner's page one of this server's (DNS rebinding).
        host = urlsplit(f"//{hosts[0]}") if len(hosts) == 1 else None
        if host is None or not _is_address(host.hostname):
            return False
        return all(_is_same(urlsplit(origin), host) for origin in origins)
    except ValueError:
        return False


def _is_same(origin: Any, host: Any) -> bool:
    if origin.hostname in _LOOPBACK and host.hostname in _LOOPBACK:
        return bool(origin.port == host.port)
    return bool(origin.netloc == host.netloc)


def _is_address(name: str | None) -> bool:
    if name is None:
        return False
    if name == "localhost":
        return True
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
