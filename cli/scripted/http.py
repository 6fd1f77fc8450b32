"""Just enough of an HTTP/1.1 server to misbehave exactly: httptools reads, and every byte sent is chosen."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Literal, NamedTuple, cast

import httptools

Framing = Literal["chunked", "length", "close"]


class Request(NamedTuple):
    """One whole request; header names are in lower case."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes
    keep_alive: bool = True


class Connection(asyncio.Protocol):
    """One connection: requests are answered in order, a lost connection cancels the answer under way."""

    def __init__(self, respond: Callable[[Request, Connection], Awaitable[None]]) -> None:
        self._respond = respond
        self._parser = httptools.HttpRequestParser(self)
        self._requests: asyncio.Queue[Request] = asyncio.Queue()
        self._writable = asyncio.Event()
        self._writable.set()
        self._serving: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport
        self._lost = False
        self.on_message_begin()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        # Not 0: with that asyncio's TLS transport pauses and never resumes.
        self._transport.set_write_buffer_limits(high=1)
        self._serving = asyncio.get_running_loop().create_task(self._serve())

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.write(
                b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            )
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._lost = True
        self._writable.set()
        if self._serving is not None:
            self._serving.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def on_message_begin(self) -> None:
        self._url, self._body = b"", b""
        self._headers: dict[str, str] = {}

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        url = httptools.parse_url(self._url)
        method = self._parser.get_method().decode()
        path, query = url.path.decode(), (url.query or b"").decode()
        keep_alive = self._parser.should_keep_alive()
        self._requests.put_nowait(Request(method, path, query, self._headers, self._body, keep_alive))

    @property
    def is_open(self) -> bool:
        """Whether the connection is not yet lost."""
        return not self._lost

    async def send(self, data: bytes) -> None:
        """Give `data` to the kernel; waits while the client does not read."""
        self._transport.write(data)
        await self._writable.wait()

    def close(self) -> None:
        """End the connection with FIN."""
        self._transport.close()

    def reset(self) -> None:
        """End the connection with RST, which SO_LINGER 0 asks of the kernel."""
        with contextlib.closing(socket.socket(fileno=os.dup(self._fileno()))) as twin:
            twin.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    async def aclose(self) -> None:
        """Break the connection off and wait until its answer has ended."""
        if self._serving is not None:
            self._transport.abort()
            self._serving.cancel()
            await asyncio.gather(self._serving, return_exceptions=True)

    def _fileno(self) -> int:
        return cast(socket.socket, self._transport.get_extra_info("socket")).fileno()

    async def _serve(self) -> None:
        keep_alive = True
        try:
            while keep_alive:
                request = await self._requests.get()
                await self._respond(request, self)
                keep_alive = request.keep_alive
        finally:
            self._transport.close()


async def send_json(
    connection: Connection, status: int, body: bytes, headers: Mapping[str, str] = {}
) -> None:
    """A small JSON answer with its length."""
    fields = {"content-type": "application/json", **headers, "content-length": str(len(body))}
    await connection.send(head(status, fields) + body)


def head(status: int, headers: Mapping[str, str]) -> bytes:
    """Status line and header fields, with the blank line behind them."""
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")
