"""Redis stops, forgets, freezes, fills up or refuses while runs are under way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from tests.support.fault_proxy import FaultProxy
from tests.support.redis_server import RedisServer, free_port
from tests.support.scripted_agents import AgentProcess
from tests.support.sse_client import Viewer
from tests.support.system import System, browser, events_of, start_run, text_has_begun, watched
from tests.support.wait import eventually
from tests.system.conftest import StartSystem

TOKENS = 100
TEXT = "".join(f"tok{number} " for number in range(TOKENS))

BEATS = {"BFF_HEARTBEAT": "0.5"}
"""Heartbeats come often enough to be seen in a short outage."""


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[Callable[..., RedisServer]]:
    """Starts a server of the test's own; options as for `RedisServer`."""
    servers: list[RedisServer] = []
    directory = tmp_path / "redis"
    directory.mkdir()

    def start(**options: Any) -> RedisServer:
        servers.append(RedisServer(directory, **options))
        return servers[-1].start()

    yield start
    for server in servers:
        server.close()


class Watched:
    """A run that somebody watches to its end."""

    def __init__(self, run: str, viewer: Viewer, watching: asyncio.Task[None]) -> None:
        self.run, self.viewer, self.watching = run, viewer, watching

    def attempts(self) -> int:
        """How many attempts the viewer was told of."""
        return self.viewer.types.count("run.started")

    async def end(self, seconds: float = 30.0) -> str:
        """The terminal event's type."""
        await asyncio.wait_for(self.watching, seconds)
        return self.viewer.types[-1]

    async def completes(self) -> None:
        """It must: the whole text, once."""
        assert await self.end() == "run.completed", self.viewer.frames[-1]
        assert self.viewer.text == TEXT
        assert self.viewer.resets == []


async def said(run: Watched, token: int) -> None:
    """Wait until the viewer has seen that token."""
    await eventually(lambda: f"tok{token} " in run.viewer.text, 15, f"token {token} is shown")


async def begun(client: httpx.AsyncClient, url: str, agent: str = "long") -> Watched:
    """A run whose first text is shown."""
    run, viewer = await start_run(client, url, agent), Viewer()
    watching = asyncio.create_task(viewer.watch_to_end(client, events_of(url, run), connections=100))
    await text_has_begun(viewer)
    return Watched(run, viewer, watching)


@asynccontextmanager
async def running(system: System, count: int, **script: object) -> AsyncIterator[list[Watched]]:
    """That many runs, in the middle of about two seconds of text."""
    system.scripted.script("long", {"tokens": TOKENS, "pace": 0.02, **script})
    async with browser() as client:
        runs = list(await asyncio.gather(*(begun(client, system.url) for _ in range(count))))
        try:
            yield runs
        finally:
            for one in runs:
                one.watching.cancel()


ORDER = {"agent": "assistant", "input": "hello"}


async def refused(system: System, code: str) -> None:
    """A new run is refused for the moment."""
    async with browser() as client:
        answer = await client.post(f"{system.url}/v1/runs", json=ORDER)
    assert answer.status_code == 503
    assert answer.json()["code"] == code
    assert "retry-after" in answer.headers


async def still_works(system: System) -> None:
    """A new run is told from start to end."""
    async with browser() as client:

        async def starts() -> str | None:
            answer = await client.post(f"{system.url}/v1/runs", json=ORDER)
            return str(answer.headers["x-run-id"]) if answer.status_code == 201 else None

        run = await eventually(starts, 15, "a run is accepted again")
        assert run is not None
        assert (await watched(client, system.url, run)).types[-1] == "run.completed"


# It goes away and comes back.


async def test_redis_with_a_log_of_its_own_restarts_unnoticed(
    start_system: StartSystem, own_redis: Callable[..., RedisServer]
) -> None:
    """With `appendfsync always` nothing that was acknowledged is lost: a pause, and then the rest."""
    server = own_redis(appendonly=True, extra=("--appendfsync", "always"))
    system = start_system(redis=server)
    async with running(system, 10) as runs:
        worker = system.workers[0].pid
        for token, end in ((10, server.stop), (40, server.kill)):
            await said(runs[0], token)
            end()
            server.start()
        for one in runs:
            await one.completes()
            assert one.attempts() == 1
    assert len(system.scripted.calls("long")) == 10
    assert system.workers[0].running
    assert system.workers[0].pid == worker
    await still_works(system)


async def test_what_redis_forgets_is_written_again(
    start_system: StartSystem, own_redis: Callable[..., RedisServer]
) -> None:
    """Without persistence the worker still has every event of its attempt."""
    server = own_redis()
    system = start_system(redis=server)
    async with running(system, 10) as runs:
        server.restart()
        for one in runs:
            await one.completes()
            assert one.attempts() == 1
        server.restart()
        await is_whole_again(system, runs[-1].run)
    assert len(system.scripted.calls("long")) == 10
    await still_works(system)


