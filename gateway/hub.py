"""The fan-out inside one gateway process.

One subscribing connection for all watched runs, one window of recent events for each, one encoder
for each view of a run, and a cursor for each subscriber: a slow client costs no memory and slows
nobody. The stream is the truth; the channel only says sooner what it holds, so whatever is not the
next event is read from the stream until the window is whole again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from gateway.encoder import Encoder
from gateway.permanent import permanent
from gateway.subscriber import Position, StreamGone, Subscriber
from gateway.window import EncodedView, Limits, Track, View, Window
from shared import cursor, keys
from shared.broker import Broker
from shared.cursor import Cursor
from shared.errors import BrokerError, BrokerUnavailable, RequestError
from shared.stream_log import Entry, Log, parse_published
from shared.subscription import Subscription

__all__ = ["Hub", "Position", "StreamGone", "Subscriber", "View"]

log = logging.getLogger(__name__)

PAGE = 512
"""Entries read from a stream at a time."""

SILENT_CHECK = 1.5
"""Seconds without an event after which a run's stream is looked at."""

HOLE_PATIENCE = 3.0
"""Seconds for which a hole may be one that its worker is filling."""

OUT_PATIENCE = 60.0
"""Seconds without Redis after which viewers are let go; they come back by themselves."""

CUT_COUNTS = 15.0
"""Seconds for which a viewer that this gateway cut off counts as one that comes back."""

_SIGN_OF_VIEWERS_EVERY = 5.0
_TICK = 0.5


@dataclass
class _Watched:
    """A window with what the hub has under way for it."""

    window: Window
    opened: asyncio.Task[None] | None = None
    filling: asyncio.Task[None] | None = None
    again: bool = False
    signed_at: float = field(default=0.0)


