"""One subscribing connection of a process, for all channels it follows.

redis-py's asyncio PubSub cannot follow shard channels, so this is a small class of ours over its
connection, which keeps URL, access and TLS in one place. What a channel says is only ever a hint
(`shared/stream_log.py` holds the truth), so a lost connection costs nothing but a look.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from typing import Any

from redis.asyncio import Connection
from redis.exceptions import RedisError

from shared.broker import Broker

log = logging.getLogger(__name__)

PING_EVERY = 2.0
SILENT_FOR = 6.0
"""Seconds without any reply, pings included, after which the connection counts as dead."""

_FOLLOWED = b"followed"
"""Sent behind the subscriptions of a new connection: when it comes back, the server has taken them all."""


class Subscription:
    """Follows channels until closed; connects again by itself.

    `on_message(channel, payload)` is called for each message, `on_connected()` each time after all
    channels are followed again, since messages may have been missed.
    """

    def __init__(
        self,
        broker: Broker,
        on_message: Callable[[str, bytes], None],
        on_connected: Callable[[], None],
        *,
        sharded: bool,
    ) -> None:
        self._broker = broker
        self._on_message = on_message
        self._on_connected = on_connected
        self._prefix = "S" if sharded else ""
        self._channels: set[str] = set()
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}
        self._connection: Connection | None = None
        self._heard = 0.0

    async def add(self, channel: str, timeout: float) -> None:
        """Follow a channel; returns when the server confirmed it, or after `timeout` seconds."""
        self._channels.add(channel)
        confirmed = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(channel, []).append(confirmed)
        try:
            await self._send("SUBSCRIBE", channel)
            async with asyncio.timeout(timeout):
                await confirmed
        except TimeoutError:
            log.info("no confirmation for a channel yet; its stream is read instead")

    async def remove(self, channel: str) -> None:
        """Follow a channel no longer."""
        self._channels.discard(channel)
        for future in self._waiting.pop(channel, ()):
            future.cancel()
        await self._send("UNSUBSCRIBE", channel)

    async def run(self) -> None:
        """Hold the connection until cancelled."""
        pause = 0.05
        while True:
            connection = self._broker.connection()
            try:
                await self._follow(connection)
            except (RedisError, OSError, TimeoutError) as error:
                log.warning("the subscription was lost, connecting again: %s", type(error).__name__)
                if time.monotonic() - self._heard < SILENT_FOR:
                    pause = 0.05
            finally:
                self._connection = None
                await connection.disconnect(nowait=True)
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - spreads load, guards nothing
            pause = min(pause * 2, 1.0)

    async def _follow(self, connection: Any) -> None:
        async with asyncio.timeout(SILENT_FOR):
            await connection.connect()
        self._connection = connection
        for channel in list(self._channels):
            await self._send("SUBSCRIBE", channel)
        await connection.send_command("PING", _FOLLOWED, check_health=False)
        self._heard = time.monotonic()
        pings = asyncio.create_task(self._ping(connection))
        try:
            while True:
                self._take(await connection.read_response(disable_decoding=True))
        finally:
            pings.cancel()

    async def _ping(self, connection: Connection) -> None:
        """Ask for a sign of life; without one the connection is closed, which ends the reading."""
        while time.monotonic() - self._heard < SILENT_FOR:
            await asyncio.sleep(PING_EVERY)
            try:
                await connection.send_command("PING", check_health=False)
            except (RedisError, OSError):
                break
        await connection.disconnect(nowait=True)

    async def _send(self, verb: str, channel: str) -> None:
        connection = self._connection
        if connection is None:
            return
        try:
            await connection.send_command(self._prefix + verb, channel, check_health=False)
        except (RedisError, OSError):
            log.debug("the subscription's connection is broken; it will be made again")

    def _take(self, reply: Any) -> None:
        self._heard = time.monotonic()
        if reply in (_FOLLOWED, [b"pong", _FOLLOWED]):
            self._on_connected()
        if not isinstance(reply, list) or len(reply) != 3:
            return
        kind, channel, payload = reply
        if kind.endswith(b"message"):
            self._on_message(channel.decode(), payload)
        elif not kind.endswith(b"unsubscribe"):
            for future in self._waiting.pop(channel.decode(), ()):
                if not future.done():
                    future.set_result(None)
