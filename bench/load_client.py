"""A client that costs next to nothing: many streams of `/v1/chat/completions` at once.

It reads the times that the load agent writes into the tokens, so the age of each token is known
without a second clock.
"""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass
from typing import cast

import httptools

_STAMP = re.compile(rb"@(\d+);")
PATIENCE = 30.0
"""Seconds that a stream may be late before it is closed and counted as failed."""
_NANOSECONDS = 1_000_000
"""In a millisecond."""


@dataclass(frozen=True)
class Load:
    """What is asked: `streams` at once, each of `tokens`, one every `pace_ms` (0: full speed).

    Their starts are spread over `ramp` seconds.
    """

    streams: int
    tokens: int
    pace_ms: int
    ramp: float = 0.0


@dataclass(frozen=True)
class Answers:
    """What came back. Times in milliseconds but for `seconds`, from the first start to the last end."""

    first: list[float]
    ages: list[float]
    seconds: float
    failures: list[str]


async def measure(port: int, load: Load) -> Answers:
    """Put `load` on the server at `port` of this machine and wait for its end."""
    began = time.monotonic()
    deadline = load.ramp + load.tokens * load.pace_ms / 1000 + PATIENCE
    starts = (i * load.ramp / load.streams for i in range(load.streams))
    streams = await asyncio.gather(*(_stream(port, load, start, deadline) for start in starts))
    return Answers(
        first=[stream.first for stream in streams if stream.first is not None],
        ages=[age for stream in streams for age in stream.ages],
        seconds=time.monotonic() - began,
        failures=[failure for stream in streams if (failure := stream.failure(load.tokens))],
    )


async def _stream(port: int, load: Load, start: float, deadline: float) -> _Stream:
    """One stream, begun after `start` seconds and closed after `deadline`."""
    if start:
        await asyncio.sleep(start)
    loop = asyncio.get_running_loop()
    stream = _Stream(_request(port, load), loop.create_future())
    transport, _ = await loop.create_connection(lambda: stream, "127.0.0.1", port)
    try:
        await asyncio.wait([stream.ended], timeout=deadline)
    finally:
        transport.close()
    return stream


def _request(port: int, load: Load) -> bytes:
    prompt = b"tokens=%d pace_ms=%d" % (load.tokens, load.pace_ms)
    body = b'{"model":"load","stream":true,"messages":[{"role":"user","content":"%b"}]}' % prompt
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:%d\r\naccept: text/event-stream\r\n"
        b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (port, len(body), body)
    )


class _Stream(asyncio.Protocol):
    """One request and its answer."""

    def __init__(self, request: bytes, ended: asyncio.Future[None]) -> None:
        self.ended = ended
        self.first: float | None = None
        self.ages: list[float] = []
        self._request = request
        self._began = time.monotonic_ns()
        self._parser = httptools.HttpResponseParser(self)
        self._rest = b""
        self._done = False

    def failure(self, tokens: int) -> str | None:
        """Why this stream is not what was asked for, if so."""
        if (status := self._parser.get_status_code()) != 200:
            return f"status {status}"
        if len(self.ages) != tokens:
            return f"{len(self.ages)} tokens of {tokens}"
        return None if self._done else "no [DONE]"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).write(self._request)  # uvloop's is one in all but its bases

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def on_body(self, body: bytes) -> None:
        now = time.monotonic_ns()
        body = self._rest + body
        lines = body.rfind(b"\n") + 1
        self._rest = body[lines:]
        for stamp in _STAMP.findall(body, 0, lines):
            self.ages.append((now - int(stamp)) / _NANOSECONDS)
        if self.first is None and self.ages:
            self.first = (now - self._began) / _NANOSECONDS
        self._done = self._done or b"data: [DONE]" in body

    def on_message_complete(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)
