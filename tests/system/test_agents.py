"""Agents that refuse, break off, or say what they must not,
and the real services' way of being asked: a key, over TLS."""

from __future__ import annotations

import asyncio
import gzip
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import tls
from tests.support.redis_server import free_port
from tests.support.scripted_agents import AgentProcess
from tests.support.sse_client import Viewer
from tests.support.system import System, browser, start_run, state_of, watched
from tests.support.wait import eventually
from tests.system.conftest import StartSystem

KEY = "sk-canary-5f1d0c77"
WRONG_KEY = "sk-canary-wrong-77ab2e"
PROMPT = "canary prompt 3b8e"
INTERNAL = "http://canary.internal:8080/v1"
"""An address that agents let slip in their error texts."""

AGENTS = """
agents:
  model: {dialect: openai-chat, url: "{url}/s/model/openai/v1", model: gpt, api_key: "${KEY}"}
  app: {dialect: dify-chat, url: "{url}/s/app/dify/v1", api_key: "${KEY}"}
  lines: {dialect: mapped, framing: ndjson, url: "{url}/s/lines/legacy/ndjson",
          body: {question: "{input}"},
          events: [{when: {$.kind: chunk}, text: $.payload.delta}, {when: {$.kind: final}, end: true}]}
  refused: {dialect: openai-chat, url: "http://127.0.0.1:${FREE_PORT}/v1", model: gpt, api_key: "${KEY}"}
  nowhere: {dialect: openai-chat, url: "http://agents.invalid/v1", model: gpt, api_key: "${KEY}"}
  misnamed: {dialect: openai-chat, url: "${MISNAMED_URL}/openai/v1", model: gpt, api_key: "${KEY}"}
  real-model: {dialect: openai-chat, url: "${TLS_URL}/openai/v1", model: gpt, api_key: "${REAL_KEY}"}
  real-app: {dialect: dify-chat, url: "${TLS_URL}/dify/v1", api_key: "${REAL_KEY}"}
  wrong-model: {dialect: openai-chat, url: "${TLS_URL}/openai/v1", model: gpt, api_key: "${WRONG_KEY}"}
  wrong-app: {dialect: dify-chat, url: "${TLS_URL}/dify/v1", api_key: "${WRONG_KEY}"}
"""


OPTIONS = ("--tls-certificate", str(tls.CERTIFICATE), "--tls-key", str(tls.CERTIFICATE_KEY), "--key", KEY)


@pytest.fixture(scope="module")
def real_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    """A server that demands TLS and a key."""
    with AgentProcess(tmp_path_factory.mktemp("real"), *OPTIONS) as service:
        yield service


@pytest.fixture(scope="module")
def misnamed_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    """The same at an address that its certificate does not name."""
    with AgentProcess(tmp_path_factory.mktemp("misnamed"), *OPTIONS, "--host", "127.0.0.2") as service:
        yield service


@pytest.fixture(scope="module")
def shared_system(
    start_shared_system: StartSystem, real_service: AgentProcess, misnamed_service: AgentProcess
) -> System:
    env = {
        "REAL_KEY": KEY,
        "WRONG_KEY": WRONG_KEY,
        "FREE_PORT": str(free_port()),
        "TLS_URL": real_service.url,
        "MISNAMED_URL": misnamed_service.url,
        "SSL_CERT_FILE": str(tls.CERTIFICATE),
        "BFF_LOG_LEVEL": "DEBUG",
    }
    return start_shared_system(AGENTS, env=env)


@pytest.fixture
def system(shared_system: System) -> System:
    shared_system.scripted.reset()
    return shared_system


async def asked(system: System, agent: str) -> Viewer:
    """The whole run of `agent`."""
    async with browser() as client:
        return await watched(client, system.url, await start_run(client, system.url, agent, PROMPT))


async def failure_of(system: System, agent: str) -> dict[str, Any]:
    """How a run of `agent` fails. Neither key nor address is in any event, or in any log."""
    viewer = await asked(system, agent)
    assert viewer.terminal is not None
    assert viewer.terminal.event == "run.failed"
    said = repr(viewer.frames)
    for secret in (KEY, WRONG_KEY, INTERNAL, "127.", ".invalid"):
        assert secret not in said
    nothing_is_logged(system, KEY, WRONG_KEY, INTERNAL, PROMPT)
    return viewer.terminal.data


