"""What one gateway process keeps of a run that its clients watch: state only, no I/O.

A track is one attempt as a reader sees it: the entries before any attempt (`0-x`), then those of
the attempt. Each entry has an ordinal in its track, counted from 0. Views of a track are encoded
once, as entries come in, and shared by all subscribers that see the run in the same way.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gateway.dialects.base import Encoded, FrontendDialect
from gateway.encoder import Encoder
from gateway.last_words import gone_entry, internal_entry
from shared import cursor
from shared.cursor import Cursor
from shared.events import RunStarted
from shared.stream_log import Entry


@dataclass(frozen=True)
class Limits:
    """How much of a run is kept: bytes and entries."""

    size: int
    events: int


@dataclass(frozen=True)
class View:
    """One way to see a run: the dialect with its options. Equal keys share frames."""

    key: tuple[str, ...]
    make: Callable[[], FrontendDialect]


class EncodedView:
    """The frames of a track in one view. `first` is the ordinal of the first one kept."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.first = 0
        self.frames: list[Encoded] = []
        self.users = 0

    @property
    def end(self) -> int:
        """The ordinal of the next entry to encode."""
        return self.first + len(self.frames)

    def feed(self, entry: Entry) -> None:
        """Encode the next entry."""
        self.frames.append(self.encoder.encode(entry))

    def forget(self, before: int) -> None:
        """Keep nothing of ordinals below `before`."""
        drop = min(before - self.first, len(self.frames))
        if drop > 0:
            del self.frames[:drop]
            self.first += drop


