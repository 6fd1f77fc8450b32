"""Serves the gateway's application: uvicorn on our own socket, with our protocol, drained in order.

The event loop is the caller's: `uvloop.run(serve(...))`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import resource
import signal
import socket
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.connection import CUT
from gateway.problems import problem
from gateway.protocol import REQUEST_TIMEOUT, GatewayProtocol
from shared.errors import RequestError
from shared.settings import Settings

SEND_BUFFER_BYTES = 128 << 10
"""What the kernel takes for a client that does not read; more hides a slow client."""

TCP_USER_TIMEOUT_MS = 20_000
"""Time after which what was sent and not acknowledged ends a connection (RFC 5482)."""

BACKLOG = 2048

_FILE_SHARE = 0.8
"""Part of the process' files that connections may take."""

_SPARE_CONNECTIONS = 16
"""At least so many connections beyond the limit are told so; further ones are closed unheard, as files
run out."""

_ALWAYS_ANSWERED = ("/healthz",)
"""A gateway that is full or draining is healthy: whoever asks must not restart it."""

_FULL = RequestError(503, "too_many_connections", "This gateway has no connection to spare.", retry_after=1)
_DRAINING = RequestError(503, "shutting_down", "This gateway is shutting down.", retry_after=1)


def listen(host: str, port: int) -> socket.socket:
    """The listening socket; connections inherit its options. Port 0 takes a free one. Raises OSError."""
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, TCP_USER_TIMEOUT_MS)
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


async def serve(
    app: ASGIApp,
    settings: Settings,
    drain: asyncio.Event,
    *,
    listener: socket.socket | None = None,
    request_timeout: float = REQUEST_TIMEOUT,
) -> None:
    """Serve until SIGINT or SIGTERM, or until `drain` is set; then drain and return.

    `drain` is a `gateway.drain.Drain` and the same one that responses are given. `listener` is taken
    over and closed; without one, settings.host and settings.port are listened on. Raises OSError when
    they cannot be. SIGINT is raised again at the end, as uvicorn does; SIGTERM has then been obeyed.
    """
    listener = listener or listen(settings.host, settings.port)
    limit = _connection_limit(settings)
    door = Door(app, limit, drain)
    bounds = {"request_timeout": request_timeout, "most": limit + max(limit // 10, _SPARE_CONNECTIONS)}
    config = uvicorn.Config(
        door,
        http=type("BoundedProtocol", (GatewayProtocol,), bounds),
        ws="none",
        loop="none",
        log_config=None,
        server_header=False,
        timeout_keep_alive=math.ceil(request_timeout),
        timeout_graceful_shutdown=math.ceil(settings.drain),
    )
    server = DrainingServer(config, drain)
    door.connections = server.server_state.connections
    with _paths_only():
        await server.serve(sockets=[listener])


class DrainingServer(uvicorn.Server):
    """Says that it drains before it touches a connection; uvicorn's application hears it after."""

    def __init__(self, config: uvicorn.Config, drain: asyncio.Event) -> None:
        super().__init__(config)
        self._drain = drain

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A SIGTERM that uvicorn notes it raises again at the end, and the process would not end with 0."""
        if sig == signal.SIGTERM:
            self.should_exit = True
        else:
            super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self._drain.is_set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._drain.set()
        await super().shutdown(sockets)


class Door:
    """Outermost application: keeps the number of connections, and the end of a drain quiet."""

    def __init__(self, app: ASGIApp, limit: int, drain: asyncio.Event) -> None:
        self._app = app
        self._limit = limit
        self._drain = drain
        self.connections: Collection[object] = ()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _ALWAYS_ANSWERED:
            await self._app(scope, receive, send)
        elif len(self.connections) > self._limit:
            await _refuse(_FULL, scope, receive, send)
        elif self._drain.is_set():
            await _refuse(_DRAINING, scope, receive, send)
        else:
            await self._pass_in(scope, receive, send)

    async def _pass_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError:
            if not self._drain.is_set():
                raise
            scope["extensions"][CUT](False)  # the drain time is over


async def _refuse(error: RequestError, scope: Scope, receive: Receive, send: Send) -> None:
    response = problem(error)
    response.headers["Connection"] = "close"
    await response(scope, receive, send)


def _connection_limit(settings: Settings) -> int:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    room = sys.maxsize if files == resource.RLIM_INFINITY else int(files * _FILE_SHARE)
    return room if settings.max_connections is None else min(settings.max_connections, room)


class _PathOnly(logging.Filter):
    """Takes the query out of uvicorn's access lines: a ticket may stand there."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple) and len(record.args) == 5:
            client, method, path, *rest = record.args
            record.args = (client, method, str(path).partition("?")[0], *rest)
        return True


@contextmanager
def _paths_only() -> Iterator[None]:
    access = logging.getLogger("uvicorn.access")
    path_only = _PathOnly()
    access.addFilter(path_only)
    try:
        yield
    finally:
        access.removeFilter(path_only)
