"""One connection watching a run: a cursor into a window, and no queue of its own."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Protocol

from gateway.dialects.base import Encoded
from gateway.encoder import Encoder
from gateway.window import EncodedView, Track, View, Window
from shared import cursor
from shared.cursor import Cursor
from shared.errors import BffError, BrokerUnavailable
from shared.stream_log import Entry

FUTURE_PATIENCE = 3.0
"""Seconds for which a cursor ahead of the stream may be one that its worker is writing again."""

BATCH_BYTES = 256 << 10
"""Frames given at a time."""


class StreamGone(BffError):
    """There is no such stream, or no longer."""


@dataclass(frozen=True)
class Position:
    """Where a client is: behind the event at `cursor`, or behind its frame number `frame`.

    None as a cursor: it sent something that is none.
    """

    cursor: Cursor | None
    frame: int | None = None


class Source(Protocol):
    """What a subscriber asks of the hub."""

    async def shared_view(self, window: Window, track: Track, view: View) -> EncodedView: ...

    async def read(self, window: Window, after: Cursor) -> list[Entry]: ...

    async def look(self, window: Window) -> None: ...


class Subscriber:
    """Gives the frames of one view in order, from a position on, to the end."""

    def __init__(self, source: Source, window: Window, view: View) -> None:
        self._source = source
        self._window = window
        self._view = view
        self._track = window.track
        self._shared: EncodedView | None = None
        self._at = 0
        self._skip = 0
        self._reset: str | None = None
        self._ended = False
        self._replay: _Replay | None = None
        self.resumed_from = "earliest"
        """For `Stream-Resumed-From`: the id before the first entry sent, or `earliest`."""
        self.ended_before = False
        """The position is at the terminal event: nothing is left to send (204)."""
        self.left = False
        """The client has gone by itself or had its whole answer; set by whoever serves it. One that is
        cut off by this gateway may be coming back."""

    async def place(self, position: Position | None) -> None:
        """Go to where the client is."""
        if position is not None:
            await self._resume(position)
        self._shared = await self._source.shared_view(self._window, self._track, self._view)

    async def next(self) -> Encoded:
        """What is new: at least one frame, or an end. Waits for it; may be cancelled without loss.

        Raises StreamGone when the stream is no longer there, BrokerError when it cannot be read.
        """
        while True:
            if self._ended:
                return Encoded(ends=True)
            if self._window.let_go_of:
                raise BrokerUnavailable("Redis has been out for too long to keep a connection waiting")
            if self._reset is not None:
                return self._tell_reset(self._reset)
            if self._track.next is not None:
                await self._turn(self._track.next)
            elif (encoded := await self._take()) is not None:
                return encoded
            elif self._at >= self._frames.end and self._track.next is None:
                await self._window.changed()

    def release(self) -> None:
        """Give up the view; it is forgotten with its last user."""
        if self._shared is None:
            return
        self._shared.users -= 1
        if self._shared.users == 0 and self._track.views.get(self._view.key) is self._shared:
            del self._track.views[self._view.key]
        self._shared = None

    @property
    def _frames(self) -> EncodedView:
        assert self._shared is not None
        return self._shared

    async def _resume(self, position: Position) -> None:
        at = position.cursor
        if at == cursor.GONE:
            self.ended_before = True
            return
        if at is not None and self._ahead(at):
            await self._wait_for(at)
        self._track = track = self._window.track
        if at is None or self._ahead(at) or (at.attempt == 0 and track.ordinal(at) >= self._heads):
            self._reset = "cursor"
            self._at = self._heads if track.attempt else 0
        elif at.attempt in (0, track.attempt):
            self._at = track.ordinal(at) + 1
            if position.frame is not None:
                self._at -= 1
                self._skip = position.frame + 1
            self.ended_before = track.ended and at == track.last and position.frame is None
        else:
            self._at = track.head
            self._reset = "attempt" if at.seq >= 1 else None
        if self._at > 0:
            self.resumed_from = str(track.cursor(self._at - 1))

    @property
    def _heads(self) -> int:
        """How many entries of the track stand before any attempt."""
        return self._track.head if self._track.attempt else self._track.end

    def _ahead(self, at: Cursor) -> bool:
        return at > self._window.track.last

    async def _wait_for(self, at: Cursor) -> None:
        deadline = time.monotonic() + FUTURE_PATIENCE
        while self._ahead(at) and not self._window.ended and time.monotonic() < deadline:
            await self._source.look(self._window)
            try:
                async with asyncio.timeout(0.1):
                    await self._window.changed()
            except TimeoutError:
                continue

    def _tell_reset(self, reason: str) -> Encoded:
        self._reset = None
        encoded = self._frames.encoder.dialect.reset(reason)
        self._ended = encoded.ends or encoded.aborts
        return encoded

    async def _turn(self, track: Track) -> None:
        """Go over to the track that took this one's place; nothing is changed before the last await."""
        shared = await self._source.shared_view(self._window, track, self._view)
        if self._shown():
            self._reset = self._track.reason
        self.release()
        self._track, self._shared = track, shared
        self._replay = None
        self._skip = 0
        self._at = min(self._at, self._heads)

    def _shown(self) -> bool:
        """Whether the client holds something of this track that a reset would void.

        Decided by the cursor alone where there is one, by what was visible elsewhere.
        """
        if self._frames.encoder.dialect.resumable:
            return self._at > 0 and self._track.attempt > 0 and self._at - self._track.head >= 2
        first = self._track.first_visible
        return first is not None and self._at > first

    async def _take(self) -> Encoded | None:
        """The frames from here to the end of what is known, or a part of them."""
        if self._at < self._frames.first:
            return await self._take_replayed()
        self._replay = None
        start = self._at - self._frames.first
        return self._gather(self._frames.frames[start : start + 4096])

    async def _take_replayed(self) -> Encoded | None:
        """The same from the stream, at this client's own pace, as the window has moved on."""
        if self._replay is None:
            self._replay = _Replay(Encoder(self._window.run, self._view.make()))
        page = await self._source.read(self._window, self._replay.after)
        if not page:
            raise StreamGone
        return self._gather(self._replay.encode(page, self._track.attempt, self._at))

    def _gather(self, encoded: list[Encoded]) -> Encoded | None:
        frames: list[bytes] = []
        size = 0
        for one in encoded:
            new = one.frames[self._skip :] if self._skip else one.frames
            self._skip = 0
            self._at += 1
            frames.extend(new)
            if one.ends or one.aborts:
                self._ended = True
                return Encoded(frames, one.ends, one.aborts, one.failure)
            size += sum(map(len, new))
            if size > BATCH_BYTES and self._replay is None:
                break
        return Encoded(frames) if frames else None


class _Replay:
    """An encoder of one client's own, fed from the start of the stream."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._ordinal = 0
        self.after = cursor.START

    def encode(self, page: list[Entry], attempt: int, wanted: int) -> list[Encoded]:
        """The frames of the page's entries of this attempt, from ordinal `wanted` on."""
        encoded = []
        for entry in page:
            self.after = entry.cursor
            if entry.cursor.attempt in (0, attempt):
                one = self._encoder.encode(entry)
                if self._ordinal >= wanted:
                    encoded.append(one)
                self._ordinal += 1
        return encoded
