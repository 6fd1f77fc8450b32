"""Calls on one Redis: each with its own deadline, each reply to its own caller, errors as ours."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from fakeredis import FakeAsyncRedis, FakeServer
from redis import exceptions as redis_errors

from shared.broker import Broker, Script, ScriptCall, check, patiently, translated
from shared.errors import BrokerError, BrokerFull, BrokerUnavailable, BrokerUnfit, WrongType
from shared.wire import ReplyError
from tests.support.fault_proxy import FaultProxy
from tests.support.redis_server import RedisServer
from tests.support.wait import eventually


@pytest.fixture
async def broker(redis_server: RedisServer) -> AsyncIterator[Broker]:
    broker = Broker.open(redis_server.url)
    yield broker
    await broker.close()


@pytest.fixture
def proxy(redis_server: RedisServer) -> Iterator[FaultProxy]:
    with FaultProxy(redis_server.port) as proxy:
        yield proxy


@pytest.fixture
async def distant(redis_server: RedisServer, proxy: FaultProxy) -> AsyncIterator[Broker]:
    """A broker behind the proxy, whose calls may take half a second."""
    broker = Broker.open(redis_server.url_at(proxy.port), timeout=0.5)
    yield broker
    await broker.close()


async def test_a_call_that_is_cancelled_leaves_nobody_another_s_reply(
    redis_server: RedisServer, proxy: FaultProxy
) -> None:
    """300 calls cancelled at random moments of a slow connection, every other reply checked."""
    proxy.delay = 0.02
    chance = random.Random(8)
    broker = Broker.open(redis_server.url_at(proxy.port))

    async def ask(number: int) -> bool:
        said = f"said by {number}".encode()
        replies = await broker.calls([("ECHO", said), ("ECHO", said + b" again")])
        assert replies == [said, said + b" again"]
        return True

    async def ask_and_leave(number: int) -> bool:
        task = asyncio.create_task(ask(number))
        await asyncio.sleep(chance.random() * 0.15)
        task.cancel()
        with suppress(asyncio.CancelledError):
            return await task
        return False

    async def caller(first: int) -> list[bool]:
        """Cancels 10 calls, and makes one that is not cancelled after each."""
        left = []
        for number in range(first, first + 10):
            left.append(await ask_and_leave(number))
            assert await ask(-number)
        return left

    answered = await asyncio.gather(*(caller(10 * i) for i in range(30)))
    await broker.close()
    assert 0 < sum(map(sum, answered)) < 300


async def test_many_calls_at_once_need_one_connection(redis_server: RedisServer, broker: Broker) -> None:
    await broker.call("PING")
    with redis_server.client() as admin:
        before = admin.info("stats")["total_connections_received"]
        replies = await asyncio.gather(*(broker.call("ECHO", str(i)) for i in range(500)))
        assert replies == [str(i).encode() for i in range(500)]
        assert admin.info("stats")["total_connections_received"] == before


async def test_a_call_has_a_deadline(distant: Broker, proxy: FaultProxy) -> None:
    await distant.call("PING")
    proxy.freeze()
    began = time.monotonic()
    with pytest.raises(BrokerUnavailable, match=r"within 0\.5 s"):
        await distant.call("PING")
    assert 0.4 < time.monotonic() - began < 1.5
    proxy.thaw()
    assert await distant.call("ECHO", "after") == b"after"


async def test_a_connection_that_is_never_greeted_is_given_up(
    distant: Broker, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What goes to a network that swallows it is lost: only another connection helps."""
    monkeypatch.setattr("shared.wire.CONNECT_TIMEOUT", 0.3)
    proxy.swallow = True
    with pytest.raises(BrokerUnavailable):
        await distant.call("PING")
    proxy.swallow = False

    async def answers() -> bool:
        with suppress(BrokerUnavailable):
            return bool(await distant.call("PING") == b"PONG")
        return False

    await eventually(answers, 5, "the broker answers again")


async def test_a_lost_connection_fails_who_waits_and_is_made_again(
    distant: Broker, proxy: FaultProxy
) -> None:
    await distant.call("PING")
    proxy.drop_next_reply()
    with pytest.raises(BrokerUnavailable, match="not available"):
        await distant.call("INCR", "counter")
    assert await distant.call("GET", "counter") == b"1"


async def test_nobody_there_is_unavailable() -> None:
    broker = Broker.open("redis://127.0.0.1:1/0", timeout=0.5)
    with pytest.raises(BrokerUnavailable):
        await broker.call("PING")
    with pytest.raises(BrokerUnavailable):
        await broker.pop("list", 1)
    await broker.close()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ReplyError("OOM command not allowed when used memory > 'maxmemory'."), BrokerFull),
        (redis_errors.OutOfMemoryError("command not allowed"), BrokerFull),
        (ReplyError("NOAUTH Authentication required."), BrokerUnfit),
        (ReplyError("NOPERM this user has no permissions"), BrokerUnfit),
        (redis_errors.AuthenticationError("invalid username-password pair"), BrokerUnfit),
        (ReplyError("WRONGTYPE Operation against a key holding the wrong kind of value"), WrongType),
        (ReplyError("ERR unknown command"), BrokerError),
        *(
            (ReplyError(f"{code} for the moment"), BrokerUnavailable)
            for code in ("LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "BUSY", "NOREPLICAS")
        ),
        (ReplyError("MISCONF Redis is configured to save RDB snapshots"), BrokerUnavailable),
        (ReplyError("UNBLOCKED force unblock from blocking operation"), BrokerUnavailable),
        (redis_errors.BusyLoadingError("Redis is loading the dataset in memory"), BrokerUnavailable),
        (redis_errors.ReadOnlyError("You can't write against a read only replica."), BrokerUnavailable),
        (redis_errors.ConnectionError("Error 111 connecting"), BrokerUnavailable),
        (ConnectionResetError("reset"), BrokerUnavailable),
    ],
)
def test_errors_become_ours(error: Exception, kind: type[BrokerError]) -> None:
    assert type(translated(error)) is kind