async def is_whole_again(system: System, run: str) -> None:
    """A run that has just ended is kept by its worker for a while."""
    async with browser() as client:

        async def text() -> str:
            answer = await client.get(f"{system.url}/v1/runs/{run}")
            return str(answer.json()["text"]) if answer.status_code == 200 else ""

        await eventually(text, 15, "the run is there again")
        again = await watched(client, system.url, run)
    assert (again.text, again.types[-1]) == (TEXT, "run.completed")


async def test_a_frozen_redis_makes_nobody_take_a_run_over(
    start_system: StartSystem, own_redis: Callable[..., RedisServer]
) -> None:
    """Seven seconds are longer than the lease, with the default settings: same attempt, no failure."""
    server = own_redis()
    system = start_system(redis=server, gateways=2, workers=2, env=BEATS)
    async with running(system, 10) as runs:
        server.pause()
        await asyncio.sleep(7)  # the length of the freeze is the subject
        server.resume()
        for one in runs:
            await one.completes()
            assert one.attempts() == 1
            assert one.viewer.comments >= 8, "heartbeats go on"
    assert len(system.scripted.calls("long")) == 10


# It has no room, or is of the wrong kind.


async def test_memory_that_is_used_up_ends_runs_and_refuses_new_ones(
    start_system: StartSystem, own_redis: Callable[..., RedisServer]
) -> None:
    server = own_redis()
    system = start_system(redis=server)
    async with running(system, 3, tokens=400) as runs:
        with server.client() as admin:
            admin.config_set("maxmemory", 1)
            for one in runs:
                assert await one.end() == "run.failed"
                assert one.viewer.terminal is not None
                assert one.viewer.terminal.data["code"] == "storage_full"
            await refused(system, "storage_full")
            admin.config_set("maxmemory", 0)
    await still_works(system)


async def test_a_redis_that_drops_keys_is_refused_at_start(
    start_system: StartSystem, own_redis: Callable[..., RedisServer]
) -> None:
    server = own_redis(extra=("--maxmemory-policy", "allkeys-lru"))
    system = start_system(redis=server, gateways=0, workers=0)
    reason = "maxmemory-policy is allkeys-lru.*Set `maxmemory-policy noeviction`"
    with pytest.raises(AssertionError, match=reason):
        system.add_gateway()
    with pytest.raises(RuntimeError, match=reason):
        system.add_worker()
    for process in (*system.gateways, *system.workers):
        assert process.process.wait(5) > 0
        assert "Traceback" not in process.log


async def test_no_connection_left_at_redis_is_answered_with_503_and_passes(
    start_system: StartSystem, own_redis: Callable[..., RedisServer]
) -> None:
    server = own_redis()
    system = start_system(redis=server)
    async with running(system, 2) as runs:
        with server.client() as admin:
            admin.config_set("maxclients", 1)
            for kind in ("normal", "pubsub"):
                admin.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
            await refused(system, "broker_unavailable")
            admin.config_set("maxclients", 1000)
        for one in runs:
            await one.completes()
    await still_works(system)


# A stream is taken away.


def delete_stream(admin: redis.Redis, run: str) -> None:
    admin.delete(f"bff:{{{run}}}:s")


def expire_stream(admin: redis.Redis, run: str) -> None:
    admin.pexpire(f"bff:{{{run}}}:s", 1)


def delete_all(admin: redis.Redis, run: str) -> None:
    admin.delete(*(f"bff:{{{run}}}:{key}" for key in "slmrv"))


def replace_by_text(admin: redis.Redis, run: str) -> None:
    admin.set(f"bff:{{{run}}}:s", "not a stream", ex=60)


async def test_streams_that_are_taken_away_end_for_their_viewers(
    start_system: StartSystem, redis_server: RedisServer
) -> None:
    """Within five seconds, three times that here; nobody makes them again, and other runs go on."""
    ways = (delete_stream, expire_stream, delete_all, replace_by_text)
    system = start_system()
    async with running(system, len(ways) + 1, tokens=300) as (other, *lost):
        with redis_server.client() as admin:
            for take, one in zip(ways, lost, strict=True):
                take(admin, one.run)
            for one in lost:
                assert await one.end(5 * 3) == "run.failed"
                assert one.viewer.terminal is not None
                assert one.viewer.terminal.data["code"] == "gone"
            agents = system.scripted
            await eventually(lambda: left_calls(agents) == len(ways), 15, "the worker leaves their agents")
            for one in lost:
                assert admin.type(f"bff:{{{one.run}}}:s") != "stream"
        assert await other.end() == "run.completed"
        assert other.viewer.text.startswith(TEXT)
        assert other.viewer.resets == []


