"""A real server for tests: our uvicorn on a free port, a subscriber that tells what a test says, and
clients down to the bytes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.dialects import FRONTEND_DIALECTS
from gateway.dialects.base import Encoded, ViewOptions
from gateway.drain import Drain
from gateway.problems import openai_error, problem
from gateway.responses import Ending, StreamResponse
from gateway.server import listen, serve
from shared.settings import Settings
from tests.gateway.dialects.conversations import options
from tests.gateway.dialects.log import RUN


class ScriptedSubscriber:
    """Gives what the test puts in, and waits when there is nothing."""

    def __init__(self, *encoded: Encoded | Exception) -> None:
        self.resumed_from = "earliest"
        self.ended_before = False
        self.left = False
        self.refuses: Exception | None = None
        self.open = False
        self.asked = 0
        self._queue: asyncio.Queue[Encoded | Exception] = asyncio.Queue()
        self.tell(*encoded)

    def tell(self, *encoded: Encoded | Exception) -> None:
        """Give these next."""
        for one in encoded:
            self._queue.put_nowait(one)

    async def next(self) -> Encoded:
        self.asked += 1
        one = await self._queue.get()
        if isinstance(one, Exception):
            raise one
        return one

    @asynccontextmanager
    async def subscription(self) -> AsyncIterator[ScriptedSubscriber]:
        """What `Hub.subscribe` gives."""
        if self.refuses is not None:
            raise self.refuses
        self.open = True
        try:
            yield self
        finally:
            self.open = False


class FloodingSubscriber(ScriptedSubscriber):
    """Always has more to say."""

    async def next(self) -> Encoded:
        self.asked += 1
        return Encoded((b"x" * 65536,))


@dataclass
class StreamingApp:
    """An ASGI application whose only answer is one stream; notes how each connection ended."""

    subscriber: ScriptedSubscriber
    settings: Settings
    drain: Drain = field(default_factory=Drain)
    dialect: str = "sse"
    view: ViewOptions = field(default_factory=options)
    event_source: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)
    endings: list[Ending] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        response = StreamResponse(
            self.subscriber.subscription(),
            FRONTEND_DIALECTS[self.dialect](self.view),
            run=RUN,
            settings=self.settings,
            drain=self.drain,
            refuse=openai_error if self.dialect == "openai-chat" else problem,
            event_source=self.event_source,
            headers=self.headers,
            on_end=self.endings.append,
        )
        await response(scope, receive, send)


def quick(**more: Any) -> Settings:
    """Settings with deadlines that a test can wait for."""
    return Settings(**{"heartbeat": 0.1, "send_timeout": 0.5, "drain": 2.0, **more})


@asynccontextmanager
async def served(app: ASGIApp, settings: Settings, drain: Drain, **more: Any) -> AsyncIterator[int]:
    """The application on a free port of the loopback interface; drained and gone at the end."""
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    task = asyncio.create_task(serve(app, settings, drain, listener=listener, **more))
    try:
        yield port
    finally:
        drain.set()
        await task


@asynccontextmanager
async def connected(port: int, receive_buffer: int | None = None) -> AsyncIterator[socket.socket]:
    """A bare client socket, for asyncio's `sock_` calls."""
    with socket.socket() as client:
        if receive_buffer is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.connect(("127.0.0.1", port))
        client.setblocking(False)
        yield client


class RawClient:
    """One HTTP/1.1 request, and its answer chunk by chunk as it was sent."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.status = 0
        self.headers: dict[str, str] = {}

    async def head(self) -> dict[str, str]:
        """Read the head of the answer."""
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        self.status = int(lines[0].split()[1])
        self.headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)
        }
        return self.headers

    async def chunk(self) -> bytes | None:
        """The next chunk, b"" for the final one, None when the connection broke off instead."""
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            size = int((await self.reader.readuntil(b"\r\n")).strip(), 16)
            return (await self.reader.readexactly(size + 2))[:-2]
        return None

    async def chunks(self) -> list[bytes | None]:
        """All that is left; the last one says how it ended."""
        found: list[bytes | None] = []
        while not found or found[-1]:
            found.append(await self.chunk())
        return found

    async def content(self) -> bytes:
        """The body of an answer that tells its length."""
        return await self.reader.readexactly(int(self.headers["content-length"]))


@asynccontextmanager
async def asked(port: int, path: str = "/", method: str = "GET") -> AsyncIterator[RawClient]:
    """A client that has sent its request."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        yield RawClient(reader, writer)
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
