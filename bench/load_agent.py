"""An agent that costs next to nothing: OpenAI chat streaming on a bare protocol.

The prompt says how much and how fast: `tokens=200 pace_ms=20`; 0 is full speed. Each token's text
is `@<time.monotonic_ns()>;`, so that any process on this machine can tell how old it is.
Wire format: Chat Completions chunks as described in openai/openai-openapi `openapi.yaml`.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from typing import cast

import httptools
import uvloop

_ORDER = re.compile(rb"tokens=(\d+) pace_ms=(\d+)")
_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
)
_FRAME = (
    b'data: {"id":"chatcmpl-load","object":"chat.completion.chunk","created":1700000000,'
    b'"model":"load","system_fingerprint":"fp_load","choices":[{"index":0,"delta":%b,'
    b'"logprobs":null,"finish_reason":%b}]}\n\n'
)
_USAGE = (
    b'data: {"id":"chatcmpl-load","object":"chat.completion.chunk","created":1700000000,'
    b'"model":"load","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":%d,"total_tokens":%d}}\n\n'
)


class LoadAgent(asyncio.Protocol):
    """One connection, kept open from answer to answer."""

    _transport: asyncio.Transport

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._body = b""
        self._tokens = self._sent = 0
        self._pace = self._began = 0.0
        self._next: asyncio.Handle | None = None
        self._paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but its bases

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._next:
            self._next.cancel()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._next is None and self._sent < self._tokens:
            self._token()

    def on_message_begin(self) -> None:
        self._body = b""

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        order = _ORDER.search(self._body)
        if order is None:
            self._transport.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
            return
        self._tokens, self._pace = int(order[1]), int(order[2]) / 1000
        self._sent, self._began = 0, self._loop.time()
        role = _chunk(_FRAME % (b'{"role":"assistant","content":""}', b"null"))
        self._transport.write(_HEAD + role)
        self._token()

    def _token(self) -> None:
        """Send one token and arrange for the next."""
        self._next = None
        text = b'{"content":"@%d;"}' % time.monotonic_ns()
        self._transport.write(_chunk(_FRAME % (text, b"null")))
        self._sent += 1
        if self._sent == self._tokens:
            self._end()
        elif not self._paused:
            due = self._began + self._sent * self._pace
            self._next = (
                self._loop.call_at(due, self._token) if self._pace else self._loop.call_soon(self._token)
            )

    def _end(self) -> None:
        usage = _USAGE % (self._tokens, self._tokens + 1) if b'"include_usage"' in self._body else b""
        end = _FRAME % (b"{}", b'"stop"') + usage + b"data: [DONE]\n\n"
        self._transport.write(_chunk(end) + b"0\r\n\r\n")


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def serve(port: int) -> None:
    """Answer on loopback until killed."""
    server = await asyncio.get_running_loop().create_server(LoadAgent, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