def left_calls(agents: AgentProcess) -> int:
    """How many calls of the agent were ended by us."""
    return [call["ended_by"] for call in agents.calls("long")].count("client")


# The network between.


async def test_lost_replies_double_nothing(start_system: StartSystem, redis_server: RedisServer) -> None:
    """The worker's appends are carried out, and their answers lost, again and again."""
    with FaultProxy(redis_server.port) as proxy:
        system = start_system(workers=0)
        system.add_worker(BFF_REDIS_URL=redis_server.url_at(proxy.port))
        async with running(system, 3) as runs:
            for seen in range(10, 80, 10):
                await said(runs[0], seen)
                proxy.drop_next_reply()
            for one in runs:
                await one.completes()
                assert one.attempts() == 1
    assert len(system.scripted.calls("long")) == 3


async def test_a_gateway_cut_off_from_redis_goes_on_afterwards(
    start_system: StartSystem, redis_server: RedisServer
) -> None:
    """Its link is cut 20 times, then dead for a while: heartbeats, and then the rest."""
    with FaultProxy(redis_server.port) as proxy:
        system = start_system(gateways=0)
        system.add_gateway(BFF_REDIS_URL=redis_server.url_at(proxy.port), **BEATS)
        async with running(system, 3, hold_after=70) as runs:
            for cut in range(20):
                await said(runs[0], 2 * cut)
                proxy.close_all()
            for one in runs:
                await said(one, 68)
            proxy.freeze()
            system.scripted.release("long")
            before = [one.viewer.bytes_read for one in runs]
            for one, read in zip(runs, before, strict=True):
                await more_than(one, read)
            proxy.thaw()
            for one in runs:
                await one.completes()


async def more_than(run: Watched, read: int) -> None:
    """Wait for a heartbeat."""
    await eventually(lambda: run.viewer.bytes_read > read, 15, "heartbeats go on")


# It answers, but not what was asked.


@contextmanager
def busy(server: RedisServer) -> Iterator[None]:
    """BUSY: somebody's script does not end."""
    with server.client() as admin, server.client() as caller, ThreadPoolExecutor(1) as pool:
        admin.config_set("lua-time-limit", 10)
        loop = pool.submit(caller.eval, "while true do end", 0)
        yield
        admin.script_kill()
        assert isinstance(loop.exception(10), redis.ResponseError)


@contextmanager
def replica(server: RedisServer) -> Iterator[None]:
    """READONLY: it follows another server, which is not there."""
    with server.client() as admin:
        admin.replicaof("127.0.0.1", free_port())
        yield
        admin.replicaof("NO", "ONE")


@contextmanager
def silent_replica(server: RedisServer) -> Iterator[None]:
    """MASTERDOWN: the same, and it does not even let anybody read."""
    with server.client() as admin:
        admin.config_set("replica-serve-stale-data", "no")
        admin.replicaof("127.0.0.1", free_port())
        yield
        admin.replicaof("NO", "ONE")


@contextmanager
def alone(server: RedisServer) -> Iterator[None]:
    """NOREPLICAS: it wants one that it has not."""
    with server.client() as admin:
        admin.config_set("min-replicas-to-write", 1)
        yield
        admin.config_set("min-replicas-to-write", 0)


@contextmanager
def forgetful(server: RedisServer) -> Iterator[None]:
    """NOSCRIPT: it has forgotten the scripts."""
    with server.client() as admin:
        admin.script_flush()
        yield


async def test_refusals_that_pass_are_waited_for(
    start_system: StartSystem, own_redis: Callable[..., RedisServer]
) -> None:
    server = own_redis()
    system = start_system(redis=server)
    async with running(system, 2, pace=0.05) as runs:
        for out in (busy, replica, silent_replica, alone):
            told = outages(system)
            with out(server):
                await eventually(partial(felt, system, told), 15, str(out.__doc__))
            with forgetful(server):
                await goes_on(runs[0])
        for one in runs:
            await one.completes()
            assert one.attempts() == 1
    await still_works(system)


def outages(system: System) -> int:
    """How often the worker could not write."""
    return system.workers[0].log.count("leases could not be renewed")


def felt(system: System, before: int) -> bool:
    """The worker has been refused more than once since."""
    return outages(system) >= before + 2


async def goes_on(run: Watched) -> None:
    """Wait for more text."""
    before = len(run.viewer.text)
    await eventually(lambda: len(run.viewer.text) > before, 15, "the text goes on")
