"""The running set over a real Redis: runs are carried to an end that stays."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import pytest

from shared import keys
from shared.broker import Broker
from shared.config import Timeouts
from shared.conversations import Conversations
from shared.cursor import START
from shared.errors import BrokerError, BrokerUnavailable
from shared.events import RunAccepted
from shared.index import RunIndex
from shared.jobs import Queue
from shared.stopping import Stopper
from shared.stream_log import Claim, Entry, Finish, NewRun, Renewal, Reply, StreamLog
from tests.support.redis_server import RedisServer
from tests.support.wait import eventually
from tests.workers.fake_agents import END, SILENCE, Answering, Dialect, text
from workers.relay import Line
from workers.runs import RunningSet
from workers.slots import Slots

MINUTE_MS = 60_000


class FaultyLog(StreamLog):
    """A log that can be slow to look at and refuse to end runs."""

    def __init__(self, broker: Broker) -> None:
        super().__init__(broker)
        self.looks_at: list[list[str]] = []
        self.goes_on = asyncio.Event()
        self.goes_on.set()
        self.refused_ends = 0
        self.refused_renewals = 0

    async def renew(self, owners: Sequence[tuple[str, str, int]]) -> list[Renewal | BrokerError]:
        if self.refused_renewals:
            self.refused_renewals -= 1
            raise BrokerUnavailable("out")
        return await super().renew(owners)

    async def last(self, runs: Sequence[str]) -> list[Entry | None]:
        self.looks_at.append(list(runs))
        await self.goes_on.wait()
        return await super().last(runs)

    async def finish(self, finish: Finish) -> Reply:
        if self.refused_ends:
            self.refused_ends -= 1
            raise BrokerUnavailable("out")
        return await super().finish(finish)


class House:
    """A running set, and the agents that its runs get, by run."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.log = FaultyLog(broker)
        self.agents: dict[str, Answering] = {}
        self.slots = Slots(10)
        index = RunIndex(broker, MINUTE_MS)
        self.running = RunningSet(
            self.log,
            index,
            Stopper(self.log, index, Queue(broker), broker),
            Conversations(broker),
            lambda claim, remember, aside: Line(
                dialect=Dialect,
                connect=lambda _: self.agents[claim.run],
                timeouts=Timeouts(),
                secrets=(),
                repeatable=True,
                remember=remember,
                aside=aside,
            ),
            self.slots,
            renew_every=0.05,
            max_stream_bytes=1 << 20,
        )

    async def start(self, run: str, agent: Answering, **meta: str) -> None:
        """Create a run and claim it."""
        await self.log.create(
            NewRun(
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
                meta={"on_interrupt": "fail", "repeatable": "1", **meta},
            )
        )
        await self.claim(run, agent)

    async def claim(self, run: str, agent: Answering) -> None:
        self.agents[run] = agent
        assert self.slots.reserve()
        assert await self.running.start(run)

    async def types(self, run: str) -> list[str]:
        return [entry.type for entry in await self.log.read(run, START, 1000)]

    async def shown(self, run: str) -> bool:
        return "text.delta" in await self.types(run)

    async def ended(self, run: str) -> bool:
        return (await self.types(run))[-1] in ("run.completed", "run.failed", "run.stopped")


@pytest.fixture
async def house(redis_server: RedisServer) -> AsyncIterator[House]:
    broker = Broker.open(redis_server.url)
    house = House(broker)
    running = asyncio.create_task(house.running.run())
    yield house
    assert not running.done(), running.exception()
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    await broker.close()


async def test_a_run_is_carried_to_its_end(house: House) -> None:
    await house.start("a", Answering(text("hello"), END))
    await eventually(lambda: len(house.running) == 0, 5, "it has ended")
    assert (await house.types("a"))[1:] == ["run.started", "text.delta", "text.delta", "run.completed"]
    assert house.slots.free == 10


