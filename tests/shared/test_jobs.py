"""What stands on the queue: arq reads it, and nothing in it is run."""

from __future__ import annotations

import pickle
from collections.abc import AsyncIterator

import pytest
from arq.constants import job_key_prefix
from arq.jobs import deserialize_job, serialize_job

from shared import keys
from shared.broker import Broker
from shared.jobs import FUNCTION, Queue, dumps, loads
from tests.support.redis_server import RedisServer

HOUR = 3_600_000
NOW = 10 * HOUR


@pytest.fixture
async def broker(redis_server: RedisServer) -> AsyncIterator[Broker]:
    broker = Broker.open(redis_server.url)
    yield broker
    await broker.close()


async def test_arq_reads_what_the_queue_holds(broker: Broker) -> None:
    await Queue(broker).put("run", "run:1", NOW, 60_000)
    body = await broker.call("GET", job_key_prefix + "run:1")
    job = deserialize_job(body, deserializer=loads)
    assert (job.function, tuple(job.args), job.kwargs) == (FUNCTION, ("run",), {})


async def test_no_clock_can_delay_a_job_and_restarts_go_first(broker: Broker) -> None:
    queue = Queue(broker)
    await queue.put("new", "new:1", NOW, 60_000)
    await queue.put("again", "again:1", NOW, 60_000, restarted=True)
    await queue.put("later", "later:1", NOW + 1, 60_000)
    assert await broker.call("ZRANGE", keys.QUEUE, 0, -1) == [b"again:1", b"new:1", b"later:1"]
    assert float(await broker.call("ZSCORE", keys.QUEUE, "later:1")) < NOW - HOUR / 2
    assert [await broker.pop(keys.READY, 1) for _ in range(3)] == [b"again:1", b"new:1", b"later:1"]


async def test_the_same_job_put_twice_stands_once(broker: Broker) -> None:
    queue = Queue(broker)
    await queue.put("run", "run:1", NOW, 60_000)
    await queue.put("run", "run:1", NOW, 60_000)
    assert await queue.length() == 1
    assert await queue.waiting(["run:1", "run:2"]) == [True, False]
    assert await queue.waiting([]) == []


async def test_hints_that_nobody_takes_do_not_pile_up(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.jobs._LONGEST_READY_LIST", 5)
    queue = Queue(broker)
    for number in range(20):
        await queue.put("run", f"run:{number}", NOW, 60_000)
    assert await broker.call("LLEN", keys.READY) <= 6
    assert 0 < await broker.call("TTL", keys.READY) <= keys.READY_SECONDS


@pytest.mark.parametrize("body", [pickle.dumps({"f": "x"}), b"[1]", b"", b"\xff", b"1"])
def test_what_is_not_a_json_object_is_no_job(body: bytes) -> None:
    """A forged pickle is not even looked into."""
    with pytest.raises(ValueError, match=r".*"):
        loads(body)


def test_jobs_are_json() -> None:
    body = serialize_job(FUNCTION, ("run",), {}, None, 1, serializer=dumps)
    assert body is not None
    assert loads(body)["a"] == ["run"]
