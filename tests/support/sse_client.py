"""A strict client of the native SSE stream: any breach of the guarantees is a ProtocolBreach.

It has a parser of its own, stricter than browsers', so that no error of ours can cancel out. What it holds
the server to stands in `docs/protocol.md`: ids dense and rising, a reset before a new attempt takes over
shown content, exactly one terminal event, then silence.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

_ID = re.compile(r"(0|[1-9][0-9]*)-(0|[1-9][0-9]*)")
_TERMINALS = ("run.completed", "run.failed", "run.stopped")
_GONE = (2**64 - 1, 0)


class ProtocolBreach(AssertionError):
    """The server said something that it never may."""


@dataclass(frozen=True)
class Frame:
    """One event as it came; `id` is None where the frame had none."""

    event: str
    data: dict[str, Any]
    id: str | None = None


class StrictParser:
    """Bytes to frames. Lines end with LF alone; a field that is not known, or comes twice, is a breach."""

    def __init__(self) -> None:
        self._rest = b""
        self.comments = 0
        self.retry: int | None = None

    def feed(self, chunk: bytes) -> list[Frame]:
        *blocks, self._rest = (self._rest + chunk).split(b"\n\n")
        return [frame for block in blocks if (frame := self._parse(block)) is not None]

    def _parse(self, block: bytes) -> Frame | None:
        fields: dict[str, str] = {}
        for line in block.decode("utf-8").split("\n"):
            if "\r" in line:
                raise ProtocolBreach(f"CR in {line!r}")
            if line.startswith(":"):
                self.comments += 1
                continue
            name, colon, value = line.partition(": ")
            if not colon or name not in ("id", "event", "data", "retry") or name in fields:
                raise ProtocolBreach(f"not a line of ours: {line!r}")
            fields[name] = value
        if "retry" in fields:
            self.retry = int(fields["retry"])
        if "data" not in fields:
            return None
        data = json.loads(fields["data"])
        if fields.get("event", data.get("type")) != data.get("type"):
            raise ProtocolBreach(f"event {fields['event']!r} is not the type in {data!r}")
        return Frame(data["type"], data, fields.get("id"))


@dataclass
class Viewer:
    """Somebody who watches one run over any number of connections, and believes nothing."""

    frames: list[Frame] = field(default_factory=list)
    cursor: str | None = None
    text: str = ""
    """What is shown: collected since the last reset."""
    reasoning: str = ""
    resets: list[str] = field(default_factory=list)
    terminal: Frame | None = None
    comments: int = 0
    bytes_read: int = 0
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    _reset_pending: bool = False

    @property
    def types(self) -> list[str]:
        return [frame.event for frame in self.frames]

    @property
    def data(self) -> dict[str, Any]:
        """Structured output by name, since the last reset."""
        return {frame.data["name"]: frame.data["value"] for frame in self._shown() if frame.event == "data"}

    def see(self, frame: Frame) -> None:
        """Take one frame. Raises ProtocolBreach."""
        if self.terminal is not None:
            raise ProtocolBreach(f"{frame} after the terminal {self.terminal}")
        self.frames.append(frame)
        if frame.event == "reset":
            self._see_reset(frame)
            return
        self._move(frame)
        match frame.event:
            case "text.delta" if not frame.data.get("choice"):
                self.text += frame.data["text"]
            case "text.replace":
                self.text = frame.data["text"]
            case "reasoning.delta":
                self.reasoning += frame.data["text"]
            case event if event in _TERMINALS:
                self.terminal = frame

    async def watch(
        self,
        client: httpx.AsyncClient,
        url: str,
        *,
        method: str = "GET",
        stop_after: int | None = None,
        until: str | None = None,
        json: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """One connection, resumed from the cursor if there is one, read to its end.

        It is left after `stop_after` bytes, or behind the first event of type `until`. A status that is
        not 200 is noted in `status` and nothing is read.
        """
        sent = {"accept": "text/event-stream", **(headers or {})}
        if self.cursor is not None:
            sent["last-event-id"] = self.cursor
        parser = StrictParser()
        async with client.stream(method, url, json=json, headers=sent) as response:
            self.status, self.headers = response.status_code, dict(response.headers)
            if self.status != 200:
                await response.aread()
                return
            try:
                await self._read(response, parser, stop_after, until)
            finally:
                self.comments += parser.comments

    async def watch_to_end(
        self, client: httpx.AsyncClient, url: str, *, connections: int = 20, **options: Any
    ) -> None:
        """Connect again and again until the terminal event. Raises ProtocolBreach when it never comes."""
        for _ in range(connections):
            try:
                await self.watch(client, url, **options)
            except httpx.TransportError:
                continue
            if self.terminal is not None or self.status in (204, 404, 410):
                return
        raise ProtocolBreach(f"no terminal event over {connections} connections; seen {self.types}")

    async def _read(
        self, response: httpx.Response, parser: StrictParser, room: int | None, until: str | None
    ) -> None:
        async for chunk in response.aiter_raw():
            piece = chunk if room is None else chunk[:room]
            self.bytes_read += len(piece)
            for frame in parser.feed(piece):
                self.see(frame)
                if frame.event == until:
                    return
            if room is not None:
                room -= len(piece)
                if room <= 0:
                    return

    def _see_reset(self, frame: Frame) -> None:
        if frame.id is not None:
            raise ProtocolBreach("a reset has no id")
        self.resets.append(frame.data["reason"])
        self.text = self.reasoning = ""
        self._reset_pending = True

    def _move(self, frame: Frame) -> None:
        """Check that `frame` may follow the cursor, and go there."""
        match = _ID.fullmatch(frame.id or "")
        if match is None:
            raise ProtocolBreach(f"no id, or a malformed one: {frame}")
        attempt, seq = int(match[1]), int(match[2])
        if self._reset_pending:
            allowed = seq == 0 or (attempt, seq) == (0, 1)
        elif self.cursor is None:
            allowed = (attempt, seq) in ((0, 1), _GONE)
        else:
            last_attempt, last_seq = map(int, self.cursor.split("-"))
            if attempt == last_attempt:
                allowed = seq == last_seq + 1
            else:
                silent = last_attempt == 0 or last_seq == 0
                allowed = attempt > last_attempt and seq == 0 and silent
        if not allowed:
            raise ProtocolBreach(f"{frame.id} ({frame.event}) may not follow {self.cursor}")
        self.cursor = frame.id
        self._reset_pending = False

    def _shown(self) -> list[Frame]:
        last = max((at for at, frame in enumerate(self.frames) if frame.event == "reset"), default=-1)
        return self.frames[last + 1 :]
