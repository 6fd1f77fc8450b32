"""The subscribing connection: it comes back by itself, also when nobody says that it is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from shared.broker import Broker
from shared.subscription import Subscription
from tests.support.fault_proxy import FaultProxy
from tests.support.redis_server import RedisServer
from tests.support.wait import eventually


class Listener:
    """What a subscription behind a proxy said."""

    def __init__(self, server: RedisServer, broker: Broker, *, sharded: bool) -> None:
        self.heard: list[tuple[str, bytes]] = []
        self.connected = 0
        self._admin: Any = server.client()
        self._verb = "SPUBLISH" if sharded else "PUBLISH"
        self.subscription = Subscription(
            broker, lambda *message: self.heard.append(message), self._on_connected, sharded=sharded
        )

    def publish(self, channel: str, text: str) -> int:
        """Publish, past the proxy; gives the number of those who got it."""
        return int(self._admin.execute_command(self._verb, channel, text))

    async def hears(self, channel: str, text: str) -> None:
        """It gets what is published now."""
        assert self.publish(channel, text) == 1
        await eventually(lambda: (channel, text.encode()) in self.heard, 5, f"{text} is heard")

    def close(self) -> None:
        self._admin.close()

    def _on_connected(self) -> None:
        self.connected += 1


@pytest.fixture
def proxy(redis_server: RedisServer) -> Iterator[FaultProxy]:
    with FaultProxy(redis_server.port) as proxy:
        yield proxy


@asynccontextmanager
async def listening(
    server: RedisServer, proxy: FaultProxy, *, sharded: bool = True
) -> AsyncIterator[Listener]:
    broker = Broker.open(server.url_at(proxy.port), timeout=0.5)
    listener = Listener(server, broker, sharded=sharded)
    running = asyncio.create_task(listener.subscription.run())
    try:
        await eventually(lambda: listener.connected, 5, "it is connected")
        yield listener
    finally:
        running.cancel()
        await asyncio.wait([running])
        listener.close()
        await broker.close()


@pytest.mark.parametrize("sharded", [True, False])
async def test_what_is_published_on_followed_channels_is_heard(
    redis_server: RedisServer, proxy: FaultProxy, sharded: bool
) -> None:
    async with listening(redis_server, proxy, sharded=sharded) as listener:
        await listener.subscription.add("a", 5)
        await listener.subscription.add("b", 5)
        await listener.hears("a", "one")
        await listener.hears("b", "two")
        await listener.subscription.remove("a")
        await eventually(lambda: listener.publish("a", "not yet") == 0, 5, "a is followed no longer")
        listener.publish("a", "three")
        await listener.hears("b", "four")
    assert [text for _, text in listener.heard if text != b"not yet"] == [b"one", b"two", b"four"]


async def test_a_cut_connection_comes_back_with_all_channels(
    redis_server: RedisServer, proxy: FaultProxy
) -> None:
    """`on_connected` comes when the server follows again, so that a look behind it misses nothing."""
    async with listening(redis_server, proxy) as listener:
        for channel in ("a", "b"):
            await listener.subscription.add(channel, 5)
        for cut in range(1, 6):
            proxy.close_all()
            await eventually(lambda cut=cut: listener.connected == cut + 1, 5, "it is connected again")  # type: ignore[misc]  # mypy cannot infer a lambda with a default
            for channel in ("a", "b"):
                await listener.hears(channel, f"after cut {cut}")


async def test_a_connection_that_says_nothing_is_given_up(
    redis_server: RedisServer, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half open: the other side is gone and nobody said so. Only pings that are not answered tell."""
    monkeypatch.setattr("shared.subscription.PING_EVERY", 0.05)
    monkeypatch.setattr("shared.subscription.SILENT_FOR", 0.3)
    async with listening(redis_server, proxy) as listener:
        await listener.subscription.add("a", 5)
        proxy.swallow = True
        await eventually(lambda: proxy.accepted >= 2, 5, "another connection is tried")
        proxy.swallow = False
        await eventually(lambda: listener.connected == 2, 5, "it is connected again")
        await listener.hears("a", "after")


async def test_an_idle_connection_is_kept(
    redis_server: RedisServer, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answered pings are signs of life enough, with and without a channel."""
    monkeypatch.setattr("shared.subscription.PING_EVERY", 0.02)
    monkeypatch.setattr("shared.subscription.SILENT_FOR", 0.4)
    loop = asyncio.get_running_loop()
    async with listening(redis_server, proxy) as listener:
        for _ in range(2):
            began = loop.time()
            await eventually(lambda began=began: loop.time() - began > 0.6, 5)  # type: ignore[misc]  # mypy cannot infer a lambda with a default
            assert proxy.accepted == 1
            await listener.subscription.add("a", 5)
        await listener.hears("a", "still here")


async def test_without_redis_a_channel_is_followed_later(
    redis_server: RedisServer, proxy: FaultProxy
) -> None:
    async with listening(redis_server, proxy) as listener:
        proxy.freeze()
        await listener.subscription.add("a", 0.1)
        proxy.thaw()
        await eventually(lambda: listener.publish("a", "late") == 1, 5, "the channel is followed")


async def test_a_message_that_its_hearer_cannot_take_does_not_silence_the_others(
    redis_server: RedisServer, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with listening(redis_server, proxy) as listener:
        await listener.subscription.add("a", 5)

        def cannot(channel: str, payload: bytes) -> None:
            raise ValueError("no")

        with monkeypatch.context() as patched:
            patched.setattr(listener.subscription, "_on_message", cannot)
            listener.publish("a", "bad")
            await listener.subscription.add("b", 5)
        await listener.hears("a", "good")
        assert listener.connected == 1
