"""What waits to be appended: merged until it has an id, the same for ever after."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.cursor import START, Cursor
from shared.errors import AgentTooLarge
from shared.events import Data, Event, ReasoningDelta, RunAccepted, TextDelta, TextEnd, TextStart, ToolDelta
from shared.memory_log import MemoryLog
from shared.stream_log import Answer, Append, Claim, Entry, NewRun, Reply
from workers.outbox import BATCH_BYTES, BATCH_ENTRIES, MERGED_CHARACTERS, WAITING_EVENTS, Left, Outbox

MINUTE_MS = 60_000


def new_run() -> NewRun:
    return NewRun(
        run="r",
        tenant="t",
        agent="writer",
        body_hash="hash",
        accepted=RunAccepted(run="r", agent="writer"),
        queued=None,
        request=b"{}",
        queue_ms=MINUTE_MS,
        run_ms=MINUTE_MS,
        retention_ms=MINUTE_MS,
        meta={"on_interrupt": "fail", "repeatable": "1"},
    )


async def claimed(log: MemoryLog) -> Claim:
    claim = await log.claim("r", "owner")
    assert isinstance(claim, Claim)
    return claim


@pytest.fixture
async def log() -> MemoryLog:
    log = MemoryLog()
    await log.create(new_run())
    return log


@pytest.fixture
async def outbox(log: MemoryLog) -> Outbox:
    return Outbox(await claimed(log), lambda _: None, limit_bytes=1 << 26)


def text(value: str, block: str = "t", **fields: Any) -> TextDelta:
    return TextDelta(block=block, text=value, **fields)


def sent(outbox: Outbox) -> Append:
    append = outbox.next_append()
    assert append is not None
    return append


def events(append: Append) -> list[Event | None]:
    return [entry.event for entry in append.entries]


async def carried_out(log: MemoryLog, append: Append) -> Reply:
    """What the log says to it."""
    reply = (await log.append([append]))[0]
    assert isinstance(reply, Reply)
    return reply


async def flush(log: MemoryLog, outbox: Outbox) -> None:
    """Append until nothing waits, as the writer does."""
    while (append := outbox.next_append()) is not None:
        await take(log, outbox, append, await carried_out(log, append))


async def take(log: MemoryLog, outbox: Outbox, append: Append, reply: Reply) -> None:
    if reply.answer is Answer.GONE:
        entries = list(outbox.entries)
        assert await log.restore(outbox.claim, entries, MINUTE_MS) is Answer.OK
        outbox.restored(entries[-1].cursor)
    else:
        outbox.settle(append, reply)


async def attempt_of(log: MemoryLog, outbox: Outbox) -> list[Entry]:
    """What the stream holds of the outbox's attempt."""
    entries = await log.read("r", START, 100_000)
    return [entry for entry in entries if entry.cursor.attempt == outbox.claim.attempt]


def put_all(outbox: Outbox, *values: Event) -> None:
    for value in values:
        outbox.put(value)


async def test_deltas_of_one_block_become_one_while_they_wait(outbox: Outbox) -> None:
    put_all(outbox, text("a"), text("b"), ReasoningDelta(block="r", text="c"))
    put_all(outbox, ReasoningDelta(block="r", text="d"), ToolDelta(call="x", text="{"))
    put_all(outbox, ToolDelta(call="x", text="}"), text("e"))
    assert events(sent(outbox)) == [
        text("ab"),
        ReasoningDelta(block="r", text="cd"),
        ToolDelta(call="x", text="{}"),
        text("e"),
    ]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (text("a"), text("b", "other")),
        (text("a"), text("b", choice=1)),
        (text("a"), text("b", refusal=True)),
        (text("a"), ReasoningDelta(block="t", text="b")),
        (ToolDelta(call="x", text="a"), ToolDelta(call="y", text="b")),
        (text("a" * MERGED_CHARACTERS), text("b")),
        (TextStart(block="t"), text("a")),
    ],
    ids=["block", "choice", "refusal", "kind", "call", "size", "not a delta"],
)
async def test_what_differs_stays_apart(outbox: Outbox, first: Event, second: Event) -> None:
    put_all(outbox, first, second)
    assert events(sent(outbox)) == [first, second]


