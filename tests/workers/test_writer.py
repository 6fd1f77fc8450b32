"""One task appends for all runs, and no run's trouble is another's."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import cast

import pytest

from shared.errors import BrokerError, BrokerFull, BrokerUnavailable
from shared.events import RunAccepted, TextDelta
from shared.index import RunIndex
from shared.memory_log import MemoryLog
from shared.stream_log import Answer, Append, Claim, Entry, NewRun, Reply
from tests.support.wait import eventually
from workers import writer as writer_module
from workers.outbox import Left, Outbox, StorageFull
from workers.writer import Writer

MINUTE_MS = 60_000


class FaultyLog(MemoryLog):
    """A log whose calls fail with what is laid ready, one each."""

    def __init__(self) -> None:
        super().__init__()
        self.call_errors: list[BrokerError] = []
        self.append_errors: dict[str, list[BrokerError]] = {}
        self.restore_errors: list[BrokerError] = []
        self.batches: list[list[str]] = []

    async def append(self, appends: Sequence[Append]) -> list[Reply | BrokerError]:
        self.batches.append([append.run for append in appends])
        if self.call_errors:
            raise self.call_errors.pop(0)
        replies: list[Reply | BrokerError] = []
        for append in appends:
            errors = self.append_errors.get(append.run)
            replies += [errors.pop(0)] if errors else await super().append([append])
        return replies

    async def restore(self, claim: Claim, entries: Sequence[Entry], lifetime_ms: int) -> Answer:
        if self.restore_errors:
            raise self.restore_errors.pop(0)
        return await super().restore(claim, entries, lifetime_ms)

    def forget(self) -> None:
        """What a server does that starts anew without its data."""
        self.runs = {}
        self.server_id = "another"


class Index:
    async def reopen(self, run: str, now_ms: int) -> None:
        pass


class Desk:
    """A writer and its outboxes."""

    def __init__(self) -> None:
        self.log = FaultyLog()
        self.renewed = 0
        self.writer = Writer(self.log, cast(RunIndex, Index()), self._renew)

    async def outbox(self, run: str) -> Outbox:
        new = NewRun(
            run=run,
            tenant="t",
            agent="writer",
            body_hash="hash",
            accepted=RunAccepted(run=run, agent="writer"),
            queued=None,
            request=b"{}",
            queue_ms=MINUTE_MS,
            run_ms=MINUTE_MS,
            retention_ms=MINUTE_MS,
            meta={},
        )
        await self.log.create(new)
        claim = await self.log.claim(run, "owner")
        assert isinstance(claim, Claim)
        return Outbox(claim, self.writer.wake, limit_bytes=1 << 20)

    async def _renew(self) -> None:
        self.renewed += 1


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    desk = Desk()
    writing = asyncio.create_task(desk.writer.run())
    yield desk
    assert not writing.done(), writing.exception()
    writing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await writing


def say(outbox: Outbox, text: str = "hello") -> None:
    outbox.put(TextDelta(block="t", text=text))


async def test_what_waits_in_all_outboxes_goes_in_one_call(desk: Desk) -> None:
    outboxes = [await desk.outbox(run) for run in "abc"]
    for outbox in outboxes:
        say(outbox)
    await asyncio.gather(*(outbox.flushed() for outbox in outboxes))
    assert desk.log.batches == [["a", "b", "c"]]


@pytest.mark.parametrize("where", ["call_errors", "restore_errors"])
async def test_an_outage_is_waited_for(desk: Desk, where: str) -> None:
    outbox = await desk.outbox("a")
    if where == "restore_errors":
        desk.log.forget()
    getattr(desk.log, where).extend([BrokerUnavailable("out")] * 2)
    say(outbox)
    await asyncio.wait_for(outbox.flushed(), 5)
    assert [entry.type for entry in desk.log.runs["a"].stream[-2:]] == ["run.started", "text.delta"]


async def test_leases_come_first_after_an_outage(desk: Desk) -> None:
    outbox = await desk.outbox("a")
    desk.log.call_errors = [BrokerUnavailable("out")]
    say(outbox)
    await outbox.flushed()
    assert desk.renewed == 1


@pytest.mark.parametrize("gone", [False, True], ids=["append", "restore"])
async def test_one_run_that_cannot_be_written_leaves_the_others_alone(desk: Desk, gone: bool) -> None:
    bad, good = await desk.outbox("bad"), await desk.outbox("good")
    if gone:
        del desk.log.runs["bad"]
        desk.log.restore_errors = [BrokerError("wrong type")]
    else:
        desk.log.append_errors = {"bad": [BrokerError("wrong type")]}
    say(bad)
    say(good)
    await good.flushed()
    with pytest.raises(BrokerError, match="wrong type"):
        await bad.flushed()


@pytest.mark.parametrize("gone", [False, True], ids=["append", "restore"])
async def test_memory_that_stays_full_is_waited_for_so_long(
    desk: Desk, gone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "FULL_PATIENCE", 0.1)
    outbox = await desk.outbox("a")
    if gone:
        desk.log.forget()
        desk.log.restore_errors = [BrokerFull("full")] * 100
    else:
        desk.log.append_errors = {"a": [BrokerFull("full")] * 100}
    say(outbox)
    with pytest.raises(StorageFull):
        await asyncio.wait_for(outbox.flushed(), 5)


async def test_memory_that_was_full_for_a_moment_costs_nothing(desk: Desk) -> None:
    outbox = await desk.outbox("a")
    desk.log.append_errors = {"a": [BrokerFull("full")] * 3}
    say(outbox)
    await outbox.flushed()
    assert outbox.full_since is None


async def test_a_stream_that_somebody_deleted_is_left(desk: Desk) -> None:
    outbox = await desk.outbox("a")
    desk.log.runs = {}
    say(outbox)
    with pytest.raises(Left, match="GONE"):
        await outbox.flushed()


async def test_a_stream_that_redis_lost_is_written_again(desk: Desk) -> None:
    outbox = await desk.outbox("a")
    say(outbox, "one")
    await outbox.flushed()
    before = list(desk.log.runs["a"].stream)
    desk.log.forget()
    say(outbox, "two")
    await outbox.flushed()
    await eventually(lambda: len(desk.log.runs["a"].stream) == len(before) + 1, 5, "all is there")
    assert desk.log.runs["a"].stream[:-1] == before
