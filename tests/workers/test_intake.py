"""Slots before jobs, over a real Redis; and what we use of arq beyond its documentation."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any, cast

import arq.worker
import pytest
from arq.connections import ArqRedis
from arq.constants import in_progress_key_prefix, job_key_prefix
from arq.worker import Worker

from shared import keys
from shared.broker import Broker
from shared.jobs import Queue
from tests.support.redis_server import RedisServer
from tests.support.wait import eventually
from workers.intake import TAKEN_FOR, Intake, _SlotWorker
from workers.slots import Slots

MINUTE_MS = 60_000


@pytest.fixture
async def broker(redis_server: RedisServer) -> AsyncIterator[Broker]:
    broker = Broker.open(redis_server.url)
    yield broker
    await broker.close()


class Runs:
    """Stands for the running set: carries what `carries` says, and each run once, as the log does."""

    def __init__(self) -> None:
        self.claimed: list[str] = []
        self.carries: Callable[[str], bool] = lambda run: True
        self.goes_on = asyncio.Event()
        self.goes_on.set()

    async def start(self, run: str) -> bool:
        if run in self.claimed:
            return False
        held = run in self.claimed
        self.claimed.append(run)
        await self.goes_on.wait()
        return self.carries(run) and not held

    def has(self, run: str) -> bool:
        return run in self.claimed


@pytest.fixture
def runs() -> Runs:
    return Runs()


@contextlib.asynccontextmanager
async def taking(broker: Broker, slots: Slots, runs: Runs) -> AsyncIterator[Intake]:
    intake = Intake(broker, slots, runs.start)
    task = asyncio.create_task(intake.run())
    try:
        yield intake
    finally:
        task.cancel()
        await asyncio.wait([task])


async def put(broker: Broker, *runs: str, hint: bool = True) -> None:
    for number, run in enumerate(runs, 1):
        await Queue(broker).put(run, f"{run}:{number}", 4_000_000 + number, MINUTE_MS)
    if not hint:
        await broker.call("DEL", keys.READY)


async def settled(broker: Broker, slots: Slots, free: int) -> None:
    """Wait until nothing is queued and so many slots are free."""
    await eventually(lambda: _length_is(broker, 0), 5, "the queue is empty")
    await eventually(lambda: slots.free == free, 5, f"{free} slots are free (there are {slots.free})")


def arq_pool(broker: Broker) -> ArqRedis:
    return ArqRedis(broker.client.connection_pool)


def slot_worker(broker: Broker, slots: Slots, runs: Runs) -> _SlotWorker:
    return _SlotWorker(broker, slots, runs.start, set())


async def test_a_run_that_is_carried_keeps_its_slot(broker: Broker, runs: Runs) -> None:
    slots = Slots(3)
    async with taking(broker, slots, runs):
        await put(broker, "a")
        await settled(broker, slots, 2)
        assert runs.claimed == ["a"]
        slots.release()
    assert slots.free == 3


async def test_what_is_not_carried_gives_its_slot_back(broker: Broker, runs: Runs) -> None:
    slots = Slots(1)
    runs.carries = lambda run: run == "c"
    async with taking(broker, slots, runs):
        await put(broker, "a", "b", "c")
        await settled(broker, slots, 0)
    assert sorted(runs.claimed) == ["a", "b", "c"]


async def test_no_more_jobs_leave_the_queue_than_there_are_slots(broker: Broker, runs: Runs) -> None:
    slots = Slots(2)
    async with taking(broker, slots, runs):
        await put(broker, *"abcde")
        await eventually(lambda: len(runs.claimed) == 2, 5, "it is full")
        await eventually(lambda: _length_is(broker, 3), 5, "the rest waits")
        slots.release()
        await eventually(lambda: len(runs.claimed) == 3, 5, "the next is taken")


@pytest.mark.parametrize("taken", [0, 2], ids=["all slots free", "one slot free"])
async def test_the_queue_is_read_also_without_a_hint(broker: Broker, runs: Runs, taken: int) -> None:
    """The wake-up list may be lost; waiting on it must not hold the last slot back from the poll."""
    slots = Slots(3)
    for _ in range(taken):
        slots.reserve()
    await put(broker, "a", hint=False)
    async with taking(broker, slots, runs):
        await eventually(lambda: runs.claimed == ["a"], 5, "the run is claimed")


async def test_a_hint_that_cannot_be_used_is_for_others(broker: Broker, runs: Runs) -> None:
    slots = Slots(1)
    async with taking(broker, slots, runs):
        await eventually(lambda: _blocked_clients(broker), 5, "it waits for a hint")
        slots.reserve()
        await broker.call("RPUSH", keys.READY, "somebody's job")
        await eventually(lambda: _hints(broker), 5, "the hint is back")
        assert await _hints(broker) == [b"somebody's job"]
        assert await broker.call("TTL", keys.READY) > 0


async def test_a_hint_for_a_job_that_is_taken_costs_nothing(broker: Broker, runs: Runs) -> None:
    slots = Slots(2)
    runs.carries = lambda run: run == "a"
    await broker.call("RPUSH", keys.READY, "nothing:1", "nothing:1", b"\xff")
    async with taking(broker, slots, runs):
        await put(broker, "a")
        await settled(broker, slots, 1)
    assert runs.has("a")


async def test_a_job_that_both_ways_find_is_started_once(broker: Broker, runs: Runs) -> None:
    slots = Slots(5)
    worker = slot_worker(broker, slots, runs)
    await put(broker, "a")
    for _ in range(3):
        assert slots.reserve()
    await asyncio.gather(*(worker.start_reserved(b"a:1") for _ in range(3)), worker.start_jobs([b"a:1"]))
    await settled(broker, slots, 4)
    assert runs.claimed == ["a"]


async def test_a_failed_start_gives_its_slot_back_and_ends_the_loop(broker: Broker, runs: Runs) -> None:
    """arq has counted a job that does not run: left as it is, it would take ever fewer."""
    slots = Slots(1)
    worker = slot_worker(broker, slots, runs)
    slots.reserve()
    worker._pool = cast(ArqRedis, _Broken())
    with pytest.raises(ConnectionError, match="cut"):
        await worker.start_reserved(b"a:1")
    assert slots.free == 1
    worker._pool = arq_pool(broker)
    with pytest.raises(ConnectionError, match="cut"):
        await worker.async_run()


async def test_it_goes_on_when_its_connections_were_cut(
    broker: Broker, redis_server: RedisServer, runs: Runs
) -> None:
    slots = Slots(3)
    async with taking(broker, slots, runs):
        for number in range(20):
            with redis_server.client() as client:
                client.client_kill_filter(_type="normal", skipme=True)
            run = f"run{number}"
            await asyncio.to_thread(_put_directly, redis_server, run)
            await eventually(partial(runs.has, run), 10, "the run is claimed")
            slots.release()
        await settled(broker, slots, 3)


async def test_shutting_down_waits_for_what_is_being_claimed(broker: Broker, runs: Runs) -> None:
    """A drain that does not know of a claimed run would leave it to the sweep."""
    slots = Slots(1)
    runs.goes_on.clear()
    intake = asyncio.create_task(Intake(broker, slots, runs.start).run())
    await put(broker, "a")
    await eventually(lambda: runs.claimed, 5, "the run is being claimed")
    intake.cancel()
    await asyncio.sleep(0)
    assert not intake.done()
    runs.goes_on.set()
    await asyncio.wait([intake], timeout=5)
    assert intake.done()
    assert slots.free == 0


class TestArq:
    """What is used of arq beyond its documentation."""

    async def test_its_loop_polls_by_poll_iteration(self, broker: Broker, runs: Runs) -> None:
        worker = slot_worker(broker, Slots(1), runs)
        polled = asyncio.Event()

        async def polls() -> None:
            polled.set()
            raise ConnectionError("enough")

        worker._poll_iteration = polls  # type: ignore[method-assign]
        with pytest.raises(ConnectionError, match="enough"):
            await worker.async_run()
        assert polled.is_set()

    async def test_a_poll_starts_jobs_by_start_jobs_up_to_the_limit(self, broker: Broker, runs: Runs) -> None:
        worker = slot_worker(broker, Slots(2), runs)
        started: list[list[bytes]] = []

        async def start_jobs(job_ids: list[bytes]) -> None:
            started.append(job_ids)

        worker.start_jobs = start_jobs  # type: ignore[method-assign]
        await put(broker, *"abc")
        await worker._poll_iteration()
        assert started == [[b"a:1", b"b:2"]]

    async def test_a_poll_takes_nothing_when_it_may_not_pick(self, broker: Broker, runs: Runs) -> None:
        slots = Slots(1)
        slots.reserve()
        worker = slot_worker(broker, slots, runs)
        await put(broker, "a")
        await worker._poll_iteration()
        assert worker.allow_pick_jobs is False
        assert worker.tasks == {}

    async def test_a_started_job_stands_in_tasks_by_its_id(self, broker: Broker, runs: Runs) -> None:
        slots = Slots(1)
        worker = slot_worker(broker, slots, runs)
        slots.reserve()
        await put(broker, "a")
        await Worker.start_jobs(worker, [b"a:1", b"missing:1"])
        assert list(worker.tasks) == ["a:1"]
        await worker.tasks["a:1"]

    async def test_a_taken_job_is_marked_for_the_time_we_set(self, broker: Broker, runs: Runs) -> None:
        runs.goes_on.clear()
        slots = Slots(1)
        worker = slot_worker(broker, slots, runs)
        slots.reserve()
        await put(broker, "a")
        await worker.start_reserved(b"a:1")
        left = await broker.call("PTTL", in_progress_key_prefix + "a:1")
        assert 0 < left <= TAKEN_FOR * 1000
        runs.goes_on.set()
        await worker.tasks["a:1"]
        assert await broker.call("EXISTS", in_progress_key_prefix + "a:1", job_key_prefix + "a:1") == 0

    def test_these_names_are_there(self) -> None:
        source = inspect.getsource(arq.worker.Worker)
        for name in ("queue_read_limit", "allow_pick_jobs", "in_progress_timeout_s"):
            assert f"self.{name}" in source


class _Broken:
    """A pool whose every use fails."""

    def __getattr__(self, name: str) -> Any:
        raise ConnectionError("cut")


async def _blocked_clients(broker: Broker) -> bool:
    return b"blocked_clients:1" in await broker.call("INFO", "clients")


async def _length_is(broker: Broker, length: int) -> bool:
    return await Queue(broker).length() == length


async def _hints(broker: Broker) -> list[bytes]:
    hints: list[bytes] = await broker.call("LRANGE", keys.READY, 0, -1)
    return hints


def _put_directly(server: RedisServer, run: str) -> None:
    """Queue a run over a connection that nobody cuts."""

    async def do() -> None:
        broker = Broker.open(server.url)
        await put(broker, run)
        await broker.close()

    asyncio.run(do())
