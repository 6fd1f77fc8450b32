"""The server: contract tests of the seams with uvicorn (socket, shutdown, protocol) and of its limits."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress
from typing import Any

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import Server

from gateway.connection import CUT, SINK
from gateway.drain import Drain
from gateway.server import SEND_BUFFER_BYTES, TCP_USER_TIMEOUT_MS, DrainingServer, listen, serve
from tests.gateway.serving import asked, connected, quick, served
from tests.support.wait import eventually

HEAD = b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 10\r\n"


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(autouse=True)
def no_traces(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing that a client does leaves a stack trace in the logs."""
    caplog.set_level(logging.INFO)
    yield
    assert not any(record.exc_info for record in caplog.records)


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    """Reads the request and answers."""
    if scope["type"] == "http":
        while (message := await receive()).get("more_body"):
            pass
        if message["type"] == "http.request":
            await PlainTextResponse("hello")(scope, receive, send)


class Endless:
    """Begins an answer and never ends it."""

    def __init__(self) -> None:
        self.running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        self.running += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.running -= 1


async def closed(client: socket.socket, deadline: float) -> bytes:
    """What the server says until it closes. Raises TimeoutError."""
    received = b""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(deadline):
        with suppress(ConnectionError):
            while chunk := await loop.sock_recv(client, 65536):
                received += chunk
    return received


def test_connections_inherit_the_listening_sockets_limits() -> None:
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        listener.settimeout(5)
        accepted, _ = listener.accept()
        with accepted:
            # Linux doubles the size it is given (socket(7)).
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * SEND_BUFFER_BYTES
            user_timeout = accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
            assert user_timeout == TCP_USER_TIMEOUT_MS
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 1


def test_an_address_in_use_is_an_error_at_once() -> None:
    with listen("127.0.0.1", 0) as listener, pytest.raises(OSError, match="in use"):
        listen("127.0.0.1", listener.getsockname()[1])


def test_the_names_of_uvicorn_that_are_relied_on_are_there() -> None:
    assert DrainingServer.shutdown is not Server.shutdown
    assert DrainingServer.handle_exit is not Server.handle_exit
    for name in ("_start_asgi_task", "on_message_begin", "on_headers_complete", "on_message_complete"):
        assert callable(getattr(HttpToolsProtocol, name))


async def test_it_answers_and_keeps_the_connection() -> None:
    drain = Drain()
    async with served(hello, quick(), drain) as port, asked(port) as client:
        for _ in range(2):
            await client.head()
            assert (client.status, await client.content()) == (200, b"hello")
            assert "server" not in client.headers
            client.writer.write(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")


async def test_the_extensions_to_write_and_to_break_off_are_in_the_scope() -> None:
    seen: dict[str, Any] = {}

    async def look(scope: Scope, receive: Receive, send: Send) -> None:
        seen.update(scope.get("extensions") or {})
        await hello(scope, receive, send)

    async with served(look, quick(), Drain()) as port, asked(port) as client:
        await client.head()
    assert callable(seen[CUT])
    assert callable(seen[SINK])


async def test_what_is_written_straight_to_the_transport_is_a_part_of_the_body() -> None:
    """Contract with uvicorn: its cycle's `chunked_encoding` and `disconnected`, its flow's `write_paused`."""
    sunk: list[bool] = []

    async def tell(scope: Scope, receive: Receive, send: Send) -> None:
        sink = scope["extensions"][SINK]
        sunk.append(sink(b"too early"))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        sunk.append(sink(b"a"))
        await send({"type": "http.response.body", "body": b"b", "more_body": True})
        sunk.append(sink(b"c"))
        await send({"type": "http.response.body"})

    async with served(tell, quick(), Drain()) as port, httpx.AsyncClient(trust_env=False) as client:
        assert (await client.get(f"http://127.0.0.1:{port}/")).text == "abc"
    assert sunk == [False, True, True]


async def test_sigterm_sets_the_drain_event_before_connections_are_touched_and_is_then_done() -> None:
    """uvicorn tells its application of a shutdown only when the connections are gone, and raises the
    signal again at the end, so that the process would die of it."""
    drain = Drain()
    signals: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: signals.append(number))
    try:
        async with served(Endless(), quick(drain=1.0), drain) as port, asked(port) as client:
            await client.head()
            await client.chunk()
            order: list[str] = []
            with drain.watched(lambda: order.append("drain")):
                os.kill(os.getpid(), signal.SIGTERM)
                assert await client.chunk() is None
                order.append("connection")
            assert order == ["drain", "connection"]
    finally:
        signal.signal(signal.SIGTERM, before)
    assert signals == []


