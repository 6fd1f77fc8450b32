"""Ending a run from anywhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from shared import cursor, keys
from shared.broker import Broker
from shared.endings import interrupted
from shared.events import RunAccepted, RunStopped
from shared.index import RunIndex
from shared.jobs import Queue
from shared.stopping import Stopper
from shared.stream_log import Answer, NewRun, StreamLog
from shared.subscription import Subscription
from tests.support.redis_server import RedisServer
from tests.support.wait import eventually

STOPPED = RunStopped(by="client", reason="enough")


class House:
    """A log with one run in it, and who hears of ends."""

    def __init__(self, broker: Broker) -> None:
        self.log, self.index = StreamLog(broker), RunIndex(broker, 60_000)
        self.queue = Queue(broker)
        self.stopper = Stopper(self.log, self.index, self.queue, broker)
        self.heard: list[str] = []
        self.ends = Subscription(
            broker, lambda _, run: self.heard.append(run.decode()), lambda: None, sharded=False
        )

    async def begin(self) -> None:
        await self.index.add("r", "t", 1)
        accepted = RunAccepted(run="r", agent="a")
        await self.log.create(NewRun("r", "t", "a", "h", accepted, None, b"{}", 60_000, 60_000, 60_000, {}))


@pytest.fixture
async def house(redis_server: RedisServer) -> AsyncIterator[House]:
    broker = Broker.open(redis_server.url)
    house = House(broker)
    await house.begin()
    listening = asyncio.create_task(house.ends.run())
    await house.ends.add(keys.STOPS, 5)
    yield house
    listening.cancel()
    await asyncio.wait([listening])
    await broker.close()


async def test_an_end_is_written_told_and_struck_off(house: House) -> None:
    reply = await house.stopper.end("r", STOPPED)
    assert reply.answer is Answer.OK
    entries = await house.log.read("r", cursor.START, 10)
    assert entries[-1].event == STOPPED
    assert str(entries[-1].cursor) == reply.detail
    assert await house.index.open_runs(10) == []
    await eventually(lambda: house.heard == ["r"], 5, "the end is heard")


async def test_a_run_ends_once(house: House) -> None:
    first = await house.stopper.end("r", STOPPED)
    again = await house.stopper.end("r", interrupted())
    assert (again.answer, again.detail) == (Answer.ENDED, first.detail)
    assert len(await house.log.read("r", cursor.START, 10)) == 2


async def test_a_run_that_somebody_carries_can_be_left_alone(house: House) -> None:
    await house.log.claim("r", "token")
    assert (await house.stopper.end("r", STOPPED, unless_held=True)).answer is Answer.HELD
    assert await house.index.open_runs(10) == [("r", 1)]
    assert (await house.stopper.end("r", STOPPED)).answer is Answer.OK


async def test_what_is_not_there_cannot_be_ended(house: House) -> None:
    assert (await house.stopper.end("other", STOPPED)).answer is Answer.GONE
    assert house.heard == []


async def test_a_run_that_ends_while_it_waits_leaves_no_job_behind(
    house: House, redis_server: RedisServer
) -> None:
    """Jobs that nobody waits for would count as a backlog."""
    queue = house.queue
    look = (await house.log.meta(["r"]))[0]
    await queue.put("r", look["job"], 1, 60_000)
    await house.stopper.end("r", STOPPED)
    assert await queue.length() == 0
    with redis_server.client() as client:
        assert list(client.scan_iter("arq:job:*")) == []
