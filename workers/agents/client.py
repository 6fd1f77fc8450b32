"""The HTTP client of a worker: httpx on aiohttp's connections, raw bytes, one a process.

Connecting is shielded from who waits for it: an attempt to connect that nobody waits for any more is
finished or fails by its own time-out, and its connection is closed then, never lost (encode/httpcore,
aio-libs/aiohttp: pools that were cancelled while they connect have leaked in both).
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import urlsplit

import aiohttp
import httpx
import msgspec
from httpx_aiohttp import AiohttpTransport

from shared.sse import DEFAULT_LIMIT_BYTES
from workers.agents.addresses import CheckedResolver, check_literal
from workers.dialects.base import AgentRequest

if TYPE_CHECKING:
    from aiohttp.client_reqrep import ClientRequest
    from aiohttp.connector import Connection
    from aiohttp.tracing import Trace

T = TypeVar("T")

KEEP_ALIVE = 15.0
"""Seconds an idle connection is kept; under the usual 60 s of servers and balancers."""


class HttpAgents:
    """The HTTP client of a worker process: `async with HttpAgents() as agents`."""

    def __init__(self, *, frame_limit: int = DEFAULT_LIMIT_BYTES) -> None:
        self.frame_limit = frame_limit
        self.requests: set[asyncio.Task[Any]] = set()
        self._stack = AsyncExitStack()
        self._client: httpx.AsyncClient | None = None

    async def __aenter__(self) -> Self:
        context = httpx.create_ssl_context()  # honours SSL_CERT_FILE and SSL_CERT_DIR
        self._client = httpx.AsyncClient(
            transport=await self._make_transport(context),
            headers={"Accept-Encoding": "identity", "User-Agent": "streaming-bff"},
            follow_redirects=False,
            trust_env=False,
        )
        await self._stack.enter_async_context(self._client)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self.requests:
            task.cancel()
        if self.requests:
            await asyncio.wait(self.requests)
        await self._stack.aclose()

    def aside(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Do `work` in a task of its own, which ends with this client at the latest."""
        task = asyncio.create_task(work)
        self.requests.add(task)
        task.add_done_callback(self.requests.discard)
        return task

    @asynccontextmanager
    async def send(self, request: AgentRequest, connect: float) -> AsyncIterator[httpx.Response]:
        """The head of the answer; its body is read inside. Raises foreign exceptions."""
        assert self._client is not None, "used outside of `async with`"
        check_literal(urlsplit(request.url).hostname or "")
        content = None if request.body is None else msgspec.json.encode(request.body)
        headers = dict(request.headers) | ({} if content is None else {"Content-Type": "application/json"})
        timeout = httpx.Timeout(None, connect=connect, pool=connect)
        async with self._client.stream(
            request.method, request.url, content=content, headers=headers, timeout=timeout
        ) as response:
            yield response

    async def _make_transport(self, context: ssl.SSLContext) -> httpx.AsyncBaseTransport:
        connector = _Connector(context)
        session = aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False
        )
        await self._stack.enter_async_context(session)
        self._stack.push_async_callback(connector.settle)
        return _Transport(verify=context, client=session)


class Body(httpx.AsyncByteStream):
    """A body up to where it broke off. aiohttp's reader withholds what has arrived once its connection is
    lost (aio-libs/aiohttp `aiohttp/streams.py`): of a burst that is all, the end marker too."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self._content = response.content
        self._lost: Exception | None = None

    async def read(self) -> bytes:
        """What has arrived since the last time, b"" at the end. Raises aiohttp.ClientError, OSError."""
        if self._lost is not None:
            raise self._lost
        try:
            return await self._content.readany()
        except (aiohttp.ClientError, OSError) as error:
            self._lost = error
            self._content.set_exception(None)  # type: ignore[arg-type]  # the one way to let it go on
            if rest := self._content.read_nowait():
                return rest
            raise

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while chunk := await self.read():
            yield chunk

    async def aclose(self) -> None:
        await self._response.__aexit__(None, None, None)  # gives the connection back, or closes it


def body_of(response: httpx.Response) -> Body:
    """The body that `_Transport` gave, without httpx's own three wrappers around it."""
    body = getattr(response.stream, "_stream", None)
    assert isinstance(body, Body), "httpx keeps the transport's stream there"
    return body


class _Transport(AiohttpTransport):
    """httpx-aiohttp's, but for the body."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await super().handle_async_request(request)
        response.stream = Body(response.stream._aiohttp_response)  # type: ignore[union-attr]  # its own
        return response


class _Connector(aiohttp.TCPConnector):
    """Connects in a task of its own, which goes on when the request that wanted it is cancelled."""

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(
            ssl=context, resolver=CheckedResolver(), limit=0, keepalive_timeout=KEEP_ALIVE, ttl_dns_cache=10
        )
        self._unwanted: set[asyncio.Task[Connection]] = set()

    async def connect(
        self, req: ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout
    ) -> Connection:
        connecting = asyncio.ensure_future(super().connect(req, traces, timeout))
        try:
            return await asyncio.shield(connecting)
        except asyncio.CancelledError:
            self._unwanted.add(connecting)
            connecting.add_done_callback(self._close_unwanted)
            raise

    def _close_unwanted(self, connecting: asyncio.Task[Connection]) -> None:
        self._unwanted.discard(connecting)
        if not connecting.cancelled() and connecting.exception() is None:
            connecting.result().close()

    async def settle(self) -> None:
        """End the attempts to connect that are left over; nothing else will use this pool."""
        for connecting in self._unwanted:
            connecting.cancel()
        if self._unwanted:
            await asyncio.wait(self._unwanted)
