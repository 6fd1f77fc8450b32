"""Agents reached by HTTP: httpx on aiohttp's connections, raw bytes, one client a process.

A request runs in a task of its own, so that whoever relays it can leave at any moment. Connecting
is shielded from that: an attempt to connect that nobody waits for any more is finished or fails by
its own time-out, and its connection is closed then, never lost (encode/httpcore, aio-libs/aiohttp:
pools that were cancelled while they connect have leaked in both).
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from email.utils import parsedate_to_datetime
from time import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import urlsplit

import aiohttp
import httpx
import msgspec
from httpx_aiohttp import AiohttpTransport

from shared.errors import (
    AgentError,
    AgentProtocolError,
    AgentRejected,
    AgentTooLarge,
    AgentTruncated,
    AgentUnavailable,
)
from shared.sse import DEFAULT_LIMIT_BYTES, FRAMINGS, FrameTooLarge
from workers.agents.addresses import CheckedResolver, ForbiddenAddress, check_literal
from workers.agents.base import Batch
from workers.dialects.base import AgentDialect, AgentRequest
from workers.dialects.decoding import FrameJson
from workers.dialects.reported import BUSY, Report, as_error, report

if TYPE_CHECKING:
    from aiohttp.client_reqrep import ClientRequest
    from aiohttp.connector import Connection
    from aiohttp.tracing import Trace

T = TypeVar("T")

KEEP_ALIVE = 15.0
"""Seconds an idle connection is kept; under the usual 60 s of servers and balancers."""

ERROR_BODY_BYTES = 64 << 10
"""Of the body of a refusal, so much is read for its message."""

READ_OUT = 0.25
"""Seconds for which a body that nobody needs any more may end by itself."""

ERROR_BODY_TIMEOUT = 5.0
STOP_TIMEOUT = 5.0

_FOREIGN = (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, aiohttp.ClientError, OSError, ssl.SSLError)
"""All that httpx, aiohttp and the system raise; httpx-aiohttp lets some of aiohttp's own through."""


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


class _Body(httpx.AsyncByteStream):
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


class _Transport(AiohttpTransport):
    """httpx-aiohttp's, but for the body."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await super().handle_async_request(request)
        response.stream = _Body(response.stream._aiohttp_response)  # type: ignore[union-attr]  # its own
        return response


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


class HttpStream:
    """One request to an agent and its answer, read by whoever iterates, at the reader's own pace."""

    def __init__(
        self, agents: HttpAgents, dialect: AgentDialect, request: AgentRequest, *, connect: float
    ) -> None:
        self._agents = agents
        self._dialect = dialect
        self._request = request
        self._connect = connect
        self._decoder = FRAMINGS[dialect.framing](agents.frame_limit)
        self._answer = AsyncExitStack()
        self._opening: asyncio.Task[httpx.Response] | None = None
        self._body: _Body | None = None

    async def __aenter__(self) -> AsyncIterator[Batch]:
        self._opening = self._agents.aside(self._open())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection, or keep it for the next request when the body is about to end.

        One that is being made is left to itself (`_Connector`).
        """
        if error is None and self._body is not None:
            self._agents.aside(self._read_out(self._body))
            return
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait((self._opening,))
            if not self._opening.cancelled():
                self._opening.exception()  # whoever iterated has been told
        await self._answer.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Batch:
        try:
            while not (frames := await self._read()):
                pass
        except AgentTruncated:
            if self._dialect.complete:  # what breaks off behind the end marker has said all it had to
                raise StopAsyncIteration from None
            raise
        except FrameTooLarge as error:
            raise AgentTooLarge(str(error)) from None
        return frames

    async def stop(self) -> None:
        """Ask the agent's own stop address, where its dialect knows one."""
        request = self._dialect.stop_request()
        if request is None:
            return
        async with (
            _ours(begun=False),
            asyncio.timeout(STOP_TIMEOUT),
            self._agents.send(request, self._connect) as response,
        ):
            if response.status_code >= 400:
                raise _refusal(response, None)

    async def _read_out(self, body: _Body) -> None:
        """Read what is left behind the agent's last word; with a body at its end the connection is kept."""
        try:
            async with asyncio.timeout(READ_OUT):
                while await body.read():
                    pass
        except (TimeoutError, *_FOREIGN):
            pass
        finally:
            await self._answer.aclose()

    async def _open(self) -> httpx.Response:
        async with _ours(begun=False):
            response = await self._answer.enter_async_context(self._agents.send(self._request, self._connect))
            await _check(response, self._dialect.framing)
            return response

    async def _read(self) -> Batch:
        """The frames that the next bytes complete. Raises StopAsyncIteration behind the last."""
        assert self._opening is not None, "used outside of `async with`"
        if self._body is None:
            self._body = _body_of(await asyncio.shield(self._opening))
        try:
            chunk = await self._body.read()
        except _FOREIGN as error:
            raise _mapped(error, begun=True) from error
        if chunk:
            return self._decoder.feed(chunk)
        if last := self._decoder.end():
            return last
        raise StopAsyncIteration


