"""The streaming response over a real server and real sockets."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from gateway.dialects.base import Encoded
from gateway.dialects.openai_chat import OpenAIChat
from gateway.responses import Ending
from gateway.subscriber import StreamGone
from shared.errors import BrokerUnavailable, RequestError
from shared.events import RunFailed
from tests.gateway.dialects.conversations import options
from tests.gateway.serving import (
    FloodingSubscriber,
    ScriptedSubscriber,
    StreamingApp,
    asked,
    connected,
    quick,
    served,
)
from tests.support.wait import eventually

RETRY = re.compile(rb"retry: (\d+)\n\n")
PATIENT: dict[str, Any] = {"heartbeat": 30.0}


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No connection, however it ends, is an error in the logs."""
    caplog.set_level(logging.INFO)
    yield
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []
    assert not any(record.exc_info for record in caplog.records)


def app_of(
    *encoded: Encoded | Exception, dialect: str = "sse", settings: dict[str, Any] = PATIENT, **more: Any
) -> StreamingApp:
    """An application that streams this."""
    return StreamingApp(ScriptedSubscriber(*encoded), quick(**settings), dialect=dialect, **more)


async def ended(app: StreamingApp, ending: Ending, deadline: float = 1.0) -> None:
    """The response has ended, once and so; the viewer left if it went by itself or had everything."""
    await eventually(lambda: app.endings, deadline, "the response has ended")
    assert app.endings == [ending]
    assert app.subscriber.left == (ending in (Ending.COMPLETE, Ending.DISCONNECTED))
    assert not app.subscriber.open


async def test_the_head_says_what_proxies_and_clients_need() -> None:
    app = app_of(Encoded((b"data: 1\n\n",), ends=True), headers={"X-More": "1"})
    app.subscriber.resumed_from = "7-3"
    async with served(app, app.settings, app.drain) as port, asked(port) as client:
        assert (await client.head()).items() >= {
            "content-type": "text/event-stream; charset=utf-8",
            "cache-control": "no-store, no-transform",
            "x-accel-buffering": "no",
            "x-run-id": "run_01KAQ7",
            "location": "/v1/runs/run_01KAQ7",
            "stream-resumed-from": "7-3",
            "x-more": "1",
            "transfer-encoding": "chunked",
        }.items()
        first, end = await client.chunks()
    assert first is not None
    assert end == b""
    retry = RETRY.match(first)
    assert retry is not None
    assert 1000 <= int(retry[1]) <= 3000
    assert first[retry.end() :] == b"data: 1\n\n"
    await ended(app, Ending.COMPLETE)


async def test_only_resumable_dialects_speak_of_positions_and_only_sse_of_retrying() -> None:
    app = app_of(Encoded((b"text",), ends=True), dialect="text")
    async with served(app, app.settings, app.drain) as port, asked(port) as client:
        assert "stream-resumed-from" not in await client.head()
        assert await client.chunks() == [b"text", b""]


async def test_events_that_are_there_go_in_one_send_and_none_is_split() -> None:
    frames = tuple(b"data: %d\n\n" % number for number in range(3))
    app = app_of(Encoded((b"x\n",)), Encoded(frames), Encoded((b"y\n",), ends=True), dialect="ndjson")
    async with served(app, app.settings, app.drain) as port, asked(port) as client:
        await client.head()
        assert await client.chunks() == [b"x\n", b"".join(frames), b"y\n", b""]


@pytest.mark.parametrize(("dialect", "beat"), [("sse", b":\n\n"), ("ndjson", b"\n")])
async def test_an_idle_connection_gets_heartbeats(dialect: str, beat: bytes) -> None:
    app = app_of(Encoded((b"first",)), dialect=dialect, settings={"heartbeat": 0.05})
    async with served(app, app.settings, app.drain) as port, asked(port) as client:
        await client.head()
        await client.chunk()
        for _ in range(4):
            before = time.monotonic()
            assert await client.chunk() == beat
        assert time.monotonic() - before < 1
        app.subscriber.tell(Encoded((b"last",), ends=True))
        assert [chunk for chunk in await client.chunks() if chunk != beat] == [b"last", b""]


async def test_a_heartbeat_comes_an_interval_after_the_last_event_not_sooner() -> None:
    app = app_of(settings={"heartbeat": 0.3})
    async with served(app, app.settings, app.drain) as port, asked(port) as client:
        app.subscriber.tell(Encoded((b"0",)))
        await client.head()
        await client.chunk()
        for number in range(5):
            await asyncio.sleep(0.1)  # a pace, not a wait for something
            app.subscriber.tell(Encoded((b"%d" % number,)))
            assert await client.chunk() == b"%d" % number
        told = time.monotonic()
        assert await client.chunk() == b":\n\n"
        assert 0.25 < time.monotonic() - told < 1


