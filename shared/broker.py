"""One Redis: opened by URL, checked at start, every call with a deadline, its errors as ours.

A cancelled call closes its connection (redis-py does so on any exception while it reads), so the
next caller never finds another's reply.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, TypeVar

from redis import exceptions as redis_errors
from redis.asyncio import Connection, Redis

from shared.errors import BrokerError, BrokerFull, BrokerUnavailable, BrokerUnfit

log = logging.getLogger(__name__)

T = TypeVar("T")

_PASSING = ("LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "BUSY", "NOREPLICAS", "MISCONF")
"""Replies that a server gives while it is busy with itself (failure matrix W8)."""

_OLDEST = (7, 0)


@dataclass(frozen=True)
class Script:
    """A Lua script: sent by its digest, and whole when the server has forgotten it."""

    name: str
    source: str
    digest: str


def load_script(name: str, *, allow_oom: bool = False, with_flags: bool = True) -> Script:
    """Read `shared/lua/<name>.lua` behind the prelude.

    `allow_oom` lets it run when memory is full. `with_flags` writes the flags, which servers since
    7.0 read and the in-process fake does not.
    """
    folder = resources.files("shared") / "lua"
    head = f"#!lua flags={'allow-oom' if allow_oom else ''}\n" if with_flags else ""
    prelude = (folder / "prelude.lua").read_text("utf-8")
    source = head + prelude + (folder / f"{name}.lua").read_text("utf-8")
    return Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


@dataclass(frozen=True)
class ScriptCall:
    """One script with its keys and arguments."""

    script: Script
    keys: Sequence[str]
    args: Sequence[str | bytes | int]


class Broker:
    """Commands and scripts on one Redis. Each call raises BrokerError or one of its kinds."""

    def __init__(self, client: Redis, timeout: float = 3.0) -> None:
        self._client: Any = client  # redis-py's own types leave out half of what is called here
        self._timeout = timeout

    @classmethod
    def open(cls, url: str, timeout: float = 3.0, connections: int = 64) -> Broker:
        """A broker for `url`; connects when first used. `timeout` in seconds is for each call."""
        client = Redis.from_url(
            url,
            protocol=2,
            socket_connect_timeout=timeout,
            max_connections=connections,
            retry_on_timeout=False,
        )
        return cls(client, timeout)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    @property
    def client(self) -> Redis:
        """The redis-py client, for what has no call here."""
        client: Redis = self._client
        return client

    def connection(self) -> Connection:
        """A connection of its own, unconnected, for a subscription."""
        connection: Connection = self._client.connection_pool.make_connection()
        return connection

    async def call(self, *command: str | bytes | int | float) -> Any:
        """One command's reply."""
        return await self._within_deadline(lambda: self._client.execute_command(*command))

    async def calls(self, commands: Sequence[Sequence[str | bytes | int | float]]) -> list[Any]:
        """The replies of several commands in one round trip. Raises the first error among them."""

        async def send() -> list[Any]:
            async with self._client.pipeline(transaction=False) as pipe:
                for command in commands:
                    pipe.execute_command(*command)
                replies: list[Any] = await pipe.execute()
                return replies

        return await self._within_deadline(send) if commands else []

    async def run(self, call: ScriptCall) -> Any:
        """One script's reply."""
        return raised((await self.run_all([call]))[0])

    async def run_all(self, calls: Sequence[ScriptCall]) -> list[Any]:
        """The replies of several scripts in one round trip; a script's own error stands in its place."""
        replies = await self._evalsha(calls)
        missing = [i for i, reply in enumerate(replies) if isinstance(reply, redis_errors.NoScriptError)]
        if missing:
            for source in {calls[i].script.source for i in missing}:
                await self.call("SCRIPT", "LOAD", source)
            again = await self._evalsha([calls[i] for i in missing])
            for i, reply in zip(missing, again, strict=True):
                replies[i] = reply
        return [translated(reply) if isinstance(reply, Exception) else reply for reply in replies]

    async def _evalsha(self, calls: Sequence[ScriptCall]) -> list[Any]:
        async def send() -> list[Any]:
            async with self._client.pipeline(transaction=False) as pipe:
                for call in calls:
                    pipe.execute_command(
                        "EVALSHA", call.script.digest, len(call.keys), *call.keys, *call.args
                    )
                replies: list[Any] = await pipe.execute(raise_on_error=False)
                return replies

        return await self._within_deadline(send) if calls else []

    async def _within_deadline(self, call: Callable[[], Awaitable[T]]) -> T:
        try:
            async with asyncio.timeout(self._timeout):
                return await call()
        except TimeoutError:
            raise BrokerUnavailable(f"Redis did not answer within {self._timeout:g} s") from None
        except (redis_errors.RedisError, OSError) as error:
            raise translated(error) from None


def translated(error: Exception) -> BrokerError:
    """Redis' or the network's exception as one of ours."""
    text = str(error)
    if isinstance(error, redis_errors.OutOfMemoryError) or text.startswith("OOM"):
        return BrokerFull("Redis has used up its memory")
    passing = (redis_errors.ConnectionError, redis_errors.TimeoutError, redis_errors.ReadOnlyError, OSError)
    if isinstance(error, redis_errors.AuthenticationError | redis_errors.NoPermissionError):
        return BrokerUnfit(f"Redis refuses access: {text}")
    if isinstance(error, passing) or text.startswith(_PASSING):
        return BrokerUnavailable(f"Redis is not available: {text}")
    return BrokerError(text)


def raised(reply: Any) -> Any:
    """`reply` itself, or raised when it is an error of ours."""
    if isinstance(reply, BrokerError):
        raise reply
    return reply


async def patiently(call: Callable[[], Awaitable[T]], until: float) -> T:
    """Repeat `call` while Redis is out, with growing pauses and jitter.

    `until` is a time of `time.monotonic()`; after it the last BrokerUnavailable is raised.
    """
    pause = 0.05
    while True:
        try:
            return await call()
        except BrokerUnavailable:
            if time.monotonic() + pause > until:
                raise
        await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - spreads load, guards nothing
        pause = min(pause * 2, 1.0)


async def check(broker: Broker) -> None:
    """Refuse a Redis that would lose or forbid what we write. Raises BrokerUnfit or BrokerUnavailable."""
    info = await broker.call("INFO")
    fields = {str(key): str(value) for key, value in info.items()} if isinstance(info, dict) else {}
    version = fields.get("redis_version", "")
    match = re.match(r"(\d+)\.(\d+)", version)
    if match and tuple(map(int, match.groups())) < _OLDEST:
        raise BrokerUnfit(f"Redis {version} is too old: 7.0 or newer (or Valkey) is needed")
    policy = fields.get("maxmemory_policy")
    if policy is None:
        log.warning("cannot tell Redis' eviction policy; it must be noeviction")
    elif policy != "noeviction":
        raise BrokerUnfit(
            f"Redis' maxmemory-policy is {policy}: it would drop streams that are being read."
            " Set `maxmemory-policy noeviction`"
        )
    if fields.get("aof_enabled") == "0":
        log.info(
            "Redis keeps no append-only file: a restart loses ended runs (running ones are written again)"
        )
