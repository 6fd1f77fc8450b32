"""The gateway's native API as the commands use it: plain calls, and one stream that resumes by itself.

A stream that breaks off is opened again with `Last-Event-ID`, so nothing is lost or shown twice;
one that is silent for two and a half heartbeats counts as broken.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import quote, urlsplit

import httpx
import msgspec

from shared.errors import BffError
from shared.events import TERMINAL_TYPES, Json
from shared.sse import FrameTooLarge, ServerSentEvent, SSEDecoder

DEFAULT_URL = "http://127.0.0.1:8000"
HEARTBEAT_SECONDS = 5.0
"""What the gateway keeps unless told otherwise (`BFF_HEARTBEAT`)."""
IDLE_HEARTBEATS = 2.5

_LARGEST_FRAME_BYTES = 16 << 20
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 10.0
_PATIENCE_SECONDS = 120.0
_CALL_SECONDS = 20.0
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_LATER = (502, 503, 504)


class GatewayUnreachable(BffError):
    """No gateway answers at the address."""


class GatewayRefused(BffError):
    """The gateway answered with a refusal; `status` is the HTTP status."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class NativeEvent(NamedTuple):
    """An event as the gateway sends it; `id` is None for a `reset`."""

    id: str | None
    type: str
    data: dict[str, Any]


@dataclass(frozen=True)
class Address:
    """Where the gateway is, and the key to it."""

    url: str = DEFAULT_URL
    key: str | None = None
    heartbeat: float = HEARTBEAT_SECONDS

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Address:
        """`BFF_URL` and `BFF_API_KEY`."""
        return cls((env.get("BFF_URL") or DEFAULT_URL).rstrip("/"), env.get("BFF_API_KEY") or None)

    def __repr__(self) -> str:
        return f"Address({self.url!r})"


class GatewayClient:
    """One gateway. `notify` is told in a sentence when a stream breaks off and is taken up again."""

    def __init__(self, address: Address, notify: Callable[[str], None] = lambda _: None) -> None:
        self._address = address
        self._notify = notify
        headers = {"authorization": f"Bearer {address.key}"} if address.key else {}
        try:
            loopback = urlsplit(address.url).hostname in _LOOPBACK
            # A proxy of the environment cannot reach this machine's own loopback.
            self._http = httpx.AsyncClient(
                base_url=address.url, headers=headers, timeout=_CALL_SECONDS, trust_env=not loopback
            )
        except (ValueError, httpx.InvalidURL):
            raise GatewayUnreachable(f"BFF_URL is not an address: {address.url}") from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def agents(self) -> list[dict[str, Any]]:
        """The agents this key may ask."""
        answer = await self._call("GET", "/v1/agents")
        return list(answer["agents"])

    async def start(self, agent: str, input: Json, conversation: str | None = None) -> str:
        """Begin a run; gives its id. The idempotency key lets a lost answer be asked for again."""
        body = {"agent": agent, "input": input}
        if conversation is not None:
            body["conversation"] = conversation
        headers = {"idempotency-key": secrets.token_hex(16), "accept": "application/json"}
        try:
            answer = await self._call("POST", "/v1/runs", json=body, headers=headers)
        except _AnswerLost:
            answer = await self._call("POST", "/v1/runs", json=body, headers=headers)
        return str(answer["id"])

    async def stop(self, run: str) -> dict[str, Any]:
        """End a run; gives its state."""
        return await self._call("POST", f"/v1/runs/{quote(run, safe='')}/stop", json={})

    async def events(self, run: str, cursor: str | None = None) -> AsyncIterator[NativeEvent]:
        """Every event behind `cursor` up to the terminal one, across broken connections.

        Raises GatewayUnreachable when nothing has come for two minutes, GatewayRefused for an
        unknown run or a wrong key.
        """
        pauses = _Pauses()
        while True:
            try:
                async for frame in self._frames(run, cursor):
                    pauses.heed(frame)
                    cursor = frame.id or cursor
                    if not frame.data:
                        continue
                    event = _event(frame)
                    yield event
                    if event.type in TERMINAL_TYPES:
                        return
                reason = "the connection ended early"
            except _Ended:
                return
            except (httpx.TransportError, FrameTooLarge, _Later) as error:
                reason = _reason(error)
            pause = pauses.next()
            if pause is None:
                raise GatewayUnreachable(
                    f"{self._address.url} has sent nothing for {_PATIENCE_SECONDS:g} s ({reason});"
                    f" go on later with: bff tail {run}" + (f" --from {cursor}" if cursor else "")
                )
            self._notify(f"{reason}; resuming in {pause:.1f} s")
            await asyncio.sleep(pause)

    async def _frames(self, run: str, cursor: str | None) -> AsyncIterator[ServerSentEvent]:
        headers = {"accept": "text/event-stream"}
        if cursor is not None:
            headers["last-event-id"] = cursor
        idle = self._address.heartbeat * IDLE_HEARTBEATS
        async with self._http.stream(
            "GET",
            f"/v1/runs/{quote(run, safe='')}/events",
            params={"errors": "status"},
            headers=headers,
            timeout=httpx.Timeout(_CALL_SECONDS, read=idle),
        ) as response:
            if response.status_code == httpx.codes.NO_CONTENT:
                raise _Ended
            if response.status_code in _LATER:
                raise _Later(f"the gateway answered {response.status_code}")
            if response.status_code != httpx.codes.OK:
                await response.aread()
                raise _refusal(response)
            decoder = SSEDecoder(_LARGEST_FRAME_BYTES)
            async for chunk in response.aiter_bytes():
                for frame in decoder.feed(chunk):
                    yield frame

    async def _call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        try:
            response = await self._http.request(method, path, **options)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.UnsupportedProtocol) as error:
            raise GatewayUnreachable(
                f"no gateway answers at {self._address.url} ({_reason(error)});"
                " start one with `bff dev`, or set BFF_URL to its address"
            ) from None
        except httpx.TransportError as error:
            raise _AnswerLost(f"{self._address.url} did not answer ({_reason(error)})") from None
        if not response.is_success:
            raise _refusal(response)
        try:
            answer = msgspec.json.decode(response.content)
        except msgspec.DecodeError:
            answer = None
        if not isinstance(answer, dict):
            raise GatewayUnreachable(f"what answers at {self._address.url} is not a Streaming BFF gateway")
        return answer


