"""TCP links between one host and the servers of others that can be cut, reset and slowed while they are in use."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TypeVar

_T = TypeVar("_T")


@dataclass
class LinkState:
    """How a link behaves at this moment.

    Attributes:
        cut: Nothing passes: open connections are reset, new ones are refused.
        delay_seconds: Added to every block of bytes, in each direction.
        reset_chance: Chance that a block resets its connection instead of passing.
    """

    cut: bool = False
    delay_seconds: float = 0.0
    reset_chance: float = 0.0


class Links:
    """All links of one host, in a thread of their own: each listens at `gateway` and passes connections on."""

    def __init__(self, gateway: str, seed: int) -> None:
        self.state = LinkState()
        self.bytes_passed = 0
        self._gateway = gateway
        self._random = random.Random(seed)
        self._writers: set[asyncio.StreamWriter] = set()
        self._servers: list[asyncio.Server] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def open(self, target: tuple[str, int]) -> int:
        """Opens a link to `target` and returns its port."""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(asyncio.CancelledError):  # at the end of all links
                await self._serve(target, reader, writer)

        async def begin() -> int:
            server = await asyncio.start_server(serve, self._gateway, 0)
            self._servers.append(server)
            return int(server.sockets[0].getsockname()[1])

        return self._ask(begin)

    def cut(self) -> None:
        """Cuts the links: what is open is reset."""
        self.state.cut = True
        self._loop.call_soon_threadsafe(self._reset_all)

    def mend(self) -> None:
        """Makes the links whole and quick again."""
        self.state = LinkState()

    def close(self) -> None:
        """Ends the links for good."""

        async def end() -> None:
            self._reset_all()
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self.state.cut = True
        self._ask(end)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    def _ask(self, question: Callable[[], Coroutine[None, None, _T]]) -> _T:
        return asyncio.run_coroutine_threadsafe(question(), self._loop).result(10)

    def _reset_all(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, target: tuple[str, int], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.state.cut:
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await asyncio.wait_for(asyncio.open_connection(*target), 5)
        except (OSError, TimeoutError):
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
                self.bytes_passed += len(block)
                writer.write(block)
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()
