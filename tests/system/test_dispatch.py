"""From the queue to a worker: slots, backlog, and everything that can be wrong with a queue."""

from __future__ import annotations

import asyncio
import pickle
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import pytest
import redis
from arq.constants import in_progress_key_prefix, job_key_prefix, retry_key_prefix
from arq.jobs import serialize_job

from shared import jobs, keys
from tests.support.redis_server import RedisServer
from tests.support.sse_client import Viewer
from tests.support.system import System, Worker, browser, events_of, start_run, watched
from tests.support.wait import eventually
from tests.system.conftest import StartSystem

ON_A_BUSY_MACHINE = 3
"""Limits are stated for an idle machine."""

AGENTS = """
agents:
  long: {dialect: openai-chat, url: "{url}/s/long/openai/v1", model: gpt, api_key: "${KEY}",
         on_interrupt: restart}
  short: {dialect: openai-chat, url: "{url}/s/short/openai/v1", model: gpt, api_key: "${KEY}"}
  impatient: {dialect: openai-chat, url: "{url}/s/short/openai/v1", model: gpt, api_key: "${KEY}",
              timeouts: {queue: 1}}
"""

SHORT: dict[str, Any] = {"tokens": 3}
HELD: dict[str, Any] = {"tokens": 3, "hold_after": 0}

Forgery = Callable[[redis.Redis, str, str], object]
"""Puts the job of a run (its id, its job's id) into some state."""


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that keeps what it holds over a restart."""
    directory = tmp_path / "redis"
    directory.mkdir()
    with RedisServer(directory, appendonly=True) as server:
        yield server


def report(what: str, value: object) -> None:
    """Seen with `pytest -rP`."""
    print(f"{what}: {value}")


async def start_runs(client: httpx.AsyncClient, system: System, agent: str, count: int) -> list[str]:
    return [await start_run(client, system.url, agent, str(number)) for number in range(count)]


async def all_watched(client: httpx.AsyncClient, system: System, runs: list[str]) -> list[Viewer]:
    return await asyncio.gather(*(watched(client, system.url, run) for run in runs))


async def start_when_possible(client: httpx.AsyncClient, system: System, agent: str) -> str:
    """A run that is accepted as soon as Redis takes it."""

    async def accepted() -> str | None:
        answer = await client.post(f"{system.url}/v1/runs", json={"agent": agent, "input": "hello"})
        return str(answer.headers["x-run-id"]) if answer.status_code == 201 else None

    run = await eventually(accepted, 15, "the run is accepted")
    assert run is not None
    return run


async def started_at(client: httpx.AsyncClient, system: System, run: str) -> float:
    """Unix time of the run's claim: attempts are numbered by it."""
    viewer = Viewer()
    await viewer.watch(client, events_of(system.url, run), until="run.started")
    return float(viewer.frames[-1].data["attempt"]) / 1000


def ready_at(worker: Worker) -> float:
    """Unix time of the worker's own word that it is ready."""
    return time_of(worker.wait_for_log("worker ready"))


def claims_of(worker: Worker) -> list[float]:
    """Unix times at which it began its attempts."""
    return [time_of(line) for line in worker.log.splitlines() if " attempt " in line]


def time_of(line: str) -> float:
    return datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f").timestamp()


def carried_by(worker: Worker) -> list[str]:
    """The runs that it has claimed and not ended, by its log."""
    steps = [line.rpartition("workers.runs: ")[2].split() for line in worker.log.splitlines()]
    begun = [words[0] for words in steps if words[1:2] == ["attempt"]]
    ended = {words[0] for words in steps if words[1:2] == ["run.completed"]}
    return [run for run in begun if run not in ended]


