"""A raw connection to Redis: commands out, replies in order, and nothing in between.

redis-py opens the connection, so that URL, access and TLS are its business; then its transport is
ours, for a quarter of the CPU that redis-py's own calls take. Many callers share a wire: replies come in
the order of the commands, so a caller that goes away leaves its reply to be dropped, and no caller
can ever get another's. A wire that is late or broken is closed, and with it all that wait on it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import hiredis
from redis.asyncio import Connection

Command = Sequence[str | bytes | int | float]

CONNECT_TIMEOUT = 3.0
"""Seconds for a connection and its greeting, which redis-py would wait for without end."""

_pack: Callable[[tuple[Any, ...]], Any] = hiredis.pack_command
"""hiredis' own types know commands of one word only."""


class WireError(OSError):
    """The connection is closed."""


class ReplyError(Exception):
    """An error that Redis gave as its reply; the text begins with its code."""


class Line(asyncio.Protocol):
    """An open connection: tells each reply, in order, and its end."""

    def __init__(self, connection: Any, on_reply: Callable[[Any], None], on_lost: Callable[[], None]) -> None:
        """Take the transport of a redis-py connection, which is then without one."""
        self._writer = connection._writer  # kept, since it would close the transport with itself
        connection._reader = connection._writer = None
        self._transport: asyncio.Transport = self._writer.transport
        self._reader = hiredis.Reader(replyError=ReplyError)
        self._on_reply = on_reply
        self._on_lost = on_lost
        self.closed = self._transport.is_closing()
        self._transport.set_protocol(self)

    @classmethod
    async def open(
        cls, connection: Any, on_reply: Callable[[Any], None], on_lost: Callable[[], None]
    ) -> Line:
        """Connect an unconnected redis-py connection. Raises TimeoutError, OSError, redis-py's errors."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await connection.connect()
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return cls(connection, on_reply, on_lost)

    def send(self, commands: Sequence[Command]) -> None:
        """Send commands, whose replies will be told."""
        self._transport.write(b"".join([_packed(command) for command in commands]))

    def close(self) -> None:
        """Close the connection; that is told, too."""
        self._transport.abort()
        self.connection_lost(None)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not False:
                self._on_reply(reply)
        except hiredis.ProtocolError:
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.closed:
            self.closed = True
            self._on_lost()


class Wire:
    """A pipelining connection, opened when it is first used and again after it was lost."""

    def __init__(self, connection: Callable[[], Connection]) -> None:
        """`connection` makes an unconnected redis-py connection."""
        self._make = connection
        self._talk: _Talk | None = None
        self._opening: asyncio.Task[_Talk] | None = None

    async def exchange(self, commands: Sequence[Command]) -> list[Any]:
        """The replies to the commands, a ReplyError in the place of one that failed.

        Raises WireError, OSError or redis-py's errors when there is no connection.
        """
        talk = self._talk
        if talk is None or talk.line.closed:
            talk = await self._open()
        return await talk.exchange(commands)

    def reset(self) -> None:
        """Close the connection: something on it is late."""
        talk, self._talk = self._talk, None
        if talk is not None:
            talk.line.close()

    async def close(self) -> None:
        """Close it for good."""
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait([self._opening])
        self.reset()

    async def _open(self) -> _Talk:
        if self._opening is None:
            self._opening = asyncio.create_task(_Talk.open(self._make()))
            self._opening.add_done_callback(self._opened)
        return await asyncio.shield(self._opening)

    def _opened(self, task: asyncio.Task[_Talk]) -> None:
        self._opening = None
        if not task.cancelled() and task.exception() is None:
            self._talk = task.result()


class _Talk:
    """Commands and their replies on one connection."""

    line: Line

    def __init__(self) -> None:
        self._waiting: deque[_Waiting] = deque()

    @classmethod
    async def open(cls, connection: Connection) -> _Talk:
        talk = cls()
        talk.line = await Line.open(connection, talk._take, talk._lose)
        return talk

    async def exchange(self, commands: Sequence[Command]) -> list[Any]:
        if self.line.closed:
            raise WireError("the connection to Redis is closed")
        waiting = _Waiting(len(commands), asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self.line.send(commands)
        return await waiting.done

    def _take(self, reply: Any) -> None:
        if not self._waiting:
            self.line.close()  # a reply to no command: nothing on this connection can be trusted
            return
        waiting = self._waiting[0]
        waiting.replies.append(reply)
        if len(waiting.replies) == waiting.count:
            self._waiting.popleft()
            if not waiting.done.done():
                waiting.done.set_result(waiting.replies)

    def _lose(self) -> None:
        waiting, self._waiting = self._waiting, deque()
        for one in waiting:
            if not one.done.done():
                one.done.set_exception(WireError("the connection to Redis was lost"))


def _packed(command: Command) -> bytes:
    packed: bytes = _pack(tuple(command))
    return packed


class _Waiting:
    """Commands on the wire and the replies so far."""

    __slots__ = ("count", "done", "replies")

    def __init__(self, count: int, done: asyncio.Future[list[Any]]) -> None:
        self.count = count
        self.done = done
        self.replies: list[Any] = []
