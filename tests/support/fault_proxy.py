"""A TCP proxy that breaks connections in every way a network can.

It runs on a loop of its own in a thread, so that blocking tests can use it too. What is set applies to
all connections from then on: `delay` (seconds, each way), `one_byte`, `swallow` (read and forget).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

_READ_BYTES = 65536


class FaultProxy:
    """`with FaultProxy(port) as proxy:` listens on `proxy.port` for a server on `port` of loopback."""

    def __init__(self, target_port: int, target_host: str = "127.0.0.1") -> None:
        self._target = (target_host, target_port)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._links: set[_Link] = set()
        self._drop_replies = 0
        self._thawed = asyncio.Event()
        self._thawed.set()
        self.delay = 0.0
        self.one_byte = False
        self.swallow = False
        self.cut_after: int | None = None
        """New connections end after so many bytes from the server."""
        self.accepted = 0

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def open(self) -> int:
        """Connections open now."""
        return len(self._links)

    def freeze(self) -> None:
        """Hold all bytes, both ways, until `thaw`."""
        self._call(self._thawed.clear)

    def thaw(self) -> None:
        self._call(self._thawed.set)

    def drop_next_reply(self, count: int = 1) -> None:
        """Throw away what the server says next, and end the connection: the request was carried out, its
        answer is lost. The `count` next such answers, over all connections."""
        self._drop_replies += count

    def close_all(self) -> None:
        """End all connections with RST; new ones are taken."""
        self._call(self._reset_links)

    def _call(self, action: Callable[[], None]) -> None:
        async def do() -> None:
            action()

        asyncio.run_coroutine_threadsafe(do(), self._loop).result()

    def _reset_links(self) -> None:
        for link in list(self._links):
            link.reset()

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._accept, "127.0.0.1", 0)

    async def _close(self) -> None:
        self._server.close()
        self._thawed.set()
        tasks = [link.task for link in self._links]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.current_task()
        assert task is not None
        try:
            server_reader, server_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        link = _Link(task, writer, server_writer)
        self._links.add(link)
        try:
            up = asyncio.create_task(self._carry_up(reader, server_writer))
            down = asyncio.create_task(self._carry_down(server_reader, writer))
            pumps = {up, down}
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        except asyncio.CancelledError:
            pass  # the proxy closes; asyncio's own callback would log the cancellation as an error
        finally:
            self._links.discard(link)
            link.close()

    async def _carry_up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_READ_BYTES):
            await self._pass(data, writer)

    async def _carry_down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        room = self.cut_after
        while data := await reader.read(_READ_BYTES):
            if self._drop_replies:
                self._drop_replies -= 1
                return
            await self._pass(data if room is None else data[:room], writer)
            if room is not None:
                room -= len(data)
                if room <= 0:
                    return

    async def _pass(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        if self.delay:
            await asyncio.sleep(self.delay)
        await self._thawed.wait()
        if self.swallow:
            return
        for piece in [data[at : at + 1] for at in range(len(data))] if self.one_byte else [data]:
            writer.write(piece)
            await writer.drain()
            if self.one_byte:
                await asyncio.sleep(0)


class _Link:
    """Both sides of one connection."""

    def __init__(self, task: asyncio.Task[None], *writers: asyncio.StreamWriter) -> None:
        self.task = task
        self._writers = writers

    def close(self) -> None:
        for writer in self._writers:
            writer.close()

    def reset(self) -> None:
        for writer in self._writers:
            sock: socket.socket = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        self.task.cancel()