async def test_runs_may_end_while_ended_ones_are_looked_after(house: House) -> None:
    house.log.goes_on.clear()
    await house.start("a", Answering(END))
    await eventually(lambda: ["a"] in house.log.looks_at, 5, "the end of the first is looked at")
    await house.start("b", Answering(END))
    await eventually(lambda: house.ended("b"), 5, "the second has ended")
    house.log.goes_on.set()
    await eventually(lambda: ["a", "b"] in house.log.looks_at, 5, "both are looked at")


@pytest.mark.parametrize("refused", [0, 1])
async def test_an_end_that_redis_lost_is_written_again(house: House, refused: int) -> None:
    """Also when Redis is out once more meanwhile."""
    await house.start("a", Answering(text("hello"), END))
    await eventually(lambda: house.ended("a"), 5, "it has ended")
    before = await house.log.read("a", START, 1000)
    house.log.refused_ends = refused
    kept = [
        ("XADD", keys.stream("a") + "2", str(entry.cursor), "t", entry.type, "d", entry.data)
        for entry in before[:-2]
    ]
    await house.broker.calls([*kept, ("RENAME", keys.stream("a") + "2", keys.stream("a"))])
    await house.broker.call("HDEL", keys.meta("a"), "end", "end_type", "ended", "ended_by")
    await eventually(lambda: house.ended("a"), 5, "its end is there again")
    assert await house.log.read("a", START, 1000) == before


async def test_a_worker_may_be_its_own_successor(house: House) -> None:
    """It was frozen, the sweep gave its run away, and it was the one to take it."""
    first, second = Answering(text("a"), SILENCE), Answering(text("b"), SILENCE)
    await house.start("a", first)
    await eventually(lambda: house.shown("a"), 5, "the first attempt has shown something")
    _, lease, meta, *_ = keys.of_run("a")
    await house.broker.calls([("DEL", lease), ("HSET", meta, "due", "0")])
    await house.claim("a", second)
    await eventually(lambda: first.left and second.read, 5, "the first attempt has left its agent")
    await eventually(lambda: house.slots.free == 9, 5, "its slot is free")
    assert len(house.running) == 1
    assert not second.left
    await house.running.drain(0)
    assert second.left


@pytest.mark.parametrize(
    ("said", "policy", "end"),
    [
        ((SILENCE,), "fail", None),
        ((text("shown"), SILENCE), "restart", None),
        ((text("shown"), SILENCE), "fail", "run.failed"),
    ],
    ids=["nothing was shown", "restart", "fail"],
)
async def test_what_cannot_be_finished_is_handed_over(
    house: House, said: tuple[object, ...], policy: str, end: str | None
) -> None:
    agent = Answering(*said)
    await house.start("a", agent, on_interrupt=policy)
    await eventually(lambda: agent.read == len(said) - 1, 5, "the agent is read")
    await house.running.drain(0)
    assert agent.left
    assert len(house.running) == 0
    if end:
        assert (await house.types("a"))[-1] == end
    else:
        claim = await house.log.claim("a", "another")
        assert isinstance(claim, Claim)
        assert claim.meta["attempts"] == "1"


async def test_a_run_that_nobody_watches_is_stopped_by_its_policy(house: House) -> None:
    await house.start("a", Answering(text("hello"), SILENCE), on_disconnect="cancel", linger_ms="50")
    await eventually(lambda: house.ended("a"), 5, "it is stopped")
    assert (await house.types("a"))[-1] == "run.stopped"


async def test_nothing_is_concluded_from_missing_viewers_right_after_an_outage(house: House) -> None:
    """Redis may have lost them, or they could not be told; gateways tell again within seconds."""
    house.log.refused_renewals = 1
    await eventually(lambda: house.log.refused_renewals == 0, 5, "Redis was out")
    await house.start("a", Answering(text("hello"), SILENCE), on_disconnect="cancel", linger_ms="50")
    await asyncio.sleep(0.5)
    assert not await house.ended("a")