async def test_an_entry_is_frozen_by_its_first_append(outbox: Outbox) -> None:
    """What comes later waits for the answer, and never joins what has an id."""
    outbox.put(text("a"))
    first = sent(outbox)
    outbox.put(text("b"))
    assert sent(outbox) == first
    outbox.settle(first, Reply(Answer.OK))
    second = sent(outbox)
    assert events(second) == [text("b")]
    assert second.expected == first.entries[-1].cursor


async def test_ids_are_dense_behind_the_first_entry(outbox: Outbox) -> None:
    put_all(outbox, TextStart(block="t"), text("a"), TextEnd(block="t"))
    append = sent(outbox)
    attempt = outbox.claim.attempt
    assert append.expected == Cursor(attempt, 0)
    assert [entry.cursor for entry in append.entries] == [Cursor(attempt, seq) for seq in (1, 2, 3)]


@pytest.mark.parametrize(("size", "most"), [(1, BATCH_ENTRIES), (BATCH_BYTES // 4, 4)])
async def test_an_append_has_bounds_also_when_it_is_sent_again(
    log: MemoryLog, outbox: Outbox, size: int, most: int
) -> None:
    values = [Data(name="d", value="x" * size) for _ in range(BATCH_ENTRIES + 10)]
    put_all(outbox, *values)
    await flush(log, outbox)
    outbox.go_to(outbox.claim.started.cursor)
    assert len(sent(outbox).entries) == most
    log.runs["r"].stream = log.runs["r"].stream[:2]
    await flush(log, outbox)
    assert [entry.event for entry in await attempt_of(log, outbox)][1:] == values


async def test_whoever_puts_waits_for_room(log: MemoryLog, outbox: Outbox) -> None:
    for number in range(WAITING_EVENTS):
        outbox.put(Data(name="d", value=number))
    waiting = asyncio.create_task(outbox.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    await flush(log, outbox)
    await waiting


async def test_large_events_fill_it_too(log: MemoryLog, outbox: Outbox) -> None:
    outbox.put(Data(name="d", value="x" * (1 << 20)))
    waiting = asyncio.create_task(outbox.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    await flush(log, outbox)
    await waiting


async def test_an_answer_over_the_limit_is_refused(log: MemoryLog) -> None:
    outbox = Outbox(await claimed(log), lambda _: None, limit_bytes=1000)
    outbox.put(text("x" * 500))
    with pytest.raises(AgentTooLarge):
        outbox.put(text("x" * 500))


async def test_flushed_means_that_the_stream_has_it(log: MemoryLog, outbox: Outbox) -> None:
    outbox.put(text("a"))
    waiting = asyncio.create_task(outbox.flushed())
    await asyncio.sleep(0)
    assert not waiting.done()
    assert not outbox.idle
    await flush(log, outbox)
    await waiting
    assert outbox.idle


async def test_something_visible_is_known_as_soon_as_it_is_put(outbox: Outbox) -> None:
    assert not outbox.visible
    outbox.put(text("a"))
    assert outbox.visible
    assert sent(outbox).visible


async def test_a_lost_reply_doubles_nothing(log: MemoryLog, outbox: Outbox) -> None:
    put_all(outbox, TextStart(block="t"), text("a"))
    await carried_out(log, sent(outbox))
    outbox.put(text("b"))
    again = sent(outbox)
    reply = await carried_out(log, again)
    assert reply.answer is Answer.DUP
    outbox.settle(again, reply)
    await flush(log, outbox)
    assert [entry.event for entry in await attempt_of(log, outbox)][1:] == [
        TextStart(block="t"),
        text("a"),
        text("b"),
    ]


@pytest.mark.parametrize("kept", [1, 2, 3], ids=["nothing of the attempt", "its start", "its first event"])
async def test_what_redis_lost_is_sent_again_word_for_word(log: MemoryLog, outbox: Outbox, kept: int) -> None:
    put_all(outbox, TextStart(block="t"), text("a"))
    await flush(log, outbox)
    before = list(log.runs["r"].stream)
    log.runs["r"].stream = before[:kept]
    outbox.put(text("b"))
    append = sent(outbox)
    reply = await carried_out(log, append)
    assert reply.answer is Answer.REWIND
    outbox.settle(append, reply)
    await flush(log, outbox)
    assert log.runs["r"].stream[:-1] == before


@pytest.mark.parametrize("answer", [Answer.FENCED, Answer.ENDED])
async def test_a_run_of_somebody_else_is_left(outbox: Outbox, answer: Answer) -> None:
    outbox.put(text("a"))
    waiting = asyncio.create_task(outbox.flushed())
    await asyncio.sleep(0)
    outbox.settle(sent(outbox), Reply(answer, "9-9"))
    with pytest.raises(Left, match=answer.value):
        await waiting
    with pytest.raises(Left):
        outbox.put(text("b"))
    assert outbox.next_append() is None


async def test_entries_of_ours_that_we_never_wrote_are_another_process(outbox: Outbox) -> None:
    """The same attempt twice cannot be, but if it is, one of the two has to stop."""
    outbox.put(text("a"))
    outbox.settle(sent(outbox), Reply(Answer.DUP, f"{outbox.claim.attempt}-7"))
    with pytest.raises(Left, match="FENCED"):
        outbox.check()


async def test_the_first_reason_to_leave_stays(outbox: Outbox) -> None:
    outbox.leave(Left(Answer.ENDED))
    outbox.leave(Left(Answer.FENCED))
    with pytest.raises(Left, match="ENDED"):
        outbox.check()


async def test_what_was_frozen_during_a_restoration_is_still_sent(log: MemoryLog, outbox: Outbox) -> None:
    outbox.put(text("a"))
    await flush(log, outbox)
    restored = outbox.entries[-1].cursor
    outbox.put(text("b"))
    frozen = sent(outbox)
    outbox.restored(restored)
    assert sent(outbox).entries == frozen.entries


PUTS = st.one_of(
    st.text("ab", min_size=1, max_size=3).map(text),
    st.integers(0, 9).map(lambda number: Data(name="d", value=number)),
)
STEPS = st.one_of(
    st.tuples(st.just("put"), PUTS),
    st.tuples(st.sampled_from(["append", "lose the reply", "wipe"]), st.none()),
    st.tuples(st.just("roll back"), st.integers(0, 50)),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(STEPS, max_size=40))
def test_whatever_redis_loses_the_stream_becomes_what_was_put(steps: list[tuple[str, Any]]) -> None:
    asyncio.run(_History().play(steps))


class _History:
    """One outbox over a log that loses replies, its newest entries, or everything."""

    def __init__(self) -> None:
        self._log = MemoryLog()
        self._put: list[Event] = []
        self._known: dict[Cursor, Entry] = {}
        self._past: list[Any] = []

    async def play(self, steps: list[tuple[str, Any]]) -> None:
        log = self._log
        await log.create(new_run())
        self._past.append(copy.deepcopy(log.runs))
        outbox = Outbox(await claimed(log), lambda _: None, limit_bytes=1 << 26)
        for step, value in steps:
            await self._do(outbox, step, value)
            self._check_entries()
            self._past.append(copy.deepcopy(log.runs))
        outbox.put(TextEnd(block="t"))
        self._put.append(TextEnd(block="t"))
        await flush(log, outbox)
        self._check_entries()
        stored = [entry.event for entry in await attempt_of(log, outbox)]
        assert _split(stored[1:]) == _split(self._put)

    async def _do(self, outbox: Outbox, step: str, value: Any) -> None:
        log = self._log
        match step:
            case "put":
                self._put.append(value)
                outbox.put(value)
            case "append":
                if append := outbox.next_append():
                    await take(log, outbox, append, await carried_out(log, append))
            case "lose the reply":
                if append := outbox.next_append():
                    await carried_out(log, append)
            case "roll back":
                log.runs = copy.deepcopy(self._past[value % len(self._past)])
            case "wipe":
                log.runs = {}
                log.server_id += "'"

    def _check_entries(self) -> None:
        """Nothing is doubled or missing in between, and no entry ever changes."""
        run = self._log.runs.get("r")
        entries = run.stream if run else []
        for before, entry in pairwise(entries):
            assert before.cursor.leads_to(entry.cursor)
        for entry in entries:
            assert self._known.setdefault(entry.cursor, entry) == entry


def _split(values: Sequence[Event | None]) -> list[Event | str | None]:
    """Deltas taken apart into their letters, as merging must not matter."""
    parts: list[Event | str | None] = []
    for value in values:
        parts += list(value.text) if isinstance(value, TextDelta) else [value]
    return parts
