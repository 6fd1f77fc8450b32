"""Agents reached by HTTP, over a real server on loopback that sends what each test scripts."""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import msgspec
import pytest
from pydantic import SecretStr

from shared.config import DifyAgent, OpenAIChatAgent, RestAgent
from shared.errors import (
    AgentError,
    AgentProtocolError,
    AgentRejected,
    AgentTooLarge,
    AgentTruncated,
    AgentUnavailable,
    ConfigError,
)
from shared.requests import Message, RunRequest
from shared.sse import ServerSentEvent
from tests.support.wait import eventually
from tests.workers.agents.raw_server import (
    SSE_HEAD,
    Script,
    and_then_silence,
    bytes_script,
    serve,
    silence,
)
from workers.agents import open_agent
from workers.agents.addresses import forbidden
from workers.agents.client import HttpAgents, body_of
from workers.agents.http import HttpStream
from workers.dialects import AGENT_DIALECTS
from workers.dialects.base import AgentRequest

pytestmark = pytest.mark.anyio

KEY = "sk-canary-0123456789"
RUN = RunRequest(messages=(Message("user", "Hi"),), user="u1")


@pytest.fixture
async def agents() -> AsyncIterator[HttpAgents]:
    async with HttpAgents(frame_limit=4096) as opened:
        yield opened


def stream_of(agents: HttpAgents, url: str, **options: object) -> HttpStream:
    config = OpenAIChatAgent.model_validate(
        {"dialect": "openai-chat", "url": url, "model": "m", "api_key": KEY, **options}
    )
    stream = open_agent(agents, config, AGENT_DIALECTS["openai-chat"](config), RUN)
    assert isinstance(stream, HttpStream)
    return stream


async def frames_of(stream: HttpStream) -> list[ServerSentEvent]:
    found: list[ServerSentEvent] = []
    async with asyncio.timeout(10), stream as batches:
        async for batch in batches:
            found += batch
    return found


def answer(status: str, kind: str = "application/json", body: bytes = b"", *headers: bytes) -> Script:
    head = b"HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n" % (
        status.encode(),
        kind.encode(),
        len(body),
    )
    return bytes_script(head + b"".join(line + b"\r\n" for line in headers) + b"\r\n" + body)


async def failure(agents: HttpAgents, script: Script) -> AgentError:
    async with serve(script) as server:
        with pytest.raises(AgentError) as caught:
            await frames_of(stream_of(agents, server.url))
        assert KEY not in str(caught.value)
        assert server.url.partition("//")[2] not in str(caught.value)
    return caught.value


async def test_frames_arrive_in_order_and_the_request_is_as_configured(agents: HttpAgents) -> None:
    async with serve(
        bytes_script(SSE_HEAD, b"data: 1\n", b"\ndata: 2\n\n", b": ping\n\n", b"data: 3")
    ) as server:
        stream = stream_of(agents, server.url + "/v1", headers={"X-Team": "blue"})
        assert [frame.data for frame in await frames_of(stream)] == [b"1", b"2"]
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
    lines = {line.lower() for line in head.split(b"\r\n")}
    assert {b"authorization: bearer " + KEY.encode(), b"x-team: blue", b"accept-encoding: identity"} <= lines
    assert b"content-type: application/json" in lines
    assert b'"content":"Hi"' in body


async def test_the_first_frame_arrives_while_the_agent_is_still_talking(agents: HttpAgents) -> None:
    async with serve(and_then_silence(SSE_HEAD, b"data: 1\n\n")) as server:
        async with asyncio.timeout(5), stream_of(agents, server.url) as batches:
            assert await anext(batches) == [ServerSentEvent(b"1")]
        await eventually(
            lambda: server.open == 0, description="the connection is closed when the stream is left"
        )