async def test_a_worker_takes_no_more_than_its_slots_and_others_take_over(start_system: StartSystem) -> None:
    """200 runs of a second for ten slots; a second worker joins, and the first one is killed."""
    system = start_system(AGENTS, env={"BFF_MAX_RUNS": "10"})
    system.scripted.script("long", {"tokens": 11, "pace": 0.1})
    async with browser() as client:
        await start_runs(client, system, "long", 200)
        await asyncio.to_thread(system.scripted.wait_for_calls, "long", 25)
    stats = system.scripted.stats()
    assert stats["max_open"] == stats["max_connections"] == 10
    first, second = system.workers[0], system.add_worker()
    first_call = await eventually(lambda: claims_of(second), 10, "the second worker has begun")
    begun_after = first_call[0] - ready_at(second)
    report("second worker begins after ms", round(1000 * begun_after, 1))
    assert begun_after < 0.05 * ON_A_BUSY_MACHINE
    first.kill()
    killed = time.monotonic()
    lost = carried_by(first)
    assert 0 < len(lost) <= 10
    with system.redis.client() as redis:

        def is_cared_for(run: str) -> bool:
            end, attempts = redis.hmget(keys.meta(run), "end", "attempts")
            return bool(end) or int(attempts) > 1

        await eventually(lambda: all(map(is_cared_for, lost)), 30, "the lost runs go on")
        took = time.monotonic() - killed
        assert redis.zcard(keys.QUEUE) > 0, "nothing waited any more that they could overtake"
    report("lost runs go on after s", round(took, 2))
    assert took < 8 * ON_A_BUSY_MACHINE


async def test_a_full_worker_does_not_delay_a_free_one(start_system: StartSystem) -> None:
    system = start_system(AGENTS, workers=0)
    system.scripted.script("long", HELD)
    system.scripted.script("short", SHORT)
    system.add_worker(BFF_MAX_RUNS="120")
    async with browser() as client:
        held = await start_runs(client, system, "long", 120)
        await asyncio.to_thread(system.scripted.wait_for_calls, "long", 120)
        system.add_worker()
        delays = []
        for _ in range(20):
            asked = time.time()
            run = await start_run(client, system.url, "short")
            delays.append(await started_at(client, system, run) - asked)
        system.scripted.release("long")
        await all_watched(client, system, held)
    report("dispatch ms", [round(1000 * delay, 1) for delay in sorted(delays)])
    assert median(delays) < 0.05 * ON_A_BUSY_MACHINE


async def test_whatever_the_queue_holds_every_run_is_carried_once(
    start_system: StartSystem, tmp_path: Path
) -> None:
    """Jobs that expired, name no function, cannot be read, would run code, were tried, taken or lost."""
    canary = tmp_path / "canary"

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (canary,)

    def body_is(body: bytes) -> Forgery:
        return lambda client, _, job: client.set(job_key_prefix + job, body, px=60_000)

    def many(client: redis.Redis, run: str, job: str) -> None:
        for number in range(20):
            body = serialize_job(jobs.FUNCTION, (run,), {}, None, 0, serializer=jobs.dumps)
            client.set(f"{job_key_prefix}{run}:{number}", body, px=60_000)
            client.zadd(keys.QUEUE, {f"{run}:{number}": number + 1})
            client.rpush(keys.READY, f"{run}:{number}")

    forgeries: list[Forgery] = [
        lambda client, _, job: client.delete(job_key_prefix + job),
        body_is(serialize_job("no_such_function", (), {}, None, 0, serializer=jobs.dumps)),
        body_is(b"\x00 not a job"),
        body_is(pickle.dumps(Bomb())),
        body_is(pickle.dumps({"t": None, "f": jobs.FUNCTION, "a": (Bomb(),), "k": {}, "et": 0})),
        lambda client, _, job: client.set(retry_key_prefix + job, 5, px=60_000),
        lambda client, _, job: client.set(in_progress_key_prefix + job, 1, px=2_000),
        lambda client, _, job: client.zrem(keys.QUEUE, job),
        many,
    ]
    system = start_system(AGENTS, workers=0)
    system.scripted.script("short", SHORT)
    async with browser() as client:
        runs = await start_runs(client, system, "short", len(forgeries))
        with system.redis.client() as redis_client:
            for run, forge in zip(runs, forgeries, strict=True):
                forge(redis_client, run, redis_client.hget(keys.meta(run), "job"))
        system.add_worker()
        began = time.monotonic()
        viewers = await all_watched(client, system, runs)
        assert time.monotonic() - began < 10 * ON_A_BUSY_MACHINE
        with system.redis.client() as redis_client:
            await eventually(lambda: redis_client.zcard(keys.QUEUE) == 0, 10, "the queue is empty")
    assert {viewer.types[-1] for viewer in viewers} == {"run.completed"}
    assert {viewer.types.count("run.started") for viewer in viewers} == {1}
    assert len(system.scripted.calls("short")) == len(runs)
    assert not canary.exists()


