"""A gateway that says what a test tells it to, connection by connection."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec

from cli.scripted.http import Connection, Request, head, send_json

Answer = Callable[[Request, Connection], Awaitable[None]]


class FakeGateway:
    """Answers the n-th request with the n-th of `answers`, later ones with the last."""

    def __init__(self, *answers: Answer) -> None:
        self._answers = answers
        self.requests: list[Request] = []
        self.url = ""

    async def respond(self, request: Request, connection: Connection) -> None:
        self.requests.append(request)
        answer = self._answers[min(len(self.requests), len(self._answers)) - 1]
        await answer(request, connection)


@contextlib.asynccontextmanager
async def serving(*answers: Answer) -> AsyncIterator[FakeGateway]:
    """The gateway at `url` until the block ends."""
    gateway = FakeGateway(*answers)
    loop = asyncio.get_running_loop()
    connections: list[Connection] = []

    def connect() -> Connection:
        connections.append(Connection(gateway.respond))
        return connections[-1]

    server = await loop.create_server(connect, "127.0.0.1", 0)
    gateway.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield gateway
    finally:
        server.close()
        for connection in connections:
            await connection.aclose()
        await server.wait_closed()


def event(cursor: str, kind: str, **data: Any) -> bytes:
    """A native frame."""
    payload = msgspec.json.encode({"type": kind, **data})
    return f"id: {cursor}\nevent: {kind}\ndata: ".encode() + payload + b"\n\n"


def stream(*frames: bytes, then: str = "end") -> Answer:
    """An SSE body of these frames; `then` it ends, is `reset`, or goes on in `silence`."""

    async def answer(request: Request, connection: Connection) -> None:
        # Without a length the body ends with its connection, as behind many a proxy.
        await connection.send(head(200, {"content-type": "text/event-stream", "connection": "close"}))
        for frame in frames:
            await connection.send(frame)
        if then == "end":
            connection.close()
        elif then == "reset":
            connection.reset()
        else:
            await asyncio.Event().wait()

    return answer


def refusal(status: int, detail: str = "") -> Answer:
    """A problem detail, or an empty body without one."""

    async def answer(request: Request, connection: Connection) -> None:
        body = msgspec.json.encode({"status": status, "detail": detail}) if detail else b""
        await send_json(connection, status, body)

    return answer


def json(value: Any, status: int = 200) -> Answer:
    """A JSON answer."""

    async def answer(request: Request, connection: Connection) -> None:
        await send_json(connection, status, msgspec.json.encode(value))

    return answer


async def hang_up(request: Request, connection: Connection) -> None:
    """No answer at all."""
    connection.reset()
