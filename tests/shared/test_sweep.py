"""What the sweep does about runs that nobody holds, over a real server and with short times."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest

from shared import cursor, keys
from shared.broker import Broker
from shared.cursor import Cursor
from shared.events import Event, RunAccepted, RunCompleted, RunFailed
from shared.index import RunIndex
from shared.jobs import Queue
from shared.stopping import Stopper
from shared.stream_log import Append, Claim, Entry, NewRun, StreamLog
from shared.sweep import INDEX_GRACE_MS, Sweep
from tests.support.redis_server import RedisServer
from tests.support.wait import eventually

LEASE = 0.15


class House:
    """A log, its index and queue, and a sweep that is done by hand."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.log = StreamLog(broker, lease=LEASE, suspect_for=0.1, max_attempts=2)
        self.index, self.queue = RunIndex(broker, 60_000), Queue(broker)
        self.stopper = Stopper(self.log, self.index, Queue(broker), broker)
        self.sweep = self.new_sweep()

    def new_sweep(self) -> Sweep:
        return Sweep(self.log, self.index, self.queue, self.stopper, self.broker, every=0.05)

    async def accept(
        self, *, queue: bool = True, queue_ms: int = 60_000, run_ms: int = 60_000, **meta: str
    ) -> None:
        """A run as the gateway begins it."""
        await self.index.add("r", "t", round(time.time() * 1000))
        policies = {"on_interrupt": "fail", "repeatable": "1", **meta}
        accepted = RunAccepted(run="r", agent="a")
        created = await self.log.create(
            NewRun("r", "t", "a", "h", accepted, None, b"{}", queue_ms, run_ms, 60_000, policies)
        )
        if queue:
            await self.queue.put("r", created.job, created.time_ms, 60_000)

    async def take(self) -> Claim:
        """What a worker does: the job leaves the queue and the run is claimed."""
        await self.broker.call("DEL", keys.QUEUE)
        claim = await self.log.claim("r", "token")
        assert isinstance(claim, Claim)
        return claim

    async def show_text(self, claim: Claim) -> None:
        entry = Entry(Cursor(claim.attempt, 1), "text.delta", b'{"block":"t","text":"x"}')
        await self.log.append([Append("r", "token", claim.attempt, claim.started.cursor, [entry], True)])

    async def jobs(self) -> list[bytes]:
        found: list[bytes] = await self.broker.call("ZRANGE", keys.QUEUE, 0, -1)
        return found

    async def end(self) -> Event | None:
        """The terminal event, if it is there."""
        entry = (await self.log.read("r", cursor.START, 100))[-1]
        return entry.event if entry.terminal else None

    async def swept_until_ended(self) -> Event:
        async def ended() -> Event | None:
            await self.sweep.sweep()
            return await self.end()

        event = await eventually(ended, 5, "the sweep ends the run")
        assert event is not None
        assert await self.index.open_runs(10) == []
        return event

    async def swept_until_queued(self) -> bytes:
        async def queued() -> list[bytes]:
            await self.sweep.sweep()
            return await self.jobs()

        (job,) = await eventually(queued, 5, "the sweep queues the run")
        return job


