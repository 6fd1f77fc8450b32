"""Frames: bytes from a body, and bytes for a body.

Decoders are fed whatever the network delivers and give whole frames; what is unfinished at the
end of an SSE body is dropped, as the specification asks (WHATWG HTML, "Server-sent events").
Each holds at most `limit` bytes of an unfinished frame.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from shared.errors import BffError

DEFAULT_LIMIT_BYTES = 1 << 20
"""Largest frame accepted unless a setting says otherwise."""

_BOM = b"\xef\xbb\xbf"


class FrameTooLarge(BffError):
    """A frame did not end within the limit."""


class ServerSentEvent(NamedTuple):
    """One frame. `data` is UTF-8 as it came, lines joined by LF; `event` is empty when not given."""

    data: bytes
    event: str = ""
    id: str | None = None
    retry: int | None = None


class FrameDecoder(Protocol):
    """Bytes in, frames out; one for each body."""

    def feed(self, chunk: bytes) -> list[ServerSentEvent]:
        """The frames that `chunk` completes. Raises FrameTooLarge."""
        ...

    def end(self) -> list[ServerSentEvent]:
        """What the end of the body completes."""
        ...


class _Buffer:
    """Unfinished bytes, joined only when something can have ended."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._parts: list[bytes] = []
        self._size = 0
        self.ends_line = False

    def add(self, chunk: bytes) -> None:
        if not chunk:
            return
        self._parts.append(chunk)
        self.ends_line = chunk.endswith(b"\n")
        self._size += len(chunk)
        if self._size > self._limit:
            raise FrameTooLarge(f"a frame is over the limit of {self._limit} bytes")

    def take(self) -> bytes:
        whole = b"".join(self._parts)
        self._parts.clear()
        self._size = 0
        self.ends_line = False
        return whole


class SSEDecoder:
    """`text/event-stream`: lines end with LF, CR or CRLF and with nothing else."""

    def __init__(self, limit: int = DEFAULT_LIMIT_BYTES) -> None:
        self._limit = limit
        self._rest = _Buffer(limit)
        self._begun = False
        self._head = b""
        self._after_cr = False

    def feed(self, chunk: bytes) -> list[ServerSentEvent]:
        if not self._begun:
            chunk = self._without_bom(chunk)
        chunk = self._with_lf(chunk)
        if b"\n\n" not in chunk and not (self._rest.ends_line and chunk.startswith(b"\n")):
            self._rest.add(chunk)
            return []
        *blocks, rest = (self._rest.take() + chunk).split(b"\n\n")
        frames = [frame for block in blocks if (frame := self._parse(block)) is not None]
        self._rest.add(rest)
        return frames

    def end(self) -> list[ServerSentEvent]:
        self._rest.take()
        return []

    def _without_bom(self, chunk: bytes) -> bytes:
        chunk = self._head + chunk
        if len(chunk) < len(_BOM) and _BOM.startswith(chunk):
            self._head = chunk
            return b""
        self._begun, self._head = True, b""
        return chunk.removeprefix(_BOM)

    def _with_lf(self, chunk: bytes) -> bytes:
        if self._after_cr and chunk:
            self._after_cr = False
            chunk = chunk.removeprefix(b"\n")
        if b"\r" in chunk:
            self._after_cr = chunk.endswith(b"\r")
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        return chunk

    def _parse(self, block: bytes) -> ServerSentEvent | None:
        if len(block) > self._limit:
            raise FrameTooLarge(f"a frame is over the limit of {self._limit} bytes")
        if block.startswith(b"data: ") and b"\n" not in block:
            return ServerSentEvent(block[6:])
        data: list[bytes] = []
        event, event_id, retry = "", None, None
        for line in block.split(b"\n"):
            field, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if field == b"data":
                data.append(value)
            elif field == b"event":
                event = value.decode("utf-8", "replace")
            elif field == b"id" and b"\0" not in value:
                event_id = value.decode("utf-8", "replace")
            elif field == b"retry" and value.isdigit() and len(value) < 10:
                retry = int(value)
        if not data and event_id is None and retry is None:
            return None
        if not data:
            return ServerSentEvent(b"", "", event_id, retry)
        return ServerSentEvent(b"\n".join(data), event, event_id, retry)


class LineDecoder:
    """NDJSON: a frame a line; blank lines are passed over, an unfinished last line counts."""

    def __init__(self, limit: int = DEFAULT_LIMIT_BYTES) -> None:
        self._rest = _Buffer(limit)

    def feed(self, chunk: bytes) -> list[ServerSentEvent]:
        if b"\n" not in chunk:
            self._rest.add(chunk)
            return []
        *lines, rest = (self._rest.take() + chunk).split(b"\n")
        self._rest.add(rest)
        return [ServerSentEvent(line) for raw in lines if (line := raw.strip(b" \t\r"))]

    def end(self) -> list[ServerSentEvent]:
        line = self._rest.take().strip(b" \t\r")
        return [ServerSentEvent(line)] if line else []


class BodyDecoder:
    """A body that is one frame as a whole, such as one JSON answer."""

    def __init__(self, limit: int = DEFAULT_LIMIT_BYTES) -> None:
        self._body = _Buffer(limit)

    def feed(self, chunk: bytes) -> list[ServerSentEvent]:
        self._body.add(chunk)
        return []

    def end(self) -> list[ServerSentEvent]:
        body = self._body.take().strip()
        return [ServerSentEvent(body)] if body else []


class _DecoderType(Protocol):
    def __call__(self, limit: int = ...) -> FrameDecoder: ...


FRAMINGS: dict[str, _DecoderType] = {"sse": SSEDecoder, "ndjson": LineDecoder, "json": BodyDecoder}


def to_bytes(frame: ServerSentEvent) -> bytes:
    """The frame as it goes out, ended by its blank line; `data` may hold LF but no CR."""
    lines = []
    if frame.id is not None:
        lines.append(b"id: " + frame.id.encode())
    if frame.event:
        lines.append(b"event: " + frame.event.encode())
    if frame.retry is not None:
        lines.append(b"retry: %d" % frame.retry)
    lines.extend(b"data: " + line for line in frame.data.split(b"\n"))
    return b"\n".join(lines) + b"\n\n"


def comment(text: str = "") -> bytes:
    """A comment, which every conforming reader ignores: keeps an idle connection alive."""
    return b": " + text.encode() + b"\n\n" if text else b":\n\n"