class _Pauses:
    """Growing pauses with jitter, from what the server asked for; over when patience is."""

    def __init__(self) -> None:
        self._base = self._pause = _FIRST_PAUSE
        self._since = time.monotonic()

    def heed(self, frame: ServerSentEvent) -> None:
        """Something came: start small again."""
        if frame.retry is not None:
            self._base = min(frame.retry / 1000, _LONGEST_PAUSE)
        self._since, self._pause = time.monotonic(), self._base

    def next(self) -> float | None:
        """Seconds to wait before the next try, or None when it is time to give up."""
        if time.monotonic() - self._since > _PATIENCE_SECONDS:
            return None
        pause = self._pause * random.uniform(0.5, 1.5)  # noqa: S311 - spreads load, guards nothing
        self._pause = min(max(self._pause, _FIRST_PAUSE) * 2, _LONGEST_PAUSE)
        return pause


class _AnswerLost(GatewayUnreachable):
    """The call was sent, and no answer came back: it may have been done."""


class _Ended(Exception):
    """The cursor is at the terminal event."""


class _Later(Exception):
    """The gateway cannot serve the stream for the moment."""


def _event(frame: ServerSentEvent) -> NativeEvent:
    data = msgspec.json.decode(frame.data)
    return NativeEvent(frame.id, str(data.pop("type")), data)


def _refusal(response: httpx.Response) -> GatewayRefused:
    """The problem detail (RFC 9457) in the answer, with the remedy for a missing key."""
    try:
        problem = msgspec.json.decode(response.content)
    except msgspec.DecodeError:
        problem = None
    detail = problem.get("detail") if isinstance(problem, dict) else None
    text = str(detail or f"the gateway answered {response.status_code}")
    if response.status_code == httpx.codes.UNAUTHORIZED:
        text += "; set BFF_API_KEY to a key of this gateway (`bff keys new` makes one)"
    return GatewayRefused(response.status_code, text)


def _reason(error: Exception) -> str:
    if isinstance(error, httpx.ReadTimeout):
        return "nothing came for too long"
    if isinstance(error, httpx.ConnectError):
        return "the connection is refused"
    if isinstance(error, httpx.TransportError):
        return "the connection broke off"
    return str(error)