async def test_one_failed_command_leaves_the_others_their_replies(broker: Broker) -> None:
    await broker.call("SET", "text", "x", "PX", 60_000)
    first, wrong, last = await broker.replies([("ECHO", "a"), ("LPUSH", "text", "y"), ("ECHO", "b")])
    assert (first, last) == (b"a", b"b")
    assert isinstance(wrong, WrongType)
    with pytest.raises(WrongType):
        await broker.calls([("ECHO", "a"), ("LPUSH", "text", "y")])
    assert await broker.calls([]) == []


@pytest.fixture(params=["redis", "fakeredis"])
async def any_broker(request: pytest.FixtureRequest) -> AsyncIterator[Broker]:
    if request.param == "redis":
        broker = Broker.open(request.getfixturevalue("redis_server").url)
    else:
        broker = Broker(FakeAsyncRedis(server=FakeServer()))
    yield broker
    await broker.close()


def script(source: str) -> Script:
    return Script("test", source, hashlib.sha1(source.encode()).hexdigest())


async def test_scripts_that_the_server_does_not_know_are_sent(any_broker: Broker) -> None:
    double, wrong = script("return ARGV[1] .. ARGV[1]"), script("return redis.error_reply('ERR no')")
    calls = [ScriptCall(double, (), ("a",)), ScriptCall(wrong, (), ()), ScriptCall(double, (), ("b",))]
    for _ in range(2):
        first, error, last = await any_broker.run_all(calls)
        assert (first, last) == (b"aa", b"bb")
        assert isinstance(error, BrokerError)
    await any_broker.call("SCRIPT", "FLUSH")
    assert await any_broker.run(calls[0]) == b"aa"
    with pytest.raises(BrokerError, match="no"):
        await any_broker.run(calls[1])


async def test_pop_waits_for_an_element(broker: Broker) -> None:
    assert await broker.pop("list", 1) is None
    popping = asyncio.create_task(broker.pop("list", 5))
    await asyncio.gather(*(broker.call("PING") for _ in range(3)))
    await broker.call("RPUSH", "list", "x")
    assert await popping == b"x"


class Failing:
    """Fails so many times, then gives its count."""

    def __init__(self, times: int, error: BrokerError) -> None:
        self.times, self.error, self.calls = times, error, 0

    async def __call__(self) -> int:
        self.calls += 1
        if self.calls <= self.times:
            raise self.error
        return self.calls


async def test_patience_lasts_until_its_time() -> None:
    assert await patiently(Failing(3, BrokerUnavailable("out")), time.monotonic() + 10) == 4
    began = time.monotonic()
    with pytest.raises(BrokerUnavailable, match="out"):
        await patiently(Failing(1000, BrokerUnavailable("out")), began + 0.3)
    assert time.monotonic() - began < 1


@pytest.mark.parametrize("error", [BrokerFull("full"), BrokerUnfit("old"), BrokerError("wrong")])
async def test_what_does_not_pass_is_not_repeated(error: BrokerError) -> None:
    failing = Failing(1, error)
    with pytest.raises(type(error)):
        await patiently(failing, time.monotonic() + 10)
    assert failing.calls == 1


POLICIES = (
    "allkeys-lru",
    "allkeys-lfu",
    "allkeys-random",
    "volatile-lru",
    "volatile-lfu",
    "volatile-random",
    "volatile-ttl",
)


async def test_only_a_redis_that_keeps_all_keys_is_fit(redis_server: RedisServer, broker: Broker) -> None:
    """Each policy that evicts."""
    await check(broker)
    with redis_server.client() as admin:
        try:
            for policy in POLICIES:
                admin.config_set("maxmemory-policy", policy)
                with pytest.raises(BrokerUnfit, match=f"{policy}.*noeviction"):
                    await check(broker)
        finally:
            admin.config_set("maxmemory-policy", "noeviction")


async def test_a_redis_that_wants_a_password_is_unfit_without(tmp_path: Path) -> None:
    with RedisServer(tmp_path, password="secret") as server:
        stranger = Broker.open(f"redis://127.0.0.1:{server.port}/0")
        with pytest.raises(BrokerUnfit, match="refuses access"):
            await check(stranger)
        await stranger.close()
        friend = Broker.open(server.url)
        await check(friend)
        await friend.close()


async def test_a_server_that_still_loads_is_waited_for(tmp_path: Path) -> None:
    """LOADING, given by a real server that reads its file slowly."""
    options = ("--enable-debug-command", "yes", "--loading-process-events-interval-bytes", "1024")
    with RedisServer(tmp_path, extra=options) as server, server.client() as admin:
        admin.execute_command("DEBUG", "POPULATE", "200", "key", "1000")
        admin.config_set("key-load-delay", "5000")
        broker = Broker.open(server.url)
        loading = asyncio.create_task(asyncio.to_thread(admin.execute_command, "DEBUG", "RELOAD"))
        with pytest.raises(BrokerUnavailable, match="LOADING"):
            await until_refused(broker)
        assert await patiently(lambda: broker.call("STRLEN", "key:1"), time.monotonic() + 20)
        await loading
        await broker.close()


async def until_refused(broker: Broker) -> None:
    """Ask for a key, again and again. Raises what the broker raises."""
    while True:
        await broker.call("GET", "key:1")
