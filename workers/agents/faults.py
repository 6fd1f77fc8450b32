"""What goes wrong on the way to an agent and back, in our own exceptions.

The texts of foreign exceptions hold addresses, and bodies of refusals repeat keys: neither is passed on.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from time import time

import aiohttp
import httpx

from shared.errors import AgentError, AgentProtocolError, AgentRejected, AgentTruncated, AgentUnavailable
from workers.agents.addresses import ForbiddenAddress
from workers.dialects.decoding import FrameJson
from workers.dialects.reported import BUSY, Report, as_error, report

ERROR_BODY_BYTES = 64 << 10
"""Of the body of a refusal, so much is read for its message."""

ERROR_BODY_TIMEOUT = 5.0

FOREIGN = (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, aiohttp.ClientError, OSError, ssl.SSLError)
"""All that httpx, aiohttp and the system raise; httpx-aiohttp lets some of aiohttp's own through."""


@asynccontextmanager
async def as_ours(*, begun: bool) -> AsyncIterator[None]:
    """Turn foreign exceptions into ours; their texts hold addresses and are left out."""
    try:
        yield
    except TimeoutError as error:
        raise AgentUnavailable("the agent did not answer in time") from error
    except FOREIGN as error:
        raise mapped(error, begun) from error


def mapped(error: Exception, begun: bool) -> AgentError:
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


async def check_answer(response: httpx.Response, framing: str) -> None:
    """Raises AgentError for an answer that is not the stream that was asked for."""
    encoding = response.headers.get("content-encoding", "").strip().lower()
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if response.status_code >= 300:
        raise refusal(response, await _told(response) if "json" in kind and not encoding else None)
    if encoding not in ("", "identity"):
        raise AgentProtocolError("the agent compressed its answer, which was not asked for")
    if framing == "json":
        return
    if kind in ("text/html", "application/xhtml+xml"):
        raise AgentProtocolError("the agent answered with a web page instead of a stream")
    if kind == "application/json" and framing == "sse":  # lines of JSON are often called that, too
        found = await _told(response)
        raise as_error(found) if found else AgentProtocolError("the agent answered with JSON, not a stream")


def refusal(response: httpx.Response, told: Report | None) -> AgentError:
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
    except (*FOREIGN, TimeoutError, AgentProtocolError):
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
