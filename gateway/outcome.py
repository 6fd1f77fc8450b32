"""A run's result for clients that take no stream: wait for its end, then read its log once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from starlette.requests import Request
from starlette.types import Message

from gateway.auth import Caller
from gateway.connection import Connection, Interrupted
from gateway.dependencies import Gateway
from gateway.dialects.base import Encoded, FrontendDialect, ViewOptions
from gateway.hub import StreamGone, Subscriber
from gateway.responses import DRAIN_SHARE
from gateway.results import RunResult
from gateway.watching import watched
from gateway.window import View
from shared import cursor
from shared.cursor import Cursor
from shared.stream_log import Entry

LONGEST_WAIT = 24 * 3600.0
"""Seconds; every run ends before by its own deadline."""

_PAGE = 512


async def read_result(gateway: Gateway, options: ViewOptions) -> tuple[RunResult, Cursor]:
    """As far as the run has come, and the id of its newest event. Raises StreamGone, BrokerError."""
    result, last = RunResult(options), cursor.START
    while page := await gateway.log.read(options.run, last, _PAGE):
        result.feed(page)
        last = page[-1].cursor
        if len(page) < _PAGE:
            break
    if last == cursor.START:
        raise StreamGone("the stream of this run is no longer there")
    return result, last


async def wait_for_end(
    gateway: Gateway, caller: Caller, request: Request, run: str, seconds: float = LONGEST_WAIT
) -> None:
    """Wait until the run ends, time is up, the client has gone or the gateway has no more time."""
    connection = Connection(
        request.scope,
        request.receive,
        _say_nothing,
        drain=gateway.drain,
        period=gateway.settings.heartbeat,
        send_timeout=gateway.settings.send_timeout,
    )
    async with connection, watched(gateway, caller, run, _END_VIEW, None) as subscriber:
        await _end_of(subscriber, connection, gateway, seconds)
        subscriber.left = True


async def _end_of(subscriber: Subscriber, connection: Connection, gateway: Gateway, seconds: float) -> None:
    now = asyncio.get_running_loop().time
    deadline = now() + seconds
    while not connection.gone:
        draining = gateway.drain.seconds_left(gateway.settings.drain * DRAIN_SHARE)
        left = min(deadline - now(), LONGEST_WAIT if draining is None else draining)
        if left <= 0:
            return
        try:
            if (await connection.wait(subscriber.next(), left)).ends:
                return
        except Interrupted:
            continue


class _EndOnly(FrontendDialect):
    """Says nothing but that it is over."""

    media_type = "application/json"
    resumable = True
    takes_back = True
    obeys_retry = False
    holds_head = True
    opening = b""

    def encode(self, entry: Entry) -> Encoded:
        return Encoded(ends=entry.terminal)

    def reset(self, reason: str) -> Encoded:
        return Encoded()

    def heartbeat(self) -> bytes:
        return b""


_END_VIEW = View(("end",), _EndOnly)


def _say_nothing(message: Message) -> Awaitable[None]:
    raise AssertionError("nothing is sent while waiting")