def nothing_is_logged(system: System, *canaries: str) -> None:
    """Fail when a log of a gateway or worker holds one of them."""
    for log in system.directory.glob("[gw]*.log"):
        written = log.read_text("utf-8", "replace")
        assert [canary for canary in canaries if canary in written] == []


@pytest.mark.parametrize("agent", ["real-model", "real-app"])
async def test_a_real_service_is_asked_with_its_key_over_tls(system: System, agent: str) -> None:
    viewer = await asked(system, agent)
    assert viewer.types[-1] == "run.completed"
    assert PROMPT in viewer.text
    nothing_is_logged(system, KEY, PROMPT)


@pytest.mark.parametrize("agent", ["wrong-model", "wrong-app"])
async def test_a_wrong_key_is_a_failure_that_shows_no_secret(system: System, agent: str) -> None:
    failure = await failure_of(system, agent)
    assert (failure["code"], failure.get("retryable", False)) == ("agent_rejected", False)


async def test_agents_that_cannot_be_reached_are_tried_again_then_told_of(system: System) -> None:
    """Nobody listens, there is no such name, or the certificate is somebody else's."""
    began = time.monotonic()
    unreachable = ("refused", "nowhere", "misnamed")
    for failure in await asyncio.gather(*(failure_of(system, agent) for agent in unreachable)):
        assert (failure["code"], failure["retryable"]) == ("agent_unavailable", True)
    assert 1 < time.monotonic() - began < 20


async def test_a_short_pause_is_waited_for_within_the_attempt(system: System) -> None:
    system.scripted.script("model", {"status": 503, "retry_after": 1}, {"tokens": 3})
    viewer = await asked(system, "model")
    assert (viewer.text, viewer.types.count("run.started")) == ("tok0 tok1 tok2 ", 1)
    first, second = system.scripted.calls("model")
    assert 1 <= second["began"] - first["began"] < 3


async def test_a_long_pause_gives_the_run_back_and_is_no_attempt(system: System) -> None:
    system.scripted.script("app", {"status": 429, "retry_after": 6}, {"tokens": 3})
    async with browser() as client:
        run = await start_run(client, system.url, "app")
        viewer = await watched(client, system.url, run)
        assert (viewer.text, viewer.types.count("run.started")) == ("tok0 tok1 tok2 ", 2)
        assert viewer.resets == []
        assert (await state_of(client, system.url, run))["attempts"] == 1
    first, second = system.scripted.calls("app")
    assert 6 <= second["began"] - first["began"] < 6 + 3 * 1


@pytest.mark.parametrize("status", [401, 403, 404, 422])
@pytest.mark.parametrize("agent", ["model", "app"])
async def test_a_refusal_is_final_at_once(system: System, agent: str, status: int) -> None:
    """Real services repeat the key in their error, and proxies in front of them their address."""
    told = b'{"code":"no","message":"Incorrect API key %b for %b"}' % (KEY.encode(), INTERNAL.encode())
    system.scripted.script(agent, {"status": status, "body": told})
    failure = await failure_of(system, agent)
    assert (failure["code"], failure.get("retryable", False)) == ("agent_rejected", False)
    assert len(system.scripted.calls(agent)) == 1


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("text/html; charset=utf-8", b"<html><body>Sign in at http://canary.internal:8080/v1</body></html>"),
        ("application/json", b'{"answer":"all at once, though a stream was asked for"}'),
    ],
    ids=["a web page", "JSON"],
)
@pytest.mark.parametrize("agent", ["model", "app"])
async def test_what_is_no_stream_is_a_protocol_error_at_once(
    system: System, agent: str, content_type: str, body: bytes
) -> None:
    system.scripted.script(agent, {"content_type": content_type, "body": body})
    assert (await failure_of(system, agent))["code"] == "agent_protocol"
    assert len(system.scripted.calls(agent)) == 1


FRAMES = b"".join(
    b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"tok%d "},"finish_reason":null}]}\n\n' % n
    for n in range(4)
)
"""Of one length, and without an end marker."""