async def test_a_client_that_leaves_an_idle_stream_is_noticed_within_a_second() -> None:
    app = app_of(Encoded((b"first",)))
    async with served(app, app.settings, app.drain) as port:
        async with asked(port) as client:
            await client.head()
            await client.chunk()
        await ended(app, Ending.DISCONNECTED)


async def test_a_client_that_pipelines_a_second_request_and_leaves_is_noticed_as_well() -> None:
    app = app_of(Encoded((b"first",)))
    async with served(app, app.settings, app.drain) as port:
        async with asked(port) as client:
            client.writer.write(b"GET /2 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            await client.head()
            await client.chunk()
        await ended(app, Ending.DISCONNECTED)


async def test_a_client_that_does_not_read_is_dropped_and_what_waits_for_it_is_freed() -> None:
    settings = quick(heartbeat=30.0, send_timeout=0.3)
    app = StreamingApp(FloodingSubscriber(), settings)
    async with served(app, settings, app.drain) as port, connected(port, receive_buffer=4096) as client:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(client, b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        await ended(app, Ending.SLOW, 3.0)
        assert app.subscriber.asked < 100
        received = [b""]
        with suppress(ConnectionError):
            while chunk := await loop.sock_recv(client, 65536):
                received.append(chunk)
        assert not received[-1].endswith(b"0\r\n\r\n")


async def test_an_abort_leaves_what_was_sent_and_no_final_chunk() -> None:
    app = app_of(Encoded((b"half",)), Encoded(aborts=True), dialect="text")
    async with served(app, app.settings, app.drain) as port, asked(port) as client:
        await client.head()
        assert await client.chunks() == [b"half", None]
        await ended(app, Ending.ABORTED)


async def test_an_abort_with_a_large_answer_still_under_way_delivers_it() -> None:
    app = app_of(Encoded((b"x" * 3_000_000,)), Encoded(aborts=True), dialect="text")
    async with served(app, app.settings, app.drain) as port, asked(port) as client:
        await client.head()
        assert [chunk and len(chunk) for chunk in await client.chunks()] == [3_000_000, None]


async def test_nothing_is_left_to_send_at_the_terminal_event() -> None:
    app = app_of()
    app.subscriber.ended_before = True
    async with served(app, app.settings, app.drain) as port, asked(port) as client:
        await client.head()
        assert client.status == 204
        await ended(app, Ending.EMPTY)


async def test_the_head_of_a_dialect_without_ids_waits_for_something_to_show() -> None:
    dialect = OpenAIChat(options())
    app = app_of(Encoded((dialect.opening,)), dialect="openai-chat")
    async with served(app, app.settings, app.drain) as port, asked(port) as client:
        await eventually(lambda: app.subscriber.asked == 2, 1.0, "the opening frame was taken")
        failure = RunFailed(code="timeout", message="the agent was silent")
        app.subscriber.tell(Encoded((b"error", b"done"), ends=True, failure=failure))
        await client.head()
        assert client.status == 504
        error = json.loads(await client.content())
        assert (error["error"]["code"], error["error"]["message"]) == ("timeout", "the agent was silent")
        await ended(app, Ending.REFUSED)


async def test_a_held_head_goes_out_with_the_first_event_to_show() -> None:
    opening = OpenAIChat(options()).opening
    app = app_of(Encoded((opening,)), Encoded((b"data: text\n\n",), ends=True), dialect="openai-chat")
    async with served(app, app.settings, app.drain) as port, asked(port) as client:
        await client.head()
        assert await client.chunks() == [opening + b"data: text\n\n", b""]


async def test_a_held_head_goes_out_at_the_first_heartbeat() -> None:
    dialect = OpenAIChat(options())
    app = app_of(Encoded((dialect.opening,)), dialect="openai-chat", settings={"heartbeat": 0.05})
    async with served(app, app.settings, app.drain) as port, asked(port) as client:
        await client.head()
        assert [await client.chunk() for _ in range(2)] == [dialect.opening, dialect.heartbeat()]


async def test_plain_text_gets_its_head_at_the_first_heartbeat_and_an_abort_before_is_a_status() -> None:
    app = app_of(dialect="text", settings={"heartbeat": 0.05})
    async with served(app, app.settings, app.drain) as port, asked(port) as client:
        await client.head()
        assert client.status == 200
    app = app_of(Encoded(aborts=True), dialect="text")
    async with served(app, app.settings, app.drain) as port, asked(port) as client:
        await client.head()
        assert client.status == 502


async def test_a_stream_that_is_gone_is_410() -> None:
    app = app_of()
    app.subscriber.refuses = StreamGone()
    async with served(app, app.settings, app.drain) as port, asked(port) as client:
        await client.head()
        assert (client.status, json.loads(await client.content())["code"]) == (410, "gone")


async def test_an_event_source_is_told_that_the_stream_is_gone_with_a_cursor_that_ends_it() -> None:
    app = app_of(event_source=True)
    app.subscriber.refuses = StreamGone()
    async with served(app, app.settings, app.drain) as port, asked(port) as client:
        await client.head()
        assert client.status == 200
        body, end = await client.chunks()
    assert body is not None
    assert end == b""
    reset, failed = RETRY.sub(b"", body).split(b"\n\n")[:2]
    assert reset.startswith(b"event: reset\n")
    assert failed.startswith(b"id: 18446744073709551615-0\nevent: run.failed\n")
    await ended(app, Ending.GONE)


async def test_a_stream_that_goes_while_it_is_watched_ends_with_a_terminal_event() -> None:
    app = app_of(Encoded((b"data: 1\n\n",)), StreamGone())
    async with served(app, app.settings, app.drain) as port, asked(port) as client:
        await client.head()
        chunks = await client.chunks()
    assert chunks[-1] == b""
    assert b"event: run.failed" in (chunks[-2] or b"")


async def test_without_redis_a_request_is_503_and_an_event_source_shall_come_back() -> None:
    app = app_of()
    app.subscriber.refuses = BrokerUnavailable("out")
    async with served(app, app.settings, app.drain) as port, asked(port) as client:
        await client.head()
        assert client.status == 503
        assert client.headers["retry-after"] == "2"
    app = app_of(event_source=True)
    app.subscriber.refuses = BrokerUnavailable("out")
    async with served(app, app.settings, app.drain) as port, asked(port) as client:
        await client.head()
        body, end = await client.chunks()
        assert (client.status, end) == (200, b"")
        assert RETRY.sub(b"", body or b"") == b":\n\n"
        await ended(app, Ending.LOST)


async def test_redis_lost_in_the_middle_ends_without_a_terminal_event() -> None:
    app = app_of(Encoded((b"data: 1\n\n",)), BrokerUnavailable("out"))
    async with served(app, app.settings, app.drain) as port, asked(port) as client:
        await client.head()
        _, last, end = await client.chunks()
        assert (RETRY.sub(b"", last or b""), end) == (b":\n\n", b"")


async def test_a_refusal_of_the_subscription_is_a_status() -> None:
    app = app_of()
    app.subscriber.refuses = RequestError(429, "too_many_streams", "enough")
    async with served(app, app.settings, app.drain) as port, asked(port) as client:
        await client.head()
        assert client.status == 429


async def test_a_resumable_stream_ends_at_a_frame_as_soon_as_the_gateway_drains() -> None:
    app = app_of(Encoded((b"data: 1\n\n",)))
    async with served(app, app.settings, app.drain) as port, asked(port) as client:
        await client.head()
        await client.chunk()
        began = time.monotonic()
        app.drain.set()
        last, end = await client.chunks()
        assert RETRY.match(last or b"")
        assert end == b""
        assert time.monotonic() - began < 1
        await ended(app, Ending.DRAINED)
    assert time.monotonic() - began < 2


async def test_a_stream_that_cannot_be_resumed_may_end_while_the_gateway_drains() -> None:
    app = app_of(Encoded((b"half",)), dialect="text")
    async with served(app, app.settings, app.drain) as port, asked(port) as client:
        await client.head()
        await client.chunk()
        app.drain.set()
        await asyncio.sleep(0.2)  # while it drains
        app.subscriber.tell(Encoded((b" whole",), ends=True))
        assert await client.chunks() == [b" whole", b""]
        await ended(app, Ending.COMPLETE)


@pytest.mark.parametrize("dialect", ["text", "openai-chat"])
async def test_a_stream_that_cannot_be_resumed_is_broken_off_when_the_drain_time_is_over(
    dialect: str,
) -> None:
    app = app_of(Encoded((b"half",)), dialect=dialect, settings={"heartbeat": 30.0, "drain": 1.0})
    async with served(app, app.settings, app.drain) as port, asked(port) as client:
        await client.head()
        await client.chunk()
        app.drain.set()
        chunks = await client.chunks()
        if dialect == "text":
            assert chunks == [None]
        else:
            assert (chunks[0] or b"").endswith(b"data: [DONE]\n\n")
            assert chunks[1] == b""
        await ended(app, Ending.DRAINED)