@pytest.fixture
async def house(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    monkeypatch.setattr("shared.sweep.JOB_LEFT_FOR", 0.1)
    monkeypatch.setattr("shared.sweep._AGAIN_SOON", 0.01)
    broker = Broker.open(redis_server.url)
    yield House(broker)
    await broker.close()


def failed_with(event: Event, code: str) -> bool:
    return isinstance(event, RunFailed) and event.code == code


async def swept_for(house: House, seconds: float) -> None:
    """Sweep for so long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        await house.sweep.sweep()
        await asyncio.sleep(0.01)


async def test_a_run_that_never_came_to_the_queue_is_queued(house: House) -> None:
    """Its gateway died between the two."""
    await house.accept(queue=False)
    job = await house.swept_until_queued()
    assert job.startswith(b"r:")
    assert isinstance(await house.log.claim("r", "token"), Claim)


async def test_a_run_on_the_queue_is_left_there(house: House) -> None:
    await house.accept()
    (job,) = await house.jobs()
    await swept_for(house, 0.4)
    assert await house.jobs() == [job]


async def test_a_job_that_was_lost_is_replaced_once(house: House) -> None:
    """The queue's data is gone."""
    await house.accept()
    await house.broker.call("DEL", keys.QUEUE)
    job = await house.swept_until_queued()
    await swept_for(house, 0.3)
    assert await house.jobs() == [job]


async def test_a_run_with_a_living_worker_is_left_alone(house: House) -> None:
    await house.accept()
    claim = await house.take()
    end = time.monotonic() + 3 * LEASE
    while time.monotonic() < end:
        await house.log.renew([("r", "token", claim.attempt)])
        await swept_for(house, 0.02)
    assert await house.end() is None
    assert await house.jobs() == []


async def test_a_run_lost_before_any_text_goes_first_to_another_worker(house: House) -> None:
    await house.accept()
    await house.take()
    job = await house.swept_until_queued()
    now_ms = int(job.rpartition(b":")[2])
    score = float(await house.broker.call("ZSCORE", keys.QUEUE, job))
    assert score == now_ms - 2 * 3_600_000
    again = await house.log.claim("r", "other")
    assert isinstance(again, Claim)


@pytest.mark.parametrize("repeatable", ["1", "0"])
async def test_a_run_lost_with_text_shown_or_not_repeatable_ends(house: House, repeatable: str) -> None:
    await house.accept(repeatable=repeatable)
    claim = await house.take()
    if repeatable == "1":
        await house.show_text(claim)
    assert failed_with(await house.swept_until_ended(), "interrupted")


async def test_a_run_lost_with_text_shown_starts_again_by_its_policy(house: House) -> None:
    await house.accept(on_interrupt="restart")
    await house.show_text(await house.take())
    await house.swept_until_queued()


async def test_a_run_is_lost_only_after_two_looks(house: House) -> None:
    """A worker that renews between them keeps its run, as after a pause of Redis."""
    await house.accept()
    claim = await house.take()
    await house.show_text(claim)
    for _ in range(5):
        await asyncio.sleep(LEASE * 1.2)  # the lease lapses
        await house.sweep.sweep()
        await house.log.renew([("r", "token", claim.attempt)])
    assert await house.end() is None


async def test_a_run_that_kills_its_workers_is_given_up(house: House) -> None:
    """After two attempts here."""
    await house.accept()
    await house.take()
    await house.swept_until_queued()
    await house.take()
    assert failed_with(await house.swept_until_ended(), "poisoned")


async def test_a_run_that_nobody_takes_in_time_expires(house: House) -> None:
    await house.accept(queue_ms=100)
    assert failed_with(await house.swept_until_ended(), "expired")


async def test_a_run_beyond_its_deadline_is_ended_though_its_worker_lives(house: House) -> None:
    await house.accept(run_ms=100)
    claim = await house.take()

    async def ended() -> Any:
        await house.log.renew([("r", "token", claim.attempt)])
        await house.sweep.sweep()
        return await house.end()

    assert failed_with(await eventually(ended, 5, "the run is ended"), "timeout")


async def test_the_index_is_repaired(house: House) -> None:
    """Ended runs are struck off at once, entries without a stream when nobody can be creating it."""
    await house.accept()
    await house.stopper.end("r", RunCompleted(finish_reason="stop"))
    now_ms = round(time.time() * 1000)
    await house.index.add("r", "t", now_ms)
    await house.index.add("old", "t", now_ms - INDEX_GRACE_MS - 5000)
    await house.index.add("young", "t", now_ms - INDEX_GRACE_MS + 10_000)
    await house.sweep.sweep()
    assert [run for run, _ in await house.index.open_runs(10)] == ["young"]


async def test_one_run_that_cannot_be_read_does_not_stop_the_sweep(house: House) -> None:
    await house.index.add("bad", "t", 1)
    await house.broker.call("SET", keys.meta("bad"), "not a hash", "PX", 60_000)
    await house.accept(queue=False)
    await house.swept_until_queued()


async def test_one_process_sweeps_and_another_follows(house: House) -> None:
    """Also when Redis cannot be asked in between."""
    first, second = (asyncio.create_task(house.new_sweep().run()) for _ in range(2))
    try:

        async def holder() -> bytes | None:
            name: bytes | None = await house.broker.call("GET", keys.SWEEP)
            return name

        await eventually(holder, 5, "somebody sweeps")
        await house.broker.call("SET", keys.SWEEP, "a process that died", "PX", 100)
        await eventually(lambda: _is_another(holder), 5, "another follows")
        first.cancel()
        with suppress(asyncio.CancelledError):
            await first
        await house.accept(queue=False)
        await eventually(house.jobs, 5, "the other one sweeps")
    finally:
        for task in (first, second):
            task.cancel()
        await asyncio.wait([first, second])


async def _is_another(holder: Any) -> bool:
    name = await holder()
    return name is not None and name != b"a process that died"


async def test_runs_end_also_while_redis_has_no_memory(house: House, redis_server: RedisServer) -> None:
    """What ends a run needs none, and neither does who looks for it."""
    await house.accept(queue=False, queue_ms=1)
    sweeping = asyncio.create_task(house.sweep.run())
    with redis_server.client() as client:
        client.config_set("maxmemory", 1)
        try:
            await eventually(house.end, 5, "the run has ended")
        finally:
            client.config_set("maxmemory", 0)
            sweeping.cancel()
            await asyncio.wait([sweeping])
