"""A client's connection as a response sees it: it can be too slow, go away, or have to be broken off."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from typing import TypeVar, cast

from starlette.types import Message, Receive, Scope, Send

from gateway.drain import Drain

T = TypeVar("T")

CUT = "streaming_bff.cut"
"""ASGI extension of our server: `scope["extensions"][CUT](flush)` closes the connection without the
final chunk, after what was written has gone out (`flush`) or at once."""

SINK = "streaming_bff.sink"
"""ASGI extension of our server: `scope["extensions"][SINK](body)` writes a part of the body straight to
the transport. False, and nothing is done, where `send` has to be used: before the head, with a client
that is slow or has gone, without chunked encoding."""


class SlowClient(Exception):
    """The client did not take what was sent to it in time."""


class Interrupted(Exception):
    """A wait ended without a result: time is up, the client has gone, or the gateway is draining."""


class Connection:
    """One client, used by one task.

    Deadlines are looked after by one lazy timer, not by a new one for each event: setting one costs
    an assignment. One task listens for the client's going, as nothing is sent to a silent stream.
    """

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, *, drain: Drain, period: float, send_timeout: float
    ) -> None:
        """`period` is the shortest deadline that will be asked for, in seconds."""
        self._scope = scope
        self._receive = receive
        self._send = send
        self._drain = drain
        self._period = min(period, send_timeout)
        self._send_timeout = send_timeout
        self._sink = scope.get("extensions", {}).get(SINK)
        self._loop = asyncio.get_running_loop()
        self._task = cast("asyncio.Task[None]", asyncio.current_task())
        self._stack = AsyncExitStack()
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._waiting = False
        self._idle = False
        self._interrupted = False
        self.gone = False
        """The client has closed the connection."""

    async def __aenter__(self) -> Connection:
        listener = asyncio.create_task(self._listen())
        self._stack.push_async_callback(_cancelled, listener)
        self._stack.enter_context(self._drain.watched(self._on_drain))
        self._stack.callback(self._stop_timer)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    async def wait(self, work: Awaitable[T], seconds: float) -> T:
        """The result of `work`, which may be cancelled. Raises Interrupted."""
        self._idle = True
        try:
            return await self._within(work, seconds)
        finally:
            self._idle = False

    async def send(self, message: Message) -> None:
        """Send, or raise SlowClient. What is sent to a client that has gone is dropped."""
        try:
            await self._within(self._send(message), self._send_timeout)
        except Interrupted:
            if not self.gone:
                raise SlowClient from None

    async def send_part(self, body: bytes) -> None:
        """Send a part of the body that is not the last one, by the shortest way. Raises SlowClient."""
        if self._sink is None or not self._sink(body):
            await self.send({"type": "http.response.body", "body": body, "more_body": True})

    def cut(self, *, flush: bool) -> None:
        """Break the connection off, so that the client knows that what it has is not whole."""
        cut = self._scope.get("extensions", {}).get(CUT)
        if cut is not None:
            cut(flush)

    async def _within(self, work: Awaitable[T], seconds: float) -> T:
        self._due = self._loop.time() + seconds
        self._waiting = True
        if self._timer is None:
            self._timer = self._loop.call_later(min(seconds, self._period), self._on_time)
        elif seconds < self._period:
            self._stop_timer()
            self._timer = self._loop.call_later(seconds, self._on_time)
        try:
            return await work
        except asyncio.CancelledError:
            if self._interrupted and self._task.cancelling() == 1:  # by nobody else
                raise Interrupted from None
            raise
        finally:
            self._waiting = False
            if self._interrupted:
                self._interrupted = False
                self._task.uncancel()

    def _on_time(self) -> None:
        remaining = self._due - self._loop.time()
        self._timer = None
        if remaining > 0:
            self._timer = self._loop.call_later(min(remaining, self._period), self._on_time)
        elif self._waiting:
            self._interrupt()

    def _on_drain(self) -> None:
        if self._idle:
            self._interrupt()

    def _interrupt(self) -> None:
        if not self._interrupted:
            self._interrupted = True
            self._task.cancel()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _listen(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        if self._waiting:
            self._interrupt()


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