async def test_a_lost_queue_loses_no_run(start_system: StartSystem, redis_server: RedisServer) -> None:
    queue_url = redis_server.url.removesuffix("/0") + "/1"
    system = start_system(AGENTS, workers=0, env={"BFF_QUEUE_URL": queue_url})
    system.scripted.script("short", SHORT)
    async with browser() as client:
        runs = await start_runs(client, system, "short", 50)
        with redis.Redis.from_url(queue_url) as queue:
            assert queue.zcard(keys.QUEUE) == 50
            queue.flushdb()
        system.add_worker()
        viewers = await all_watched(client, system, runs)
    assert {viewer.types[-1] for viewer in viewers} == {"run.completed"}
    assert len(system.scripted.calls("short")) == 50


async def test_a_worker_takes_runs_again_when_redis_was_out(
    own_redis: RedisServer, start_system: StartSystem
) -> None:
    """The same process, and what it carries loses nothing."""
    system = start_system(AGENTS, redis=own_redis)
    system.scripted.script("long", {"tokens": 30, "hold_after": 9})
    system.scripted.script("short", SHORT)
    worker = system.workers[0]
    pid = worker.pid
    async with browser() as client:
        held = await start_run(client, system.url, "long")
        await asyncio.to_thread(system.scripted.wait_for_calls, "long")
        own_redis.restart()
        back = time.time()
        run = await start_when_possible(client, system, "short")
        taken = await started_at(client, system, run) - back
        report("taken again after s", round(taken, 2))
        assert taken < 3 * ON_A_BUSY_MACHINE
        system.scripted.release("long")
        viewer = await watched(client, system.url, held)
    assert viewer.text == "".join(f"tok{number} " for number in range(30))
    assert (viewer.resets, viewer.types.count("run.started")) == ([], 1)
    assert (worker.pid, worker.running) == (pid, True)


async def test_connections_cut_at_any_moment_cost_no_slot(start_system: StartSystem) -> None:
    system = start_system(AGENTS, env={"BFF_MAX_RUNS": "3"})
    system.scripted.script("short", SHORT)
    system.scripted.script("long", HELD)
    async with browser() as client:

        async def cut_for_ever() -> None:
            with system.redis.client() as redis_client:
                while True:
                    redis_client.client_kill_filter(_type="normal", skipme=True)
                    await asyncio.sleep(0.02)

        cutting = asyncio.create_task(cut_for_ever())
        runs = [await start_when_possible(client, system, "short") for _ in range(30)]
        cutting.cancel()
        viewers = await all_watched(client, system, runs)
        assert {viewer.types[-1] for viewer in viewers} == {"run.completed"}
        held = await start_runs(client, system, "long", 3)
        await asyncio.to_thread(system.scripted.wait_for_calls, "long", 3)
        system.scripted.release("long")
        await all_watched(client, system, held)


async def test_a_backlog_is_told_limited_and_ended(start_system: StartSystem) -> None:
    """Also when there is no worker at all."""
    system = start_system(AGENTS, workers=0, env={"BFF_MAX_QUEUE": "3"})
    async with browser() as client:
        runs = await start_runs(client, system, "impatient", 3)
        refused = await client.post(f"{system.url}/v1/runs", json={"agent": "short", "input": "hello"})
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) > 0
        began = time.monotonic()
        viewers = await all_watched(client, system, runs)
        assert time.monotonic() - began < 10 * ON_A_BUSY_MACHINE
    positions = [[f.data["position"] for f in viewer.frames if f.event == "run.queued"] for viewer in viewers]
    assert positions == [[], [1], [2]]
    for viewer in viewers:
        assert viewer.terminal is not None
        assert (viewer.terminal.event, viewer.terminal.data["code"]) == ("run.failed", "expired")
