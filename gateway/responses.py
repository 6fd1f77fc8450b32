"""The streaming response: a run told to one client, as long as it listens.

One task a connection and one that listens for its end. Whole frames only: an event is never split
over two sends, and several go in one when they are there (ClickPrompt parses each network read on
its own).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from enum import Enum
from typing import Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.connection import Connection, Interrupted, SlowClient
from gateway.dialects.base import Encoded, FrontendDialect
from gateway.drain import Drain
from gateway.last_words import gone_entry, last_words
from gateway.problems import failed, openai_error, problem
from gateway.subscriber import StreamGone
from shared.errors import BrokerError, RequestError
from shared.settings import Settings
from shared.sse import comment

__all__ = ["Ending", "StreamResponse", "Watching", "openai_error", "problem"]

RETRY_MS = (1000, 3000)
"""Range of `retry:`, random so that the clients of a lost gateway do not come back all at once."""

EARLY_HEAD = 0.05
"""Seconds after which a client learns that it is connected, though there is nothing to tell yet."""

DRAIN_SHARE = 0.75
"""Part of the drain time for which a stream that cannot be resumed goes on."""

_BROKEN = RequestError(502, "interrupted", "The answer was interrupted; ask again.", retry_after=1)
_BROKER_OUT = RequestError(
    503, "broker_unavailable", "The stream cannot be read for the moment.", retry_after=2
)
_DRAINING = RequestError(503, "shutting_down", "This gateway is shutting down.", retry_after=1)
_GONE = RequestError(410, "gone", "The stream of this run is no longer there.")


class Ending(Enum):
    """How a connection ended. Clients of resumable dialects come back by themselves from the last five."""

    COMPLETE = "complete"
    """The dialect's own end was sent."""
    EMPTY = "empty"
    """The client had everything: 204."""
    REFUSED = "refused"
    """A status was sent instead of a stream."""
    ABORTED = "aborted"
    """Broken off, as the dialect has no word for what happened."""
    GONE = "gone"
    """The stream is no longer there."""
    DISCONNECTED = "disconnected"
    SLOW = "slow"
    """The client did not drain its socket."""
    DRAINED = "drained"
    """The gateway is shutting down."""
    LOST = "lost"
    """Redis is out, or something unforeseen happened here."""


_LEFT = (Ending.COMPLETE, Ending.DISCONNECTED)
"""Those that are the viewer's own leaving; after any other the client may be coming back."""


class Watching(Protocol):
    """What the response asks of a subscriber (`gateway.subscriber.Subscriber`)."""

    resumed_from: str
    ended_before: bool
    left: bool

    async def next(self) -> Encoded: ...