class Track:
    """One attempt's entries, the recent ones of them, and the views made of them."""

    def __init__(self) -> None:
        self.head = 0
        """How many entries stand before the attempt's first one."""
        self.attempt = 0
        self.base = 0
        self.entries: list[Entry] = []
        self.size = 0
        self.last = cursor.START
        self.ended = False
        self.first_visible: int | None = None
        """The ordinal of the first entry that a person sees."""
        self.views: dict[tuple[str, ...], EncodedView] = {}
        self.next: Track | None = None
        self.reason = ""
        """Why `next` took its place: attempt, lost or cursor."""

    @property
    def end(self) -> int:
        """The ordinal of the next entry."""
        return self.base + len(self.entries)

    def ordinal(self, at: Cursor) -> int:
        """The ordinal of the entry at `at`, which is of this attempt or before any."""
        return at.seq - 1 if at.attempt == 0 else self.head + at.seq

    def cursor(self, ordinal: int) -> Cursor:
        """The other way."""
        if self.attempt == 0 or ordinal < self.head:
            return Cursor(0, ordinal + 1)
        return Cursor(self.attempt, ordinal - self.head)

    def push(self, entry: Entry) -> None:
        """Add the next entry and encode it for every view."""
        if entry.cursor.attempt != self.attempt:
            self.attempt = entry.cursor.attempt
            self.head = self.end
        if self.first_visible is None and entry.visible:
            self.first_visible = self.end
        self.entries.append(entry)
        self.size += entry.size
        self.last = entry.cursor
        self.ended = entry.terminal
        for view in self.views.values():
            view.feed(entry)

    def exceeds(self, limits: Limits) -> bool:
        """Whether more is kept than `limits` allow."""
        return self.size > limits.size or len(self.entries) > limits.events

    def trim(self, limits: Limits) -> None:
        """When more is kept than `limits` allow, forget the oldest, down to half of them; never the last."""
        if not self.exceeds(limits):
            return
        drop, most = 0, len(self.entries) - 1
        while drop < most and (self.size > limits.size // 2 or len(self.entries) - drop > limits.events // 2):
            self.size -= self.entries[drop].size
            drop += 1
        del self.entries[:drop]
        self.base += drop
        for view in self.views.values():
            view.forget(self.base)

    def heads(self) -> Track:
        """A new track that begins with the same entries before any attempt."""
        track = Track()
        for entry in self.entries[: self.head - self.base] if self.base == 0 else ():
            track.push(entry)
        if self.base:
            track.base = track.head = self.head
        return track


class Window:
    """The newest track of a run, and who waits for it to go on.

    There is one way in: an entry whose id is the next one. Everything else is a hole, which the hub
    fills from the stream.
    """

    def __init__(self, run: str, limits: Limits) -> None:
        self.run = run
        self.track = Track()
        self.limits = limits
        self.viewers = 0
        self.heard = 0.0
        self.cut_at = -math.inf
        """When a viewer was last cut off by this gateway, which is no reason to think that it has left."""
        self.let_go_of = False
        """Redis has been out for so long that viewers shall come back later."""
        self._waiters: set[asyncio.Future[None]] = set()

    @property
    def ended(self) -> bool:
        """Whether the terminal entry is in."""
        return self.track.ended

    @property
    def newest(self) -> Entry | None:
        """The last entry."""
        return self.track.entries[-1] if self.track.entries else None

    def offer(self, entries: Sequence[Entry]) -> bool:
        """Take what a channel said. False when the stream has to be read instead."""
        for entry in entries:
            if entry.cursor <= self.track.last or self.ended:
                continue
            if not self._follows(entry):
                return False
            self._take(entry)
        self._settle()
        return True

    def fill(self, entries: Sequence[Entry]) -> bool:
        """Take what the stream holds behind the last entry. False at a hole."""
        whole = True
        for entry in entries:
            if entry.cursor <= self.track.last or self.ended:
                continue
            if not self.track.last.leads_to(entry.cursor):
                whole = False
                break
            self._take(entry)
        self._settle()
        return whole

    def restart(self, entries: Sequence[Entry], reason: str) -> None:
        """Begin again from what the stream holds now, as far as it is whole; without any, it is gone."""
        self._begin(_newest_whole(entries) or [gone_entry()], reason)

    def fail(self) -> None:
        """End every connection: this run cannot be told."""
        self._begin([internal_entry()], "lost")

    def let_go(self) -> None:
        """End every connection without a terminal event: nobody knows how the run stands."""
        self.let_go_of = True
        self.wake()

    def wake(self) -> None:
        """Let everybody who waits look again."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    async def changed(self) -> None:
        """Wait until `wake`."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)

    def _follows(self, entry: Entry) -> bool:
        last = self.track.last
        if entry.cursor == last.next():
            return True
        event = entry.event
        return isinstance(event, RunStarted) and entry.cursor.seq == 0 and event.prev == str(last)

    def _take(self, entry: Entry) -> None:
        if entry.cursor.attempt != self.track.attempt and self.track.attempt:
            self._succeed(self.track.heads(), "attempt")
        self.track.push(entry)

    def _begin(self, entries: Sequence[Entry], reason: str) -> None:
        track = Track()
        for entry in entries:
            track.push(entry)
        self._succeed(track, reason)
        self._settle()

    def _succeed(self, track: Track, reason: str) -> None:
        old, self.track = self.track, track
        old.next, old.reason = track, reason

    def _settle(self) -> None:
        self.wake()
        if self.track.exceeds(self.limits):  # trimmed when all who waited have taken what is new
            asyncio.get_running_loop().call_soon(self._trim)

    def _trim(self) -> None:
        self.track.trim(self.limits)


def _newest_whole(entries: Sequence[Entry]) -> list[Entry]:
    """What stands before any attempt, and the newest attempt that is whole from its first entry."""
    heads: list[Entry] = []
    attempt: list[Entry] = []
    broken = False
    for entry in entries:
        if entry.cursor.attempt == 0:
            if entry.cursor == (heads[-1].cursor if heads else cursor.START).next():
                heads.append(entry)
        elif entry.cursor.seq == 0:
            attempt, broken = [entry], False
        elif attempt and entry.cursor == attempt[-1].cursor.next():
            attempt.append(entry)
        else:
            attempt, broken = [], True
    return [] if broken else heads + attempt