async def test_a_key_goes_raw_into_a_header_of_its_own(agents: HttpAgents) -> None:
    async with serve(bytes_script(SSE_HEAD)) as server:
        await frames_of(stream_of(agents, server.url, api_key_header="api-key"))
    assert f"api-key: {KEY}".encode() in server.requests[0].lower()
    assert b"authorization" not in server.requests[0].lower()


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("401 Unauthorized", AgentRejected),
        ("403 Forbidden", AgentRejected),
        ("404 Not Found", AgentRejected),
        ("422 Unprocessable", AgentRejected),
        ("302 Found", AgentRejected),
        ("429 Too Many", AgentUnavailable),
        ("502 Bad Gateway", AgentUnavailable),
        ("503 Unavailable", AgentUnavailable),
        ("504 Timeout", AgentUnavailable),
        ("500 Error", AgentError),
    ],
)
async def test_a_status_is_told_by_its_kind_of_failure(
    agents: HttpAgents, status: str, kind: type[AgentError]
) -> None:
    body = f'{{"error": {{"message": "bad key {KEY} at http://10.0.0.5:8080/x", "code": "c1"}}}}'.encode()
    error = await failure(agents, answer(status, "application/json", body, b"Location: http://127.0.0.1/"))
    assert type(error) is kind
    assert "10.0.0.5" not in str(error)
    assert status[:3] in str(error)


async def test_words_of_a_refusal_are_passed_on(agents: HttpAgents) -> None:
    openai = await failure(
        agents, answer("400 Bad", body=b'{"error":{"message":"no such model","code":"m"}}')
    )
    assert "no such model" in str(openai)
    assert openai.agent_code == "m"
    dify = await failure(
        agents, answer("400 Bad", body=b'{"code":"invalid_param","message":"query?","status":400}')
    )
    assert "query?" in str(dify)
    assert dify.agent_code == "invalid_param"


async def test_a_limit_that_time_does_not_heal_is_a_rejection(agents: HttpAgents) -> None:
    body = b'{"error":{"message":"pay","code":"insufficient_quota"}}'
    assert isinstance(await failure(agents, answer("429 Too Many", body=body)), AgentRejected)


async def test_retry_after_is_read_as_seconds_or_date(agents: HttpAgents) -> None:
    seconds = await failure(agents, answer("503 No", "text/plain", b"", b"Retry-After: 7"))
    assert seconds.retry_after == 7.0
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True).encode()
    dated = await failure(agents, answer("429 No", "text/plain", b"", b"Retry-After: " + date))
    assert dated.retry_after is not None
    assert 50 < dated.retry_after <= 60
    assert (
        await failure(agents, answer("503 No", "text/plain", b"", b"Retry-After: soon"))
    ).retry_after is None


@pytest.mark.parametrize(
    ("kind", "body", "text"),
    [
        ("text/html; charset=utf-8", b"<html>login", "web page"),
        ("application/json", b'{"answer": 1}', "JSON"),
        ("application/json", b'{"error": {"message": "quota is over"}}', "quota is over"),
        ("application/json", b"not json", "JSON"),
    ],
)
async def test_an_answer_that_is_no_stream_is_an_error(
    agents: HttpAgents, kind: str, body: bytes, text: str
) -> None:
    assert text in str(await failure(agents, answer("200 OK", kind, body)))


async def test_a_compressed_answer_is_refused(agents: HttpAgents) -> None:
    error = await failure(agents, answer("200 OK", "text/event-stream", b"x", b"Content-Encoding: gzip"))
    assert isinstance(error, AgentProtocolError)


async def test_a_body_that_breaks_off_is_truncated(agents: HttpAgents) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 1000\r\n\r\n"
    assert isinstance(await failure(agents, bytes_script(head + b"data: 1\n\n")), AgentTruncated)
    chunked = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert isinstance(
        await failure(agents, bytes_script(chunked + b"9\r\ndata: 1\n\n\r\n5\r\nda")), AgentTruncated
    )


async def test_a_body_that_breaks_off_behind_its_end_marker_is_whole(agents: HttpAgents) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 1000\r\n\r\n"
    last = b'data: {"choices": [{"finish_reason": "stop"}]}\n\n'
    async with serve(bytes_script(head, last)) as server:
        config = OpenAIChatAgent(dialect="openai-chat", url=server.url, model="m")
        dialect = AGENT_DIALECTS["openai-chat"](config)
        async with asyncio.timeout(5), open_agent(agents, config, dialect, RUN) as batches:
            async for batch in batches:
                for frame in batch:
                    list(dialect.map(frame))
    assert [event.type for event in dialect.finish()] == ["run.completed"]


async def test_an_agent_that_hangs_up_or_talks_nonsense_is_an_agent_error(agents: HttpAgents) -> None:
    assert await failure(agents, bytes_script(b""))
    assert await failure(agents, bytes_script(b"nonsense\r\n\r\n"))