def _body_of(response: httpx.Response) -> _Body:
    """The body that `_Transport` gave, without httpx's own three wrappers around it."""
    body = getattr(response.stream, "_stream", None)
    assert isinstance(body, _Body), "httpx keeps the transport's stream there"
    return body


@asynccontextmanager
async def _ours(*, begun: bool) -> AsyncIterator[None]:
    """Turn foreign exceptions into ours; their texts hold addresses and are left out."""
    try:
        yield
    except TimeoutError as error:
        raise AgentUnavailable("the agent did not answer in time") from error
    except _FOREIGN as error:
        raise _mapped(error, begun) from error


def _mapped(error: Exception, begun: bool) -> AgentError:
    causes = list(_causes(error))
    if any(isinstance(cause, ForbiddenAddress) for cause in causes):
        return AgentRejected("the agent's address is link-local or a metadata service")
    if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol | aiohttp.InvalidURL):
        return AgentRejected("the agent's address is not valid")
    if any(isinstance(cause, ssl.SSLError | ssl.CertificateError) for cause in causes):
        return AgentUnavailable("the agent's TLS certificate or connection was not accepted")
    if begun:
        return AgentTruncated("the connection to the agent broke off")
    if isinstance(error, aiohttp.ClientResponseError | httpx.RemoteProtocolError | httpx.DecodingError):
        return AgentProtocolError("the agent's answer is not HTTP")
    return AgentUnavailable("the agent could not be reached")


def _causes(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = getattr(error, "os_error", None) or error.__cause__ or error.__context__
    return found


async def _check(response: httpx.Response, framing: str) -> None:
    """Raises AgentError for an answer that is not the stream that was asked for."""
    encoding = response.headers.get("content-encoding", "").strip().lower()
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if response.status_code >= 300:
        raise _refusal(response, await _told(response) if "json" in kind and not encoding else None)
    if encoding not in ("", "identity"):
        raise AgentProtocolError("the agent compressed its answer, which was not asked for")
    if framing == "json":
        return
    if kind in ("text/html", "application/xhtml+xml"):
        raise AgentProtocolError("the agent answered with a web page instead of a stream")
    if kind == "application/json" and framing == "sse":  # lines of JSON are often called that, too
        found = await _told(response)
        raise as_error(found) if found else AgentProtocolError("the agent answered with JSON, not a stream")


def _refusal(response: httpx.Response, told: Report | None) -> AgentError:
    """The exception for a status that is not success."""
    status = response.status_code
    if status in (401, 403):  # such bodies repeat the key
        return AgentRejected(f"the agent refused the key ({status})", agent_code=told.code if told else None)
    if 300 <= status < 400:
        return AgentRejected(f"the agent redirects ({status}), which is not followed")
    said = f": {told.message}" if told else ""
    named = Report(f"the agent answered with status {status}{said}", *_names(told))
    error = as_error(named, status)
    if status in BUSY:
        error.retry_after = _retry_after(response.headers)
    return error


def _names(told: Report | None) -> tuple[str | int | None, str | None]:
    return (told.code, told.kind) if told else (None, None)


async def _told(response: httpx.Response) -> Report | None:
    """The error in the body, as far as it can be read."""
    body = bytearray()
    try:
        async with asyncio.timeout(ERROR_BODY_TIMEOUT):
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > ERROR_BODY_BYTES:
                    return None
        return report(FrameJson().value(bytes(body)))
    except (*_FOREIGN, TimeoutError, AgentProtocolError):
        return None


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, from a number or a date (RFC 9110, section 10.2.3); None when it is neither."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit() and len(text) < 8:
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time())
    except ValueError:
        return None
