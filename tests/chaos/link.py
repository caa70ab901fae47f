"""A TCP link between one host and a server that can be cut, reset and slowed while it is in use."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from dataclasses import dataclass


@dataclass
class LinkState:
    """How the link behaves at this moment.

    Attributes:
        cut: Nothing passes: open connections are reset, new ones are refused.
        delay_seconds: Added to every block of bytes, in each direction.
        reset_chance: Chance that a block resets its connection instead of passing.
    """

    cut: bool = False
    delay_seconds: float = 0.0
    reset_chance: float = 0.0


class Link:
    """Listens on a free port of 127.0.0.1 and passes connections on to `target_port`, in a thread of its own."""

    def __init__(self, target_port: int, seed: int) -> None:
        self.state = LinkState()
        self._target_port = target_port
        self._random = random.Random(seed)
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port: int = self._server.sockets[0].getsockname()[1]
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def cut(self) -> None:
        """Cuts the link: what is open is reset."""
        self.state.cut = True
        self._loop.call_soon_threadsafe(self._reset_all)

    def mend(self) -> None:
        """Makes the link whole and quick again."""
        self.state = LinkState()

    def close(self) -> None:
        """Ends the link for good."""
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    def _reset_all(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.state.cut:
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, far_writer}
        try:
            await asyncio.gather(self._pass_on(reader, far_writer), self._pass_on(far_reader, writer))
        finally:
            for end in (writer, far_writer):
                end.transport.abort()
                self._writers.discard(end)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while block := await reader.read(65536):
                if self.state.delay_seconds:
                    await asyncio.sleep(self.state.delay_seconds)
                if self.state.cut or self._random.random() < self.state.reset_chance:
                    writer.transport.abort()
                    return
                writer.write(block)
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()