async def test_a_frame_over_the_limit_is_too_large(agents: HttpAgents) -> None:
    error = await failure(agents, bytes_script(SSE_HEAD, b"data: " + b"x" * 5000))
    assert isinstance(error, AgentTooLarge)
    assert error.code == "too_large"


async def test_a_refused_connection_is_unavailable(agents: HttpAgents) -> None:
    async with serve(silence) as server:
        gone = server.url
    with pytest.raises(AgentUnavailable):
        await frames_of(stream_of(agents, gone))


async def test_an_unknown_host_is_unavailable(agents: HttpAgents) -> None:
    with pytest.raises(AgentUnavailable):
        await frames_of(stream_of(agents, "http://no-such-host.invalid"))


async def test_a_client_that_is_left_before_the_head_closes_its_connection() -> None:
    async with HttpAgents() as agents, serve(silence) as server:
        async with stream_of(agents, server.url):
            await eventually(lambda: server.requests, description="the request has arrived")
        await eventually(lambda: server.open == 0, description="the connection is closed")


@contextmanager
def full_listener() -> Iterator[str]:
    """The address of a listener whose queue is full, so that connecting to it hangs."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


async def test_connecting_has_a_deadline(agents: HttpAgents) -> None:
    with full_listener() as url:
        stream = stream_of(agents, url, timeouts={"connect": 0.2})
        with pytest.raises(AgentUnavailable):
            await frames_of(stream)


async def test_leaving_does_not_wait_for_a_connection_under_way() -> None:
    """The attempt to connect is not cancelled; it ends by its own deadline."""
    async with HttpAgents() as agents:
        with full_listener() as url:
            async with asyncio.timeout(1), stream_of(agents, url, timeouts={"connect": 5}):
                await asyncio.sleep(0)
            assert agents.requests == set()
        async with serve(bytes_script(SSE_HEAD, b"data: 1\n\n")) as server:
            assert await frames_of(stream_of(agents, server.url)) == [ServerSentEvent(b"1")]


async def test_three_hundred_streams_left_at_random_leave_nothing_behind() -> None:
    """Whatever state a request is in when it is left, the pool works and no socket stays."""
    chance = random.Random(7)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(chance.random() * 0.01)
        writer.write(SSE_HEAD)
        while True:
            writer.write(b"data: x\n\n")
            await writer.drain()
            await asyncio.sleep(0.001)

    async def leave_some_time(agents: HttpAgents, url: str) -> None:
        async def read() -> None:
            async with stream_of(agents, url) as batches:
                async for _ in batches:
                    pass

        task = asyncio.create_task(read())
        await asyncio.sleep(chance.random() * 0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async with HttpAgents() as agents, serve(talk) as server:
        for _ in range(6):
            await asyncio.gather(*(leave_some_time(agents, server.url) for _ in range(50)))
        async with asyncio.timeout(5), stream_of(agents, server.url) as batches:
            assert await anext(batches)
        await eventually(lambda: server.open == 0, description="every socket is closed")
        assert agents.requests == set()


async def test_a_reader_that_does_not_read_makes_the_agent_wait() -> None:
    sent = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(SSE_HEAD)
        block = b"data: " + b"x" * 1000 + b"\n\n"
        while sent < 64 << 20:
            writer.write(block * 16)
            sent += len(block) * 16
            await writer.drain()

    async with HttpAgents() as agents, serve(flood) as server:
        async with stream_of(agents, server.url):
            seen = -1
            while seen != sent:
                seen = sent
                await asyncio.sleep(0.2)
            assert sent < 32 << 20  # what sockets of loopback hold, and 256 KiB of ours
        await eventually(lambda: server.open == 0, description="the connection is closed")


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "[fe80::1]",
        "[fd00:ec2::254]",
        "[::ffff:169.254.169.254]",
        "[::ffff:a9fe:a9fe]",
        "[64:ff9b::a9fe:a9fe]",
        "2852039166",
        "0xa9.254.169.254",
        "0251.0376.0251.0376",
        "169.254.43518",
    ],
)
async def test_link_local_and_metadata_addresses_are_never_connected_to(
    agents: HttpAgents, host: str
) -> None:
    with pytest.raises(AgentError):
        await frames_of(stream_of(agents, f"http://{host}/latest"))


async def test_a_name_that_resolves_to_a_metadata_address_is_refused(
    agents: HttpAgents, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def resolve(*_: object, **__: object) -> list[object]:
        return [(2, 1, 6, "", ("169.254.169.254", 80))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
    with pytest.raises(AgentRejected, match="link-local"):
        await frames_of(stream_of(agents, "http://innocent.test"))


def test_private_addresses_are_allowed() -> None:
    assert not any(
        map(forbidden, ("127.0.0.1", "10.1.2.3", "192.168.0.1", "::1", "fd12::1", "93.184.216.34"))
    )


async def test_a_proxy_in_the_environment_is_not_used(
    agents: HttpAgents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    async with serve(bytes_script(SSE_HEAD, b"data: 1\n\n")) as server:
        assert await frames_of(stream_of(agents, server.url)) == [ServerSentEvent(b"1")]


@pytest.mark.parametrize("header", ["a\r\nX: y", "a\nb", "a\0b"])
async def test_a_header_with_a_line_break_is_refused(agents: HttpAgents, header: str) -> None:
    with pytest.raises(ConfigError):
        stream_of(agents, "http://127.0.0.1", headers={"X-A": SecretStr(header)})
    with pytest.raises(ConfigError):
        stream_of(agents, "http://127.0.0.1", headers={f"X{header}": SecretStr("a")})


async def test_stop_calls_the_agents_own_address(agents: HttpAgents) -> None:
    async with serve(
        bytes_script(SSE_HEAD, b'data: {"event":"message","task_id":"t/1","answer":"a"}\n\n')
    ) as server:
        config = DifyAgent(dialect="dify-chat", url=server.url + "/v1", api_key=SecretStr("app-canary"))
        dialect = AGENT_DIALECTS["dify-chat"](config)
        stream = open_agent(agents, config, dialect, RUN)
        async with asyncio.timeout(5), stream as batches:
            async for batch in batches:
                for frame in batch:
                    list(dialect.map(frame))
        await stream.stop()
    head, _, body = server.requests[1].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/chat-messages/t%2F1/stop ")
    assert body == b'{"user":"u1"}'


async def test_a_json_answer_is_one_frame(agents: HttpAgents) -> None:
    async with serve(answer("200 OK", "application/json", b'{"a":\n 1}')) as server:
        config = RestAgent(dialect="rest", url=server.url + "/q?x={input}", method="GET")
        stream = open_agent(
            agents, config, AGENT_DIALECTS["rest"](config), RunRequest((Message("user", "ä/&"),))
        )
        assert isinstance(stream, HttpStream)
        assert await frames_of(stream) == [ServerSentEvent(b'{"a":\n 1}')]
    asked = server.requests[0].split(b" ")[1]
    assert asked.replace(b"%2F", b"/") == b"/q?x=%C3%A4/%26"  # in a query both mean the same


TLS = Path(__file__).parents[2] / "support" / "tls"


async def test_a_certificate_counts_when_ssl_cert_file_vouches_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / "certificate.pem", TLS / "key.pem")
    async with serve(bytes_script(SSE_HEAD, b"data: 1\n\n"), context) as server:
        async with HttpAgents() as agents:
            with pytest.raises(AgentUnavailable, match="TLS"):
                await frames_of(stream_of(agents, server.url))
        monkeypatch.setenv("SSL_CERT_FILE", str(TLS / "certificate.pem"))
        async with HttpAgents() as agents:
            assert await frames_of(stream_of(agents, server.url)) == [ServerSentEvent(b"1")]


async def test_the_body_is_read_without_httpxs_wrappers(agents: HttpAgents) -> None:
    """Contract: httpx keeps the transport's stream where `body_of` looks for it."""
    request = AgentRequest("GET", "", {})
    async with (
        serve(bytes_script(SSE_HEAD, b"data: 1\n\n")) as server,
        agents.send(msgspec.structs.replace(request, url=server.url), connect=5) as response,
    ):
        assert [chunk async for chunk in body_of(response)] == [b"data: 1\n\n"]


async def test_a_connection_is_kept_when_the_body_ends_behind_the_last_word(agents: HttpAgents) -> None:
    connections = 0

    async def chunked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1  # whose first request has been read
        while True:
            head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            writer.write(head + b"9\r\ndata: 1\n\n\r\n")
            await asyncio.sleep(0.02)
            writer.write(b"0\r\n\r\n")
            await reader.readuntil(b"}]")

    async with serve(chunked) as server:
        for _ in range(3):
            async with stream_of(agents, server.url) as batches:
                assert await anext(batches)
            await eventually(lambda: not agents.requests, description="the rest has been read")
    assert connections == 1
