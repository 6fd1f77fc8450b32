"""Telling a run to one client: its place among the tenant's streams, its view, its response."""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from starlette.requests import Request
from starlette.responses import Response

from gateway.auth import Caller
from gateway.dependencies import Gateway
from gateway.dialects import FRONTEND_DIALECTS
from gateway.dialects.base import ViewOptions
from gateway.hub import Position, StreamGone, Subscriber
from gateway.problems import problem
from gateway.responses import RETRY_MS, Ending, StreamResponse
from gateway.views import view_of
from gateway.window import View
from shared import cursor
from shared.errors import RequestError
from shared.sse import comment

log = logging.getLogger(__name__)


def is_event_source(request: Request) -> bool:
    """Whether a browser's EventSource asks, for which every status but 200 and 204 is final."""
    exactly = request.headers.get("accept", "").strip().lower() == "text/event-stream"
    return request.method == "GET" and exactly and request.query_params.get("errors") != "status"


def come_back_later() -> Response:
    """What an EventSource is told while Redis is out: a stream that ends at once, to be tried again."""
    pause = random.randint(*RETRY_MS)  # noqa: S311  # jitter, not a secret
    headers = {"Cache-Control": "no-store, no-transform"}
    return Response(b"retry: %d\n\n" % pause + comment(), 200, headers, "text/event-stream")


def position_of(request: Request) -> Position | None:
    """Where the client is: the header wins over the query, without either it has nothing."""
    text = request.headers.get("last-event-id") or request.query_params.get("last_event_id")
    if not text:
        return None
    try:
        return Position(*cursor.parse_frame_id(text))
    except ValueError:
        return Position(None)


def stream(
    gateway: Gateway,
    caller: Caller,
    dialect: str,
    options: ViewOptions,
    position: Position | None,
    *,
    refuse: Callable[[RequestError], Response] = problem,
    event_source: bool = False,
    headers: Mapping[str, str] | None = None,
) -> StreamResponse:
    """The response that tells the run of `options` in a dialect, from a position on."""
    return StreamResponse(
        watched(gateway, caller, options.run, view_of(dialect, options), position),
        FRONTEND_DIALECTS[dialect](options),
        run=options.run,
        settings=gateway.settings,
        drain=gateway.drain,
        refuse=refuse,
        event_source=event_source,
        headers=headers,
        on_end=lambda ending: _note(options.run, dialect, ending),
    )


def told_gone(gateway: Gateway, dialect: str, options: ViewOptions) -> StreamResponse:
    """What an EventSource is told about a run that is no longer there."""
    return StreamResponse(
        _gone(),
        FRONTEND_DIALECTS[dialect](options),
        run=options.run,
        settings=gateway.settings,
        drain=gateway.drain,
        event_source=True,
    )


@asynccontextmanager
async def watched(
    gateway: Gateway, caller: Caller, run: str, view: View, position: Position | None
) -> AsyncIterator[Subscriber]:
    """A subscription that takes one of the tenant's slots. Raises RequestError, StreamGone, BrokerError."""
    with gateway.slots.hold(caller.tenant, caller.limits.streams):
        async with gateway.hub.subscribe(run, view, position) as subscriber:
            yield subscriber


@asynccontextmanager
async def _gone() -> AsyncIterator[Subscriber]:
    raise StreamGone
    yield


def _note(run: str, dialect: str, ending: Ending) -> None:
    log.info("%s a viewer left (%s): %s", run, dialect, ending.value)
