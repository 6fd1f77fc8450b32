"""Which runs there are: hints, but kept within bounds."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from shared import keys
from shared.broker import Broker
from shared.index import Added, RunIndex
from tests.support.redis_server import RedisServer


@pytest.fixture
async def broker(redis_server: RedisServer) -> AsyncIterator[Broker]:
    broker = Broker.open(redis_server.url)
    yield broker
    await broker.close()


@pytest.fixture
def index(broker: Broker) -> RunIndex:
    return RunIndex(broker, 1000)


async def test_open_runs_come_oldest_first_with_their_time(index: RunIndex) -> None:
    await index.add("new", "t", 2_000)
    await index.add("old", "t", 1_000)
    assert await index.open_runs(10) == [("old", 1_000), ("new", 2_000)]
    assert await index.open_runs(1) == [("old", 1_000)]
    await index.close("old", "unknown")
    await index.close()
    assert await index.open_runs(10) == [("new", 2_000)]


async def test_a_tenant_s_open_runs_are_counted(index: RunIndex) -> None:
    assert [(await index.add(run, "t", 1)).others for run in ("a", "b", "c")] == [0, 1, 2]
    assert (await index.add("d", "other", 1)).others == 0
    await index.close("a")
    assert (await index.add("e", "t", 1)).others == 2


async def test_a_run_that_is_entered_again_does_not_count_itself(index: RunIndex) -> None:
    assert await index.add("a", "t", 1) == Added(0, opened=True, listed=True)
    assert await index.add("a", "t", 2) == Added(0, opened=False, listed=False)
    await index.close("a")
    assert await index.add("a", "t", 3) == Added(0, opened=True, listed=False)


async def test_what_one_call_entered_is_taken_back_and_nothing_else(index: RunIndex) -> None:
    first, second = await index.add("a", "t", 1), await index.add("a", "t", 2)
    await index.take_back("a", "t", second)
    assert (await index.open_runs(10), await index.of_tenant("t", 10)) == ([("a", 1)], ["a"])
    await index.take_back("a", "t", first)
    assert (await index.open_runs(10), await index.of_tenant("t", 10)) == ([], [])


async def test_the_same_run_is_entered_once_at_its_first_time(index: RunIndex) -> None:
    await index.add("run", "t", 1)
    await index.add("run", "t", 2)
    assert await index.open_runs(10) == [("run", 1)]


async def test_a_tenant_s_list_is_newest_first_and_forgets_what_is_long_past(index: RunIndex) -> None:
    for number in range(4):
        await index.add(f"run {number}", "t", number * 1000)
    assert await index.of_tenant("t", 10) == ["run 3", "run 2"]
    assert await index.of_tenant("t", 1) == ["run 3"]
    assert await index.of_tenant("other", 10) == []


async def test_ended_runs_stay_in_the_list_and_forgotten_ones_do_not(index: RunIndex, broker: Broker) -> None:
    await index.add("ended", "t", 1)
    await index.add("erased", "t", 1)
    await index.close("ended")
    await index.forget("erased", "t")
    assert await index.of_tenant("t", 10) == ["ended"]
    assert await index.open_runs(10) == []
    await index.reopen("ended", 5)
    assert await index.open_runs(10) == [("ended", 5)]
    assert 0 < await broker.call("PTTL", keys.runs_of("t")) <= 2000
