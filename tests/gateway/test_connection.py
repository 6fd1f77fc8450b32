"""Deadlines and interruptions of one connection, with our own `receive` and `send`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from starlette.types import Message

from gateway.connection import Connection, Interrupted, SlowClient
from gateway.drain import Drain


class Wire:
    """A client that takes what it is sent once `reads` is set, and has gone once `gone` is."""

    def __init__(self) -> None:
        self.reads = asyncio.Event()
        self.gone = asyncio.Event()
        self.sent: list[Message] = []
        self.drain = Drain()

    async def receive(self) -> Message:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        await self.reads.wait()
        self.sent.append(message)

    @asynccontextmanager
    async def connection(
        self, *, period: float = 5.0, send_timeout: float = 5.0
    ) -> AsyncIterator[Connection]:
        """The connection as a response has it."""
        async with Connection(
            {}, self.receive, self.send, drain=self.drain, period=period, send_timeout=send_timeout
        ) as connection:
            yield connection


async def for_ever() -> None:
    await asyncio.Event().wait()


async def test_a_wait_gives_its_result() -> None:
    async with Wire().connection() as connection:
        assert await connection.wait(asyncio.sleep(0, "result"), 5.0) == "result"


async def test_a_wait_ends_at_its_deadline_again_and_again() -> None:
    async with Wire().connection(period=0.05) as connection:
        for _ in range(3):
            began = time.monotonic()
            with pytest.raises(Interrupted):
                await connection.wait(for_ever(), 0.05)
            assert 0.04 < time.monotonic() - began < 1
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]  # a test is a task


async def test_a_deadline_shorter_than_the_period_is_kept() -> None:
    async with Wire().connection(period=30.0, send_timeout=30.0) as connection:
        await connection.wait(asyncio.sleep(0), 30.0)
        with pytest.raises(Interrupted):
            async with asyncio.timeout(5.0):
                await connection.wait(for_ever(), 0.05)


async def test_a_wait_ends_when_the_client_goes_or_the_gateway_drains() -> None:
    wire = Wire()
    async with wire.connection() as connection:
        asyncio.get_running_loop().call_later(0.02, wire.drain.set)
        with pytest.raises(Interrupted):
            await connection.wait(for_ever(), 5.0)
        assert not connection.gone
        asyncio.get_running_loop().call_later(0.02, wire.gone.set)
        with pytest.raises(Interrupted):
            await connection.wait(for_ever(), 5.0)
        assert connection.gone


async def test_a_send_is_not_disturbed_by_a_drain_but_has_its_deadline() -> None:
    wire = Wire()
    async with wire.connection(period=0.1, send_timeout=0.1) as connection:
        wire.drain.set()
        with pytest.raises(SlowClient):
            await connection.send({"type": "http.response.body"})
        wire.reads.set()
        await connection.send({"type": "http.response.body"})
        assert len(wire.sent) == 1


async def test_what_is_sent_to_a_client_that_goes_is_dropped() -> None:
    wire = Wire()
    async with wire.connection() as connection:
        asyncio.get_running_loop().call_later(0.02, wire.gone.set)
        await connection.send({"type": "http.response.body"})
        assert connection.gone


async def test_an_error_that_meets_an_interruption_leaves_the_task_in_order() -> None:
    async def fails_when_cancelled() -> None:
        try:
            await for_ever()
        except asyncio.CancelledError:
            raise KeyError("late") from None

    async with Wire().connection(period=0.05) as connection:
        with pytest.raises(KeyError):
            await connection.wait(fails_when_cancelled(), 0.05)
        with pytest.raises(Interrupted):
            await connection.wait(for_ever(), 0.05)


async def test_a_cancellation_from_outside_is_one() -> None:
    async def wait() -> None:
        async with Wire().connection() as connection:
            await connection.wait(for_ever(), 5.0)

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_connection_without_our_server_cannot_be_cut_and_does_not_mind() -> None:
    async with Wire().connection() as connection:
        connection.cut(flush=True)
