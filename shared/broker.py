"""One Redis: opened by URL, checked at start, every call with a deadline, its errors as ours.

What does not block goes over one wire that all callers share (`shared/wire.py`): replies come in the
order of the commands, so a call that is cancelled leaves its reply to be dropped, and no caller ever
finds another's.
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

from shared.errors import BrokerError, BrokerFull, BrokerUnavailable, BrokerUnfit, WrongType
from shared.wire import Command, ReplyError, Wire

log = logging.getLogger(__name__)

T = TypeVar("T")

_PASSING = (
    "LOADING",
    "READONLY",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "BUSY",
    "NOREPLICAS",
    "MISCONF",
    "UNBLOCKED",
)
"""Replies that a server gives while it is busy with itself."""

_REFUSED = ("NOAUTH", "WRONGPASS", "NOPERM")

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


Exchange = Callable[[Sequence[Command]], Awaitable[list[Any]]]
"""Sends commands in one round trip; an error stands in the place of the reply of one that failed."""


class Broker:
    """Commands and scripts on one Redis. Each call raises BrokerError or one of its kinds."""

    def __init__(self, client: Redis, timeout: float = 3.0, wire: Wire | None = None) -> None:
        """`client` serves what blocks, and all else where there is no `wire`, as on the in-process fake."""
        self._client: Any = client  # redis-py's own types leave out half of what is called here
        self._timeout = timeout
        self._wire = wire
        self._exchange: Exchange = wire.exchange if wire else self._pipeline

    @classmethod
    def open(cls, url: str, timeout: float = 3.0, connections: int = 64) -> Broker:
        """A broker for `url`; connects when first used. `timeout` in seconds is for each call.

        Raises BrokerUnfit when `url` is none.
        """
        try:
            client: Any = Redis.from_url(
                url,
                protocol=2,
                socket_connect_timeout=timeout,
                max_connections=connections,
                retry_on_timeout=False,
            )
        except ValueError:  # its text may hold the password
            raise BrokerUnfit(
                "BFF_REDIS_URL is not the address of a Redis, such as redis://127.0.0.1:6379/0,"
                " rediss://... or unix:///..."
            ) from None
        return cls(client, timeout, Wire(client.connection_pool.make_connection))

    async def close(self) -> None:
        """Close all connections."""
        if self._wire is not None:
            await self._wire.close()
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
        """One command's reply, as Redis gave it: text as bytes."""
        return (await self.calls([command]))[0]

    async def calls(self, commands: Sequence[Command]) -> list[Any]:
        """The replies of several commands in one round trip. Raises the first error among them."""
        return [raised(reply) for reply in await self.replies(commands)]

    async def replies(self, commands: Sequence[Command]) -> list[Any]:
        """The same; a command's own error stands in its place."""
        return _translated_all(await self._send(commands))

    async def pop(self, key: str, wait: int) -> bytes | None:
        """The first element of a list, waiting up to `wait` seconds for one, on a connection of its own."""
        row = await self._within_deadline(lambda: self._client.execute_command("BLPOP", key, wait), wait)
        return None if row is None else row[1]

    async def run(self, call: ScriptCall) -> Any:
        """One script's reply."""
        return raised((await self.run_all([call]))[0])

    async def run_all(self, calls: Sequence[ScriptCall]) -> list[Any]:
        """The replies of several scripts in one round trip; a script's own error stands in its place."""
        replies = await self._evalsha(calls)
        missing = [i for i, reply in enumerate(replies) if _is_unknown_script(reply)]
        if missing:
            await self.calls(
                [("SCRIPT", "LOAD", source) for source in {calls[i].script.source for i in missing}]
            )
            again = await self._evalsha([calls[i] for i in missing])
            for i, reply in zip(missing, again, strict=True):
                replies[i] = reply
        return _translated_all(replies)

    async def _evalsha(self, calls: Sequence[ScriptCall]) -> list[Any]:
        return await self._send(
            [("EVALSHA", call.script.digest, len(call.keys), *call.keys, *call.args) for call in calls]
        )

    async def _send(self, commands: Sequence[Command]) -> list[Any]:
        if not commands:
            return []
        return await self._within_deadline(lambda: self._exchange(commands))

    async def _pipeline(self, commands: Sequence[Command]) -> list[Any]:
        async with self._client.pipeline(transaction=False) as pipe:
            for command in commands:
                pipe.execute_command(*command)
            replies: list[Any] = await pipe.execute(raise_on_error=False)
            return replies

    async def _within_deadline(self, call: Callable[[], Awaitable[T]], extra: float = 0.0) -> T:
        try:
            async with asyncio.timeout(self._timeout + extra):
                return await call()
        except TimeoutError:
            if self._wire is not None:
                self._wire.reset()
            raise BrokerUnavailable(f"Redis did not answer within {self._timeout:g} s") from None
        except (redis_errors.RedisError, OSError) as error:
            raise translated(error) from None


def _is_unknown_script(reply: Any) -> bool:
    return isinstance(reply, redis_errors.NoScriptError) or (
        isinstance(reply, ReplyError) and str(reply).startswith("NOSCRIPT")
    )


def _translated_all(replies: list[Any]) -> list[Any]:
    return [translated(reply) if isinstance(reply, Exception) else reply for reply in replies]


def translated(error: Exception) -> BrokerError:
    """Redis' or the network's exception as one of ours."""
    text = str(error)
    if isinstance(error, redis_errors.OutOfMemoryError) or text.startswith("OOM"):
        return BrokerFull("Redis has used up its memory")
    refused = (redis_errors.AuthenticationError, redis_errors.NoPermissionError)
    if isinstance(error, refused) or text.startswith(_REFUSED):
        return BrokerUnfit(f"Redis refuses access: {text}")
    passing = (redis_errors.ConnectionError, redis_errors.TimeoutError, redis_errors.ReadOnlyError, OSError)
    if isinstance(error, passing) or text.startswith(_PASSING):
        return BrokerUnavailable(f"Redis is not available: {text}")
    if text.startswith("WRONGTYPE"):
        return WrongType(text)
    if isinstance(error, redis_errors.InvalidResponse) or text.startswith("Protocol error"):
        return BrokerError(f"what answers at the address of Redis is something else: {text}")
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
    lines = (await broker.call("INFO")).decode("utf-8", "replace").splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
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