class StreamResponse(Response):
    """Returned by a route; opens and closes the subscription itself.

    The subscription may raise StreamGone or BrokerError when it is entered and from `next()`, and
    RequestError when it is entered.
    """

    def __init__(
        self,
        subscription: AbstractAsyncContextManager[Watching],
        dialect: FrontendDialect,
        *,
        run: str,
        settings: Settings,
        drain: Drain,
        refuse: Callable[[RequestError], Response] = problem,
        event_source: bool = False,
        headers: Mapping[str, str] | None = None,
        on_end: Callable[[Ending], None] | None = None,
    ) -> None:
        """`dialect` is a fresh instance of the one that the subscription's view makes: its facts and
        heartbeats are used, the frames come from the subscription.

        `refuse` gives errors before the head their form. With `event_source` the client is a browser's
        EventSource, for which every status but 200 is final. `headers` are added to the head.
        `on_end` is called once, however the connection ends.
        """
        self.background = None
        self._subscription = subscription
        self._dialect = dialect
        self._run = run
        self._settings = settings
        self._drain = drain
        self._refuse_with = refuse
        self._event_source = event_source
        self._more_headers = headers or {}
        self._on_end = on_end
        self._held: list[bytes] = []
        self._started = False
        self._resumed_from = "earliest"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ending = Ending.LOST
        connection = Connection(
            scope,
            receive,
            send,
            drain=self._drain,
            period=self._settings.heartbeat,
            send_timeout=self._settings.send_timeout,
        )
        try:
            async with connection:
                ending = await self._tell(connection, scope, receive)
        finally:
            if self._on_end is not None:
                self._on_end(ending)

    async def _tell(self, connection: Connection, scope: Scope, receive: Receive) -> Ending:
        try:
            try:
                return await self._follow(connection)
            except StreamGone:
                return await self._tell_gone(connection)
            except BrokerError:
                return await self._break_off(connection, _BROKER_OUT, Ending.LOST)
            except RequestError as error:
                raise _Refused(error) from None
        except SlowClient:
            connection.cut(flush=False)
            return Ending.SLOW
        except _Refused as refused:
            await self._refuse_with(refused.error)(scope, receive, connection.send)
            return Ending.REFUSED

    async def _follow(self, connection: Connection) -> Ending:
        async with self._subscription as subscriber:
            self._resumed_from = subscriber.resumed_from
            if subscriber.ended_before:
                await self._say_nothing_left(connection)
                return Ending.EMPTY
            ending = None
            while ending is None:
                ending = await self._step(subscriber, connection)
            subscriber.left = ending in _LEFT
            return ending

    async def _step(self, subscriber: Watching, connection: Connection) -> Ending | None:
        """Pass on what comes next, or one heartbeat."""
        if connection.gone:
            return Ending.DISCONNECTED
        patience = self._patience()
        if patience <= 0:
            return await self._break_off(connection, _DRAINING, Ending.DRAINED)
        try:
            encoded = await connection.wait(subscriber.next(), patience)
        except Interrupted:
            if not (connection.gone or self._drain.is_set()):
                await self._heartbeat(connection)
            return None
        return await self._pass_on(connection, encoded)

    def _patience(self) -> float:
        """Seconds to wait for the next event. A stream that can be resumed ends as soon as the gateway
        drains; the others go on as long as there is time."""
        left = self._drain.seconds_left(self._settings.drain * DRAIN_SHARE)
        if left is None:
            early = not (self._started or self._dialect.holds_head)
            return min(EARLY_HEAD, self._settings.heartbeat) if early else self._settings.heartbeat
        return 0.0 if self._dialect.resumable else min(left, self._settings.heartbeat)

    async def _pass_on(self, connection: Connection, encoded: Encoded) -> Ending | None:
        if not self._started and self._still_held(encoded):
            return None
        await self._send(connection, encoded.frames, more=not encoded.ends)
        if encoded.aborts:
            connection.cut(flush=True)
            return Ending.ABORTED
        if encoded.ends:
            return Ending.DISCONNECTED if connection.gone else Ending.COMPLETE
        return None

    def _still_held(self, encoded: Encoded) -> bool:
        """Whether the head waits on, as there is nothing to show yet. Raises _Refused."""
        if not self._dialect.holds_head:
            return False
        if encoded.failure is not None:
            raise _Refused(failed(encoded.failure))
        if encoded.aborts:
            raise _Refused(_BROKEN)
        if encoded.ends or any(frame != self._dialect.opening for frame in encoded.frames):
            return False
        self._held += encoded.frames
        return True

    async def _send(self, connection: Connection, frames: Sequence[bytes], *, more: bool) -> None:
        if not self._started:
            self._started = True
            frames = [*self._preface(), *self._held, *frames]
            await connection.send({"type": "http.response.start", "status": 200, "headers": self._head()})
        body = frames[0] if len(frames) == 1 else b"".join(frames)
        if not more:
            await connection.send({"type": "http.response.body", "body": body})
        elif body:
            await connection.send_part(body)

    async def _say_nothing_left(self, connection: Connection) -> None:
        self._started = True
        await connection.send({"type": "http.response.start", "status": 204, "headers": self._head()})
        await connection.send({"type": "http.response.body"})

    async def _heartbeat(self, connection: Connection) -> None:
        """A sign of life; a head that was held goes out with it, but never before the opening frame."""
        if self._started:
            beat = self._dialect.heartbeat()
            await self._send(connection, (beat,) if beat else (), more=True)
        elif self._held or not self._dialect.opening:
            await self._send(connection, (), more=True)

    async def _tell_gone(self, connection: Connection) -> Ending:
        if not (self._started or self._event_source):
            raise _Refused(_GONE)
        await self._pass_on(connection, last_words(self._dialect, gone_entry()))
        return Ending.GONE

    async def _break_off(self, connection: Connection, refusal: RequestError, ending: Ending) -> Ending:
        """End without a terminal event, at the end of a frame: the client shall come back."""
        if not (self._started or self._event_source):
            raise _Refused(refusal)
        encoded = self._dialect.reset("lost")
        if self._dialect.resumable:
            encoded = Encoded((_retry(), comment()) if self._dialect.obeys_retry else (), ends=True)
        await self._pass_on(connection, encoded)
        return ending

    def _preface(self) -> Sequence[bytes]:
        return (_retry(),) if self._dialect.obeys_retry else ()

    def _head(self) -> list[tuple[bytes, bytes]]:
        """`no-transform` and no buffering: each event has to arrive when it is sent."""
        head = {
            "Content-Type": f"{self._dialect.media_type}; charset=utf-8",
            "Cache-Control": "no-store, no-transform",
            "X-Accel-Buffering": "no",
            "X-Content-Type-Options": "nosniff",
            "X-Run-Id": self._run,
            "Location": f"/v1/runs/{self._run}",
        }
        if self._dialect.resumable:
            head["Stream-Resumed-From"] = self._resumed_from
        head |= self._more_headers
        return [(name.lower().encode(), value.encode()) for name, value in head.items()]


class _Refused(Exception):
    """A status is the answer instead of a stream."""

    def __init__(self, error: RequestError) -> None:
        super().__init__(error.detail)
        self.error = error


def _retry() -> bytes:
    return b"retry: %d\n\n" % random.randint(*RETRY_MS)  # noqa: S311  # jitter, not a secret
