"""What may be lost between acceptance and dispatch, and what then happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.admission import Admission, Order
from gateway.auth import LOCAL, Caller
from shared import keys
from shared.broker import Broker
from shared.config import Limits
from shared.conversations import Conversations
from shared.errors import BrokerError, BrokerFull, BrokerUnavailable, RequestError
from shared.index import RunIndex
from shared.jobs import Queue
from shared.requests import Message, RunRequest
from shared.stream_log import Created, NewRun, StreamLog
from tests.gateway.house import SECRET, configured
from tests.support.redis_server import RedisServer
from tests.support.wait import eventually

pytestmark = pytest.mark.usefixtures("no_lasting_keys")

CALLER = Caller(LOCAL, frozenset(("run",)))


class BrokenQueue(Queue):
    async def put(self, *args: Any, **kwargs: Any) -> None:
        raise BrokerUnavailable("lost")


class ForgetfulLog(StreamLog):
    """Does what it is asked and loses the first answer."""

    lost = 0

    async def create(self, new: NewRun) -> Created:
        created = await super().create(new)
        if not self.lost:
            self.lost += 1
            raise BrokerUnavailable("lost")
        return created


class HeldLog(StreamLog):
    """Creates nothing before it is told to go on."""

    def __init__(self, broker: Broker) -> None:
        super().__init__(broker)
        self.go_on = asyncio.Event()

    async def create(self, new: NewRun) -> Created:
        await self.go_on.wait()
        return await super().create(new)


@pytest.fixture
async def broker(redis_server: RedisServer) -> AsyncIterator[Broker]:
    opened = Broker.open(redis_server.url)
    yield opened
    await opened.close()


def admission(broker: Broker, log: StreamLog | None = None, queue: Queue | None = None) -> Admission:
    return Admission(
        configured(),
        SECRET.encode(),
        log or StreamLog(broker),
        RunIndex(broker, 60_000),
        queue or Queue(broker),
        Conversations(broker),
        max_queue=10,
        retention=60.0,
    )


def order(**more: Any) -> Order:
    request = RunRequest(messages=(Message("user", "hello"),))
    return Order("writer", request, b"{}", "runs", "json", takes_back=True, **more)


async def test_a_run_that_could_not_be_queued_is_accepted_and_left_to_the_sweep(broker: Broker) -> None:
    admitted = await admission(broker, queue=BrokenQueue(broker)).admit(CALLER, order())
    assert admitted.new
    assert await known(broker) == [admitted.run]
    assert (await StreamLog(broker).read(admitted.run, (await first(broker, admitted.run)), 10)) == []


async def test_a_creation_whose_answer_was_lost_is_one_run(broker: Broker) -> None:
    admitted = await admission(broker, log=ForgetfulLog(broker)).admit(CALLER, order())
    assert await broker.call("EXISTS", keys.stream(admitted.run)) == 1
    assert await broker.call("ZCARD", keys.OPEN) == 1


async def test_two_orders_with_one_key_are_one_run_also_at_the_limit(broker: Broker) -> None:
    caller = Caller("t", frozenset(("run",)), limits=Limits(running=1))
    taker, same = admission(broker), order(idempotency_key="k")
    one, other = await asyncio.gather(taker.admit(caller, same), taker.admit(caller, same))
    assert one.run == other.run
    assert {one.new, other.new} == {True, False}
    assert await known(broker) == [one.run]


async def test_an_order_that_is_refused_leaves_the_entry_of_the_same_order_under_way(broker: Broker) -> None:
    log, same = HeldLog(broker), order(idempotency_key="k")
    first = asyncio.create_task(admission(broker, log).admit(CALLER, same))
    await eventually(lambda: known(broker), 5, "it is in the index")
    await broker.call("ZADD", keys.QUEUE, *(part for i in range(10) for part in (i, f"job{i}")))
    with pytest.raises(RequestError, match="wait for a worker"):
        await admission(broker).admit(CALLER, same)
    assert len(await known(broker)) == 1
    log.go_on.set()
    assert await known(broker) == [(await first).run]
    await broker.call("DEL", keys.QUEUE)


async def test_what_is_refused_is_in_no_index(broker: Broker) -> None:
    caller = Caller("t", frozenset(("run",)), limits=Limits(running=0))
    for key in (None, "k"):
        with pytest.raises(RequestError, match="0 runs"):
            await admission(broker).admit(caller, order(idempotency_key=key))
    assert await known(broker) == []


async def test_a_created_run_is_in_the_index_whoever_took_it_out_meanwhile(broker: Broker) -> None:
    class Emptied(StreamLog):
        async def create(self, new: NewRun) -> Created:
            created = await super().create(new)
            await RunIndex(broker, 60_000).close(new.run)
            return created

    admitted = await admission(broker, log=Emptied(broker)).admit(CALLER, order())
    assert await known(broker) == [admitted.run]


@pytest.mark.parametrize(("error", "left"), [(BrokerFull, 0), (BrokerUnavailable, 1)])
async def test_a_run_that_redis_refused_counts_no_longer_one_whose_answer_was_lost_does(
    broker: Broker, error: type[BrokerError], left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing(StreamLog):
        async def create(self, new: NewRun) -> Created:
            raise error("no")

    monkeypatch.setattr("gateway.admission._CREATE_PATIENCE", 0.0)
    with pytest.raises(error):
        await admission(broker, log=Refusing(broker)).admit(CALLER, order())
    assert len(await known(broker)) == left


async def test_full_memory_is_said(redis_server: RedisServer, broker: Broker) -> None:
    taker = admission(broker)
    await taker.admit(CALLER, order())
    with redis_server.client() as client:
        client.config_set("maxmemory", 1)
        try:
            with pytest.raises(BrokerFull):
                await taker.admit(CALLER, order())
        finally:
            client.config_set("maxmemory", 0)


@pytest.mark.parametrize("key", ["", "k" * 256, "a\nb"])
async def test_a_key_that_is_none_is_refused(broker: Broker, key: str) -> None:
    with pytest.raises(RequestError) as refused:
        await admission(broker).admit(CALLER, order(idempotency_key=key))
    assert refused.value.field == "Idempotency-Key"


async def test_run_ids_are_not_told_by_their_keys(broker: Broker) -> None:
    taker = admission(broker)
    runs = {(await taker.admit(CALLER, order())).run for _ in range(3)}
    runs |= {(await taker.admit(CALLER, order(idempotency_key=key))).run for key in ("a", "b", "a")}
    assert len(runs) == 5
    assert all(len(run) == 32 for run in runs)


async def known(broker: Broker) -> list[str]:
    """The runs that the sweep would find."""
    return [run for run, _ in await RunIndex(broker, 60_000).open_runs(10)]


async def first(broker: Broker, run: str) -> Any:
    """The id of the newest event of a run that has only been accepted."""
    newest = (await StreamLog(broker).last([run]))[0]
    assert newest is not None
    assert newest.type == "run.accepted"
    return newest.cursor
