"""One subscribing connection of a process, for all channels it follows.

redis-py's asyncio PubSub cannot follow shard channels, so this is a small class of ours over its
connection, which keeps URL, access and TLS in one place. What a channel says is only ever a hint
(`shared/stream_log.py` holds the truth), so a lost connection costs nothing but a look.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable
from typing import Any

from redis.exceptions import RedisError

from shared.broker import Broker
from shared.wire import Line

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
        self._line: Line | None = None
        self._heard = 0.0

    async def add(self, channel: str, timeout: float) -> None:
        """Follow a channel; returns when the server confirmed it, or after `timeout` seconds."""
        self._channels.add(channel)
        confirmed = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(channel, []).append(confirmed)
        try:
            self._send("SUBSCRIBE", channel)
            async with asyncio.timeout(timeout):
                await confirmed
        except TimeoutError:
            log.info("no confirmation for a channel yet; its stream is read instead")

    async def remove(self, channel: str) -> None:
        """Follow a channel no longer."""
        self._channels.discard(channel)
        for future in self._waiting.pop(channel, ()):
            future.cancel()
        self._send("UNSUBSCRIBE", channel)

    async def run(self) -> None:
        """Hold the connection until cancelled."""
        pause = 0.05
        while True:
            self._heard = time.monotonic()
            try:
                await self._follow()
            except (RedisError, OSError, TimeoutError) as error:
                log.debug("the subscription cannot be made: %s", type(error).__name__)
            else:
                log.warning("the subscription was lost, connecting again")
                pause = 0.05
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - spreads load, guards nothing
            pause = min(pause * 2, 1.0)

    async def _follow(self) -> None:
        """Follow all channels until the connection is lost."""
        lost = asyncio.Event()
        self._line = line = await Line.open(self._broker.connection(), self._take, lost.set)
        try:
            for channel in self._channels:
                self._send("SUBSCRIBE", channel)
            line.send([("PING", _FOLLOWED)])
            while not lost.is_set() and time.monotonic() - self._heard < SILENT_FOR:
                line.send([("PING",)])
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(PING_EVERY):
                        await lost.wait()
        finally:
            self._line = None
            line.close()

    def _send(self, verb: str, channel: str) -> None:
        if self._line is not None and not self._line.closed:
            self._line.send([(self._prefix + verb, channel)])

    def _tell(self, channel: str, payload: bytes) -> None:
        """Pass a message on. Whoever fails over it must not keep the others from hearing theirs."""
        try:
            self._on_message(channel, payload)
        except Exception:
            log.exception("a message on %s could not be taken", channel)

    def _take(self, reply: Any) -> None:
        self._heard = time.monotonic()
        if reply in (_FOLLOWED, [b"pong", _FOLLOWED]):
            self._on_connected()
        if not isinstance(reply, list) or len(reply) != 3:
            return
        kind, channel, payload = reply
        if kind.endswith(b"message"):
            self._tell(channel.decode(), payload)
        elif not kind.endswith(b"unsubscribe"):
            for future in self._waiting.pop(channel.decode(), ()):
                if not future.done():
                    future.set_result(None)
