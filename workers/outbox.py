"""What waits to be appended to one run's stream: merges, freezes, keeps until it is safe.

The first event goes at once; while an append is under way events wait, and adjacent deltas of one
block become one. An event gets its id and its final bytes when it is put into an append; from then
on the entry never changes, so that it can be sent again word for word.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from shared.cursor import Cursor
from shared.errors import AgentTooLarge
from shared.events import Event, ReasoningDelta, TextDelta, ToolDelta, dump
from shared.stream_log import Answer, Append, Claim, Entry, Reply

MERGED_CHARACTERS = 16 << 10
"""Deltas are merged up to this size."""

BATCH_ENTRIES = 256
BATCH_BYTES = 256 << 10
"""The most one append carries, beyond its last entry."""

WAITING_EVENTS = 1024
WAITING_BYTES = 1 << 20
"""When so much waits, the agent is read no further."""


class Left(Exception):
    """The run is not ours any more: stop, close the agent, write nothing. Carries the log's answer."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.value)
        self.answer = answer


class StorageFull(Exception):
    """Redis has had no memory for this run's events for too long."""


class Outbox:
    """Events of one attempt on their way to the stream. `wake` is called when there is work."""

    def __init__(self, claim: Claim, wake: Callable[[Outbox], None], *, limit_bytes: int) -> None:
        self.claim = claim
        self.full_since: float | None = None
        """Since when Redis has refused this run's events for want of memory."""
        self.sealed = False
        """Whether the terminal event has been written."""
        self._wake = wake
        self._limit_bytes = limit_bytes
        self._entries: list[Entry] = [claim.started]
        self._next = 1
        self._expected = claim.started.cursor
        self._waiting: deque[Event] = deque()
        self._waiting_bytes = 0
        self._total_bytes = 0
        self._visible = False
        self._told_visible = False
        self._changed = asyncio.Event()
        self._left: Exception | None = None

    @property
    def entries(self) -> list[Entry]:
        """Everything of this attempt that has an id, in order."""
        return self._entries

    @property
    def expected(self) -> Cursor:
        """The id that is last in the stream as far as we know."""
        return self._expected

    @property
    def visible(self) -> bool:
        """Whether anything a person sees was put in."""
        return self._visible

    @property
    def untouched(self) -> bool:
        """Whether nothing was put in."""
        return len(self._entries) == 1 and not self._waiting

    @property
    def idle(self) -> bool:
        """Whether everything put in is in the stream."""
        return not self._waiting and self._next >= len(self._entries)

    def put(self, event: Event) -> None:
        """Add an event. Raises AgentTooLarge beyond the stream's limit, and whatever `leave` was given."""
        self.check()
        if not self._merge(event):
            self._waiting.append(event)
        size = _size(event)
        self._waiting_bytes += size
        self._total_bytes += size
        self._visible = self._visible or event.visible
        if self._total_bytes > self._limit_bytes:
            raise AgentTooLarge(f"The answer is over the limit of {self._limit_bytes} bytes.")
        self._wake(self)

    async def room(self) -> None:
        """Wait while too much waits. Raises whatever `leave` was given."""
        while len(self._waiting) >= WAITING_EVENTS or self._waiting_bytes >= WAITING_BYTES:
            await self._change()

    async def flushed(self) -> None:
        """Wait until everything is in the stream. Raises whatever `leave` was given."""
        while not self.idle:
            self._wake(self)
            await self._change()

    def check(self) -> None:
        """Raises whatever `leave` was given."""
        if self._left is not None:
            raise self._left

    def leave(self, reason: Exception) -> None:
        """Nothing goes out any more; who puts or waits gets `reason`."""
        self._left = self._left or reason
        self._changed.set()

    def next_append(self) -> Append | None:
        """The next entries to send, frozen now if they were not; None when there is nothing to send."""
        if self._left is not None:
            return None
        batch = self._sent_before() or self._freeze()
        if not batch:
            return None
        claim = self.claim
        visible = self._visible and not self._told_visible
        return Append(claim.run, claim.token, claim.attempt, self._expected, batch, visible)

    def settle(self, append: Append, reply: Reply) -> None:
        """Take the log's answer to the append."""
        match reply.answer:
            case Answer.OK:
                self._told_visible = self._told_visible or append.visible
                self._go_on_after(append.entries[-1].cursor)
            case Answer.DUP | Answer.REWIND:
                self.go_to(reply.last)
            case _:
                self.leave(Left(reply.answer))
        self._changed.set()

    def go_to(self, last: Cursor) -> None:
        """The stream ends at `last`: go on behind it, sending again what Redis lost."""
        self._told_visible = False
        if last.attempt == self.claim.attempt:
            if last.seq >= len(self._entries):
                self.leave(Left(Answer.FENCED))
            else:
                self._go_on_after(last)
        else:
            self._next, self._expected = 0, last
        self._wake(self)

    def restored(self, last: Cursor) -> None:
        """Everything up to `last` has been written again."""
        self._go_on_after(last)
        self._changed.set()

    def seal(self, end: Cursor) -> None:
        """The terminal event stands at `end`, behind everything."""
        self.sealed = True
        self._go_on_after(end)

    def _go_on_after(self, last: Cursor) -> None:
        self._next, self._expected = last.seq + 1, last
        self.full_since = None

    def _sent_before(self) -> list[Entry]:
        """The next entries that are not known to be in the stream."""
        batch: list[Entry] = []
        size = 0
        for entry in self._entries[self._next : self._next + BATCH_ENTRIES]:
            if size >= BATCH_BYTES:
                break
            batch.append(entry)
            size += entry.size
        return batch

    def _freeze(self) -> list[Entry]:
        batch: list[Entry] = []
        size = 0
        while self._waiting and len(batch) < BATCH_ENTRIES and size < BATCH_BYTES:
            event = self._waiting.popleft()
            entry = Entry(Cursor(self.claim.attempt, len(self._entries)), event.type, dump(event))
            self._entries.append(entry)
            batch.append(entry)
            size += entry.size
        self._waiting_bytes = sum(map(_size, self._waiting)) if self._waiting else 0
        return batch

    def _merge(self, event: Event) -> bool:
        if not self._waiting:
            return False
        before = self._waiting[-1]
        merged: Event
        match before, event:
            case TextDelta(), TextDelta() if (before.block, before.choice, before.refusal) == (
                event.block,
                event.choice,
                event.refusal,
            ) and _fits(before.text, event.text):
                merged = TextDelta(
                    block=event.block,
                    text=before.text + event.text,
                    choice=event.choice,
                    refusal=event.refusal,
                )
            case ReasoningDelta(), ReasoningDelta() if before.block == event.block and _fits(
                before.text, event.text
            ):
                merged = ReasoningDelta(block=event.block, text=before.text + event.text)
            case ToolDelta(), ToolDelta() if before.call == event.call and _fits(before.text, event.text):
                merged = ToolDelta(call=event.call, text=before.text + event.text)
            case _:
                return False
        self._waiting[-1] = merged
        return True

    async def _change(self) -> None:
        self.check()
        self._changed.clear()
        await self._changed.wait()
        self.check()


def _fits(before: str, text: str) -> bool:
    return len(before) + len(text) <= MERGED_CHARACTERS


def _size(event: Event) -> int:
    """About the bytes an event takes; exact sizes would cost an encoding."""
    if isinstance(event, TextDelta | ReasoningDelta | ToolDelta):
        return len(event.text) + 64
    return len(dump(event)) + 32