class Hub:
    """Windows of the runs that clients of this process watch."""

    def __init__(
        self,
        log_: Log,
        broker: Broker,
        gateway: str,
        *,
        redis_timeout: float,
        window_bytes: int,
        window_events: int = 256,
        window_total_bytes: int = 256 << 20,
        max_viewers: int = 1000,
    ) -> None:
        """`gateway` is this process' name among the viewers of a run; `max_viewers` are for each run.

        Beyond `window_total_bytes` over all runs the largest windows are trimmed to an equal share.
        """
        self._log = log_
        self._gateway = gateway
        self._limits = Limits(window_bytes, window_events)
        self._total_bytes = window_total_bytes
        self._max_viewers = max_viewers
        self._timeout = redis_timeout
        self._watched: dict[str, _Watched] = {}
        self._subscription = Subscription(broker, self._on_message, self._on_connected, sharded=True)
        self._tasks: set[asyncio.Task[None]] = set()
        self._stack = AsyncExitStack()
        self.draining = False
        """A gateway that shuts down does not say that its viewers left: they are coming back elsewhere."""

    async def __aenter__(self) -> Hub:
        await self._stack.enter_async_context(permanent("the subscription", self._subscription.run))
        await self._stack.enter_async_context(permanent("the hub's clock", self._tick_for_ever))
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()
        for task in list(self._tasks):
            await _cancelled(task)

    @asynccontextmanager
    async def subscribe(self, run: str, view: View, position: Position | None) -> AsyncIterator[Subscriber]:
        """Watch a run from `position` (None: from its start).

        Raises RequestError when there are too many viewers, StreamGone when there is no such stream,
        BrokerError when Redis cannot be asked.
        """
        self._check_room(run)
        watched = self._watched.get(run)
        if watched is None:
            watched = self._watched[run] = _Watched(Window(run, self._limits))
            watched.opened = self._spawn(self._open(watched))
        window = watched.window
        window.viewers += 1
        try:
            if watched.opened is not None:
                await asyncio.shield(watched.opened)
            subscriber = Subscriber(self, window, view)
            await subscriber.place(position)
            try:
                yield subscriber
            finally:
                subscriber.release()
                if not subscriber.left:
                    window.cut_at = time.monotonic()
        finally:
            window.viewers -= 1
            if window.viewers == 0 and self._watched.get(run) is watched:
                del self._watched[run]
                self._spawn(self._close(watched))

    def viewers(self, run: str) -> int:
        """How many connections of this process watch the run."""
        watched = self._watched.get(run)
        return watched.window.viewers if watched else 0

    @property
    def streams(self) -> int:
        """How many connections of this process watch any run."""
        return sum(watched.window.viewers for watched in self._watched.values())

    def _check_room(self, run: str) -> None:
        if self.viewers(run) >= self._max_viewers:
            raise RequestError(
                429,
                "too_many_viewers",
                f"this run has {self._max_viewers} viewers at this gateway, which is the limit",
                retry_after=2,
            )

    async def shared_view(self, window: Window, track: Track, view: View) -> EncodedView:
        """The frames of a track in a view, encoded once for all who see it so."""
        shared = track.views.get(view.key)
        if shared is None:
            fresh = EncodedView(Encoder(window.run, view.make()))
            await self._prime(window, track, fresh)
            shared = track.views.setdefault(view.key, fresh)
        shared.users += 1
        return shared

    async def read(self, window: Window, after: Cursor) -> list[Entry]:
        """A page of the stream behind `after`."""
        return await self._log.read(window.run, after, PAGE)

    async def look(self, window: Window) -> None:
        """Read what the stream holds behind the window."""
        watched = self._watched.get(window.run)
        if watched is not None:
            await asyncio.shield(self._fill_soon(watched))

    async def _prime(self, window: Window, track: Track, fresh: EncodedView) -> None:
        """Feed an encoder from the start of its track: from the stream as far as the window forgot it."""
        fed, after = 0, cursor.START
        while fed < track.base:
            page = await self.read(window, after)
            if not page:
                raise StreamGone
            for entry in page:
                after = entry.cursor
                if entry.cursor.attempt in (0, track.attempt) and fed < track.base:
                    fresh.encoder.encode(entry)
                    fed += 1
        fresh.first = track.base
        for entry in track.entries:
            fresh.feed(entry)

    async def _open(self, watched: _Watched) -> None:
        """Follow the run's channel, then read its stream: nothing can fall between."""
        window = watched.window
        await self._subscription.add(keys.channel(window.run), self._timeout)
        watched.again = True
        while watched.again:
            watched.again = False
            await self._read_all(window)
        if window.track.last == cursor.START:
            raise StreamGone
        watched.opened = None
        if window.viewers and not window.ended:
            watched.signed_at = time.monotonic()
            self._spawn(self._sign([window.run]))

    async def _close(self, watched: _Watched) -> None:
        window = watched.window
        try:
            if window.run not in self._watched:
                await self._subscription.remove(keys.channel(window.run))
            coming_back = self.draining or time.monotonic() - window.cut_at < CUT_COUNTS
            if not (coming_back or window.ended or window.track.last == cursor.START):
                await self._log.leave(window.run, self._gateway)
        except BrokerError as error:
            log.info("could not say that viewers left: %s", error)

    async def _read_all(self, window: Window) -> bool:
        """Read behind the window until there is nothing more. False at a hole."""
        while not window.ended:
            page = await self.read(window, window.track.last)
            window.heard = time.monotonic()
            if not window.fill(page):
                return False
            if len(page) < PAGE:
                break
        return True

    def _fill_soon(self, watched: _Watched) -> asyncio.Task[None]:
        if watched.filling is None:
            watched.filling = self._spawn(self._fill(watched))
        else:
            watched.again = True
        return watched.filling

    async def _fill(self, watched: _Watched) -> None:
        """Make the window whole from the stream; a hole that stays is told with a reset."""
        window = watched.window
        deadline = time.monotonic() + HOLE_PATIENCE
        try:
            while True:
                watched.again = False
                whole = await self._read_all(window) and not await self._lost_entries(window)
                if whole and not watched.again:
                    return
                if not whole and time.monotonic() > deadline:
                    window.restart(await self._everything(window), "lost")
                    return
                if not whole:
                    await asyncio.sleep(0.1)
        except BrokerError as error:
            log.info("a stream could not be read, trying again: %s", error)
        except Exception:
            log.exception("run %s cannot be read; its viewers are told so", window.run)
            window.fail()
        finally:
            watched.filling = None

    async def _lost_entries(self, window: Window) -> bool:
        """Whether the stream lacks what was read from it: rolled back, deleted or expired.

        Also when something else, as an end, stands now where the last entry stood.
        """
        held = window.newest  # before the look: the channel may bring more meanwhile
        newest = (await self._log.last([window.run]))[0]
        if window.ended or held is None:
            return False
        return (
            newest is None or newest.cursor < held.cursor or (newest.cursor == held.cursor and newest != held)
        )

    async def _everything(self, window: Window) -> list[Entry]:
        entries: list[Entry] = []
        after = cursor.START
        while page := await self.read(window, after):
            entries += page
            after = page[-1].cursor
        return entries

    async def _tick_for_ever(self) -> None:
        out_since: float | None = None
        while True:
            await asyncio.sleep(_TICK)
            self._keep_within_total()
            try:
                await self._check_silent()
                await self._sign_viewers()
                out_since = None
            except BrokerUnavailable:
                out_since = out_since or time.monotonic()
            except BrokerError:
                log.exception("watched runs could not be checked")
            lost = out_since is not None and time.monotonic() - out_since > OUT_PATIENCE
            for watched in list(self._watched.values()):
                if lost:
                    watched.window.let_go()
                elif out_since is None:
                    watched.window.let_go_of = False

    def _keep_within_total(self) -> None:
        windows = [watched.window for watched in self._watched.values()]
        if sum(window.track.size for window in windows) > self._total_bytes:
            share = Limits(self._total_bytes // len(windows), self._limits.events)
            for window in windows:
                window.track.trim(share)

    async def _check_silent(self) -> None:
        now = time.monotonic()
        silent = [
            watched
            for watched in self._watched.values()
            if not watched.window.ended
            and watched.opened is None
            and watched.filling is None
            and now - watched.window.heard > SILENT_CHECK
        ]
        for watched, entry in zip(silent, await self._newest(silent), strict=True):
            watched.window.heard = time.monotonic()
            if entry is None or entry != watched.window.newest:
                self._fill_soon(watched)

    async def _newest(self, watched: list[_Watched]) -> Sequence[Entry | None]:
        try:
            return await self._log.last([one.window.run for one in watched])
        except BrokerError:
            raise
        except Exception:
            log.exception("one of the watched runs cannot be read; each is looked at by itself")
            return [None] * len(watched)

    async def _sign_viewers(self) -> None:
        now = time.monotonic()
        due = [
            watched
            for watched in self._watched.values()
            if not watched.window.ended
            and watched.opened is None
            and now - watched.signed_at > _SIGN_OF_VIEWERS_EVERY
        ]
        for watched in due:
            watched.signed_at = now
        await self._log.watch([watched.window.run for watched in due], self._gateway)

    async def _sign(self, runs: list[str]) -> None:
        try:
            await self._log.watch(runs, self._gateway)
        except BrokerError as error:
            log.info("could not say that a run is watched: %s", error)

    def _on_message(self, channel: str, payload: bytes) -> None:
        watched = self._watched.get(keys.run_of_channel(channel))
        if watched is None or self._taken(watched.window, payload):
            return
        if watched.opened is not None:
            watched.again = True
        else:
            self._fill_soon(watched)

    def _taken(self, window: Window, payload: bytes) -> bool:
        """Whether the window is whole with this; what cannot be taken is read from the stream."""
        window.heard = time.monotonic()
        try:
            return window.offer(parse_published(payload))
        except Exception:
            log.exception("run %s: its channel said what cannot be taken", window.run)
            return False

    def _on_connected(self) -> None:
        for watched in self._watched.values():
            if watched.opened is None and not watched.window.ended:
                self._fill_soon(watched)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, BrokerError | StreamGone):
            log.info("a run could not be watched: %s", error)
        elif error is not None:
            log.error("a run could not be watched", exc_info=error)


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
