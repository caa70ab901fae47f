"""Relays that count: what a participant sends and receives over TCP, TLS and headers included, by pass-through."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")
_BLOCK = 1 << 16


class Relay:
    """One port of this machine that leads to another one."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.sent = 0
        self.received = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Refuses new connections and resets the present ones, as the death of the server behind would."""
        if self._server is not None:
            self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, onward = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, onward}
        try:
            await asyncio.gather(self._pump(reader, onward, True), self._pump(there, writer, False))
        except OSError:
            writer.transport.abort()
            onward.transport.abort()
        finally:
            self._writers -= {writer, onward}
            writer.close()
            onward.close()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, outward: bool) -> None:
        while block := await source.read(_BLOCK):
            if outward:
                self.sent += len(block)
            else:
                self.received += len(block)
            sink.write(block)
            await sink.drain()
        if sink.can_write_eof():
            sink.write_eof()


class Wire:
    """Relays by name, in a thread of their own."""

    def __init__(self) -> None:
        self._relays: dict[str, Relay] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="wire", daemon=True)
        self._thread.start()

    def add(self, name: str, target: int) -> int:
        """Returns the port that `name` is to connect to instead of `target`."""
        self._relays[name] = Relay(target)
        self._run(self._relays[name].open())
        return self._relays[name].port

    def counts(self) -> dict[str, tuple[int, int]]:
        """Returns bytes sent and received so far, by name."""
        return {name: (relay.sent, relay.received) for name, relay in self._relays.items()}

    def cut(self, target: int) -> None:
        """Takes away the server on the port `target`."""
        for relay in self._relays.values():
            if relay.target == target:
                self._run(relay.close())

    def mend(self, target: int) -> None:
        """Gives it back."""
        for relay in self._relays.values():
            if relay.target == target:
                self._run(relay.open())

    def close(self) -> None:
        """Ends all connections and the thread."""
        for relay in self._relays.values():
            self._run(relay.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        future: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return future.result(30)