async def interrupted(system: System, **script: Any) -> str:
    """The text of a run that ends as `interrupted`."""
    system.scripted.script("model", {"body": FRAMES, **script})
    viewer = await asked(system, "model")
    assert viewer.terminal is not None
    assert (viewer.terminal.event, viewer.terminal.data["code"]) == ("run.failed", "interrupted")
    assert viewer.terminal.data["retryable"]
    assert viewer.types.count("run.started") == 1
    return viewer.text


@pytest.mark.parametrize("framing", ["chunked", "length", "close"])
async def test_an_end_without_the_end_marker_is_interrupted(system: System, framing: str) -> None:
    """However orderly the body ended, only the marker says that the answer is whole."""
    assert await interrupted(system, framing=framing) == "tok0 tok1 tok2 tok3 "


@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
@pytest.mark.parametrize("framing", ["chunked", "length", "close"])
async def test_half_a_line_is_dropped_when_the_connection_breaks(
    system: System, framing: str, reset: bool
) -> None:
    """Paced, as an end that comes with the last packet may overtake it."""
    cut = len(FRAMES) * 3 // 4 - 20
    text = await interrupted(system, framing=framing, cut_after=cut, reset=reset, pace=0.05)
    assert text == "tok0 tok1 "


@pytest.mark.parametrize("framing", ["chunked", "length"])
async def test_what_came_before_the_connection_broke_counts(system: System, framing: str) -> None:
    """Text and end marker arrive in one burst with the disorderly end: the answer is whole."""
    body = FRAMES + b"data: [DONE]\n\n"
    padded = body + b"\n" * 10  # so that the end of the body is not the end of what was announced
    script = {"body": padded, "framing": framing, "cut_after": len(body), "pace": 0}
    system.scripted.script("model", script)
    viewers = await asyncio.gather(*(asked(system, "model") for _ in range(20)))
    assert {viewer.text for viewer in viewers} == {"tok0 tok1 tok2 tok3 "}
    assert {viewer.types[-1] for viewer in viewers} == {"run.completed"}


async def test_a_flood_is_too_large_and_costs_little_memory(system: System) -> None:
    """The limit on a stream holds, and the worker is no bigger for it than what it has to keep."""
    system.scripted.script("model", {"endless": True, "pace": 0, "pattern": "x" * 8000})
    before = peak_bytes(system.workers[0].pid)
    failure = await failure_of(system, "model")
    assert failure["code"] == "too_large"
    assert peak_bytes(system.workers[0].pid) - before < 50 << 20
    await eventually(lambda: system.scripted.stats()["open"] == 0, description="the agent is left")


@pytest.mark.parametrize("agent", ["model", "lines"])
async def test_a_line_without_end_is_too_large(system: System, agent: str) -> None:
    system.scripted.script(agent, {"body": b'data: {"x":"' + b"x" * (8 << 20)})
    before = peak_bytes(system.workers[0].pid)
    assert (await failure_of(system, agent))["code"] == "too_large"
    assert peak_bytes(system.workers[0].pid) - before < 50 << 20


@pytest.mark.parametrize("agent", ["model", "app"])
async def test_a_compressed_answer_is_refused_unread(system: System, agent: str) -> None:
    """200 KB that unpack to 200 MB."""
    bomb = gzip.compress(b"\n" * (200 << 20), 9)
    assert len(bomb) < 210 << 10
    system.scripted.script(agent, {"body": bomb, "headers": {"content-encoding": "gzip"}})
    before = peak_bytes(system.workers[0].pid)
    assert (await failure_of(system, agent))["code"] == "agent_protocol"
    assert peak_bytes(system.workers[0].pid) - before < 50 << 20


async def test_faults_of_some_agents_do_not_slow_the_others(system: System) -> None:
    """While agents flood, hang and refuse, an answer on the same worker arrives as ever."""
    system.scripted.script("app", {"endless": True, "pace": 0, "pattern": "x" * 1000})
    system.scripted.script("model", {"tokens": 20, "pace": 0.02})
    async with browser() as client:
        bad = [await start_run(client, system.url, agent) for agent in ("app", "refused", "nowhere")]
        began = time.monotonic()
        viewer = await asked(system, "model")
        assert viewer.types[-1] == "run.completed"
        assert time.monotonic() - began < 3
        await asyncio.gather(*(client.post(f"{system.url}/v1/runs/{run}/stop") for run in bad))


def peak_bytes(pid: int) -> int:
    """The most memory that a process has had."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) << 10