async def test_what_does_not_end_while_the_gateway_drains_is_cut_off_quietly(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app, drain = Endless(), Drain()
    async with served(app, quick(drain=1.0), drain) as port, asked(port) as client:
        await client.head()
        began = time.monotonic()
        drain.set()
        assert await client.chunks() == [b"x", None]
        assert time.monotonic() - began < 3
    assert app.running == 0
    assert "Exception in ASGI application" not in caplog.text


async def test_a_draining_gateway_refuses_new_requests_on_open_connections() -> None:
    drain = Drain()

    async with served(hello, quick(), drain) as port, connected(port) as client:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(client, b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        drain.set()
        with suppress(ConnectionError):
            await loop.sock_sendall(client, b"\r\n")
        answer = await closed(client, 2.0)
        assert answer == b"" or b"503 Service Unavailable" in answer


@pytest.mark.parametrize(
    "sent",
    [b"", b"POST / HT", HEAD, HEAD + b"\r\n12345", b"\r\n\r\n"],
    ids=["nothing", "half a line", "half a head", "half a body", "blank lines"],
)
async def test_a_client_that_does_not_finish_its_request_is_closed(sent: bytes) -> None:
    async with served(hello, quick(), Drain(), request_timeout=0.3) as port, connected(port) as client:
        await asyncio.get_running_loop().sock_sendall(client, sent)
        assert await closed(client, 2.0) == b""


async def test_a_client_that_sends_a_byte_at_a_time_is_closed_all_the_same() -> None:
    async with served(hello, quick(), Drain(), request_timeout=0.3) as port, connected(port) as client:
        loop = asyncio.get_running_loop()
        began = time.monotonic()
        with suppress(ConnectionError):
            while time.monotonic() - began < 5:
                await loop.sock_sendall(client, b"x")
                await asyncio.sleep(0.02)
        assert time.monotonic() - began < 2


async def test_blank_lines_do_not_keep_an_answered_connection_for_ever() -> None:
    async with served(hello, quick(), Drain(), request_timeout=0.3) as port, asked(port) as client:
        await client.head()
        await client.content()
        client.writer.write(b"\r\n")
        async with asyncio.timeout(3):
            assert await client.reader.read() == b""


async def test_an_answer_may_take_longer_than_a_request() -> None:
    app = Endless()
    async with served(app, quick(drain=0.5), Drain(), request_timeout=0.1) as port, asked(port) as client:
        await client.head()
        await client.chunk()
        client.writer.write(b"\r\n")  # some clients end a body with a line of their own
        await asyncio.sleep(0.4)  # several times the deadline of a request
        assert app.running == 1
        assert not client.reader.at_eof()


async def test_a_head_without_end_is_closed() -> None:
    async with served(hello, quick(), Drain()) as port, connected(port) as client:
        with suppress(ConnectionError):
            await asyncio.get_running_loop().sock_sendall(client, HEAD + b"X: " + b"x" * 1_000_000)
        assert await closed(client, 2.0) == b""


async def test_half_a_request_does_not_delay_the_shutdown() -> None:
    drain = Drain()
    async with served(hello, quick(drain=8.0), drain) as port, connected(port) as client:
        await asyncio.get_running_loop().sock_sendall(client, HEAD + b"\r\n12345")
        async with asked(port) as other:
            await other.head()
            await other.content()
        began = time.monotonic()
        drain.set()
        assert await closed(client, 2.0) == b""
    assert time.monotonic() - began < 2


async def test_connections_beyond_the_limit_get_a_503_and_the_others_go_on() -> None:
    app = Endless()
    settings = quick(max_connections=2, drain=0.5)
    async with served(app, settings, Drain()) as port, asked(port) as first, asked(port) as second:
        await first.head()
        await second.head()
        async with asked(port) as third:
            await third.head()
            assert (third.status, third.headers["connection"]) == (503, "close")
            assert third.headers["content-type"] == "application/problem+json"
            assert json.loads(await third.content())["code"] == "too_many_connections"
        assert app.running == 2
        second.writer.close()
        await second.writer.wait_closed()
        await eventually(lambda: _status(port, 200), 2.0, "there is room again")


async def test_without_a_setting_most_of_the_process_files_may_be_connections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (3, 3))
    async with served(hello, quick(), Drain()) as port, asked(port) as first, asked(port) as second:
        await first.head()
        await second.head()
        async with asked(port) as third:
            await third.head()
            assert third.status == 503


async def test_far_too_many_connections_are_closed_unheard_and_the_first_go_on() -> None:
    async with served(hello, quick(max_connections=2), Drain()) as port, AsyncExitStack() as stack:
        first = await stack.enter_async_context(asked(port))
        await first.head()
        clients = [await stack.enter_async_context(connected(port)) for _ in range(40)]
        assert await closed(clients[-1], 2.0) == b""
        await first.content()
        for client in clients:
            client.close()
        await eventually(lambda: _status(port, 200), 2.0, "there is room again")


async def test_a_full_gateway_is_healthy() -> None:
    async with served(hello, quick(max_connections=1), Drain()) as port, asked(port) as first:
        await first.head()
        async with asked(port, "/healthz") as probe:
            await probe.head()
            assert probe.status == 200


async def test_the_access_log_has_the_path_without_the_query(caplog: pytest.LogCaptureFixture) -> None:
    async with served(hello, quick(), Drain()) as port, asked(port, "/v1/x?ticket=secret") as client:
        await client.head()
    lines = [record.getMessage() for record in caplog.records if record.name == "uvicorn.access"]
    assert len(lines) == 1
    assert '"GET /v1/x HTTP/1.1" 200' in lines[0]
    assert "secret" not in caplog.text
    assert logging.getLogger("uvicorn.access").filters == []


async def test_garbage_is_a_400_without_a_trace() -> None:
    async with served(hello, quick(), Drain()) as port, connected(port) as client:
        await asyncio.get_running_loop().sock_sendall(client, b"\x16\x03\x01\x02\x00garbage\r\n\r\n")
        assert (await closed(client, 2.0)).startswith(b"HTTP/1.1 400")


async def test_it_listens_where_the_settings_say() -> None:
    with listen("127.0.0.1", 0) as probe:
        port = probe.getsockname()[1]
    drain = Drain()
    task = asyncio.create_task(serve(hello, quick(port=port), drain))
    await eventually(lambda: _status(port, 200), 5.0, "the server answers")
    drain.set()
    await task


async def _status(port: int, wanted: int) -> bool:
    try:
        async with asked(port) as client:
            await client.head()
            return client.status == wanted
    except (OSError, asyncio.IncompleteReadError):
        return False
