"""The HTTP protocol of our server: uvicorn's on httptools, with what it leaves open.

uvicorn has no deadline for a request's head or body, no bound on the size of a head, forgets the
running response of a connection on which another request was pipelined, and cannot break a response
off without logging an error. Tested against the installed uvicorn (`tests/gateway/test_server.py`).
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from gateway.connection import CUT, SINK

REQUEST_TIMEOUT = 15.0
"""Seconds for a request's head and body together."""

MAX_HEAD_BYTES = 64 << 10
"""A request line with its headers; a cookie or a key takes a few kilobytes."""


class GatewayProtocol(HttpToolsProtocol):
    """One client's connection."""

    request_timeout = REQUEST_TIMEOUT
    most = sys.maxsize
    """Connections beyond so many are closed unheard."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn
        super().connection_made(transport)
        self._deadline: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._in_head = True
        self._running: RequestResponseCycle | None = None
        self._await_request()
        if len(self.connections) > self.most:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._request_is_whole()
        self._forget_client()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD_BYTES:
            self.transport.abort()
        elif self._deadline is None and self._idle():  # bytes that are no request yet, as blank lines
            self._await_request()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        extensions: dict[str, Any] = {CUT: self._cut, SINK: self._sink}
        self.scope["extensions"] = extensions
        self._in_head = True
        if self._deadline is None:
            self._await_request()

    def on_headers_complete(self) -> None:
        self._in_head, self._head_bytes = False, 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._request_is_whole()
        super().on_message_complete()

    def shutdown(self) -> None:
        if self._deadline is not None:  # half a request is not waited for
            self.transport.close()
        super().shutdown()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _idle(self) -> bool:
        answered = self.cycle is None or self.cycle.response_complete
        return answered and self.timeout_keep_alive_task is None and not self.transport.is_closing()

    def _await_request(self) -> None:
        self._deadline = self.loop.call_later(self.request_timeout, self._too_late)

    def _request_is_whole(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_late(self) -> None:
        self._deadline = None
        self.transport.abort()

    def _forget_client(self) -> None:
        """Let the running response know that nobody listens; what it sends from now on is dropped."""
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()

    def _sink(self, body: bytes) -> bool:
        """Write a part of the running response's body, unless it has to go the ordinary way."""
        cycle = self._running
        if cycle is None or not cycle.chunked_encoding or cycle.disconnected or self.flow.write_paused:
            return False
        self.transport.write(b"%x\r\n%b\r\n" % (len(body), body))
        return True

    def _cut(self, flush: bool) -> None:
        """End the connection without a final chunk."""
        self._forget_client()
        if flush:
            self.transport.close()
        else:
            self.transport.abort()
