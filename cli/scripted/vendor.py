"""What the scripted agent server knows of each API it plays: who is let in, and how it speaks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from cli.scripted.http import Request


class Refusal(Exception):
    """The request is answered with an error in the vendor's own form."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(status)
        self.status = status
        self.body = body


class Question(NamedTuple):
    """What a request asks, as far as the answer depends on it."""

    prompt: str
    user: str = ""
    stream: bool = True
    usage: bool = True
    """Whether token counts were asked for."""
    task: str = ""
    """The id under which the answer can be stopped."""


class Vendor(Protocol):
    """One API. Its formats are those of the shipped transcripts."""

    transcript: str
    content_type: str
    ping: bytes

    def admit(self, request: Request, key: str) -> Question:
        """The question in a request that the real API would take. Raises Refusal for others."""
        ...

    def refusal(self, status: int) -> bytes:
        """The body of an error answer."""
        ...

    def adapt(self, recorded: Sequence[bytes], question: Question) -> list[bytes]:
        """The recorded frames as this caller would get them."""
        ...

    def say(self, texts: Iterable[str], question: Question) -> Iterator[bytes]:
        """Frames whose text deltas are `texts`."""
        ...

    def whole(self, frames: Iterable[bytes]) -> bytes:
        """The frames as the one JSON body of a request that does not stream."""
        ...

    def stopped(self, question: Question) -> list[bytes]:
        """What still comes when the caller has asked to stop."""
        ...


def json_bytes(value: Any) -> bytes:
    """Compact UTF-8 JSON, as these APIs send it."""
    return msgspec.json.encode(value)


def sse(value: Any) -> bytes:
    """A frame of one `data:` line."""
    return b"data: " + json_bytes(value) + b"\n\n"


def payloads(frames: Iterable[bytes]) -> list[dict[str, Any]]:
    """The JSON objects in `data:` lines."""
    lines = (line for frame in frames for line in frame.split(b"\n"))
    return [msgspec.json.decode(line[6:]) for line in lines if line.startswith(b"data: {")]


def json_object(body: bytes) -> dict[str, Any] | None:
    """The request body when it is a JSON object."""
    try:
        value = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return None
    return value if isinstance(value, dict) else None


def has_bearer(request: Request, key: str) -> bool:
    """Whether the request carries exactly this key."""
    return request.headers.get("authorization", "") == f"Bearer {key}"
