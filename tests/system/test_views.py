"""One run in every form: what the shipped agents say is the same in all of them."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest
import yaml

from cli.dev import child_env
from tests.support.procs import ROOT
from tests.support.scripted_agents import AgentProcess
from tests.support.sse_client import Viewer
from tests.support.system import System, browser, events_of, start_run, text_has_begun, watched
from tests.support.wait import eventually
from tests.system.conftest import StartSystem

SHIPPED = (ROOT / "agents.yaml").read_text()
DEMO_AGENTS = tuple(yaml.safe_load(SHIPPED)["agents"])
MORE_AGENTS = """
  writer: {dialect: dify-workflow, url: "{url}/s/text_chunk/dify/v1", api_key: "${BFF_SCRIPTED_KEY}"}
  held: {dialect: openai-chat, url: "{url}/s/held/openai/v1", model: gpt, api_key: "${BFF_SCRIPTED_KEY}"}
"""
PROMPT = "no. 7351"
HEARTBEAT = "0.2"


@pytest.fixture(scope="module")
def shared_system(
    start_shared_system: StartSystem, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[System]:
    """The shipped agents.yaml in the environment that `bff dev` makes for it."""
    with AgentProcess(tmp_path_factory.mktemp("agents")) as agents:
        told = child_env({}, "127.0.0.1", 0, "", agents.url)
        env = {name: told[name] for name in told if not name.startswith("BFF_") or "SCRIPTED" in name}
        env["BFF_HEARTBEAT"] = HEARTBEAT
        yield start_shared_system(SHIPPED + MORE_AGENTS, scripted=agents, gateways=2, env=env)


@pytest.fixture
def system(shared_system: System) -> System:
    shared_system.scripted.reset()
    return shared_system


async def posted(client: httpx.AsyncClient, system: System, agent: str, **headers: str) -> httpx.Response:
    """The answer to a native request, whole."""
    body = {"agent": agent, "input": PROMPT}
    answer = await client.post(f"{system.url}/v1/runs", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer


async def told(client: httpx.AsyncClient, system: System, run: str, dialect: str) -> str:
    """A run in a dialect, whole."""
    answer = await client.get(events_of(system.gateways[1].url, run), params={"dialect": dialect})
    assert answer.status_code == 200
    return answer.text


async def completed(client: httpx.AsyncClient, system: System, agent: str, *, stream: bool) -> str:
    """The body of a chat completion."""
    body = {"model": agent, "messages": [{"role": "user", "content": PROMPT}], "stream": stream}
    answer = await client.post(f"{system.url}/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.text


def content_of(chunks: str) -> str:
    """The text of a streamed chat completion."""
    lines = [line.removeprefix("data: ") for line in chunks.split("\n") if line]
    assert lines[-1] == "[DONE]"
    deltas = [json.loads(line)["choices"][0]["delta"] for line in lines[:-1]]
    return "".join(delta.get("content") or "" for delta in deltas)


def in_a_fence(text: str) -> Any:
    """The JSON of a text that is one Markdown code block."""
    found = re.fullmatch(r"```json\n(.*)\n```", text, re.DOTALL)
    assert found is not None, text
    return json.loads(found[1])


def outputs_of(viewer: Viewer) -> Any:
    """What the data of a run comes to: the value itself of one, an object of several."""
    values = list(viewer.data.values())
    return viewer.data if len(values) > 1 else values[0] if values else None


@pytest.mark.parametrize("agent", DEMO_AGENTS)
async def test_a_shipped_agent_completes_and_shows_the_same_in_every_form(system: System, agent: str) -> None:
    async with browser() as client:
        viewer = Viewer()
        asking = {"agent": agent, "input": PROMPT}
        await viewer.watch(client, f"{system.url}/v1/runs", method="POST", json=asking)
        assert viewer.types[-1] == "run.completed"
        assert PROMPT in repr(viewer.frames)
        run = viewer.headers["x-run-id"]

        lines = [json.loads(line) for line in (await told(client, system, run, "ndjson")).splitlines()]
        assert lines == [{"id": frame.id, **frame.data} for frame in viewer.frames]

        state = (await client.get(f"{system.url}/v1/runs/{run}")).json()
        result = (await posted(client, system, agent, accept="application/json", prefer="wait=10")).json()
        for answer in (state, result):
            assert (answer["status"], answer["text"]) == ("completed", viewer.text)
            assert answer["outputs"] == outputs_of(viewer)
            assert {"outputs": answer["outputs"], **answer.get("data", {})}.items() >= viewer.data.items()

        whole = json.loads(await completed(client, system, agent, stream=False))
        shown = {
            "text": await told(client, system, run, "text"),
            "posted text": (await posted(client, system, agent, accept="text/plain")).text,
            "chat": content_of(await told(client, system, run, "openai-chat")),
            "posted chat": content_of(await completed(client, system, agent, stream=True)),
            "whole chat": whole["choices"][0]["message"]["content"],
        }
        if viewer.text:
            assert set(shown.values()) == {viewer.text}, shown
        else:
            assert [in_a_fence(text) for text in shown.values()] == [viewer.data["outputs"]] * len(shown)


async def test_the_shipped_workflow_gives_an_object_and_no_text(system: System) -> None:
    async with browser() as client:
        viewer = await watched(client, system.url, await start_run(client, system.url, "planner", PROMPT))
    assert viewer.text == ""
    assert list(viewer.data) == ["outputs"]
    assert PROMPT in viewer.data["outputs"]["title"]


async def test_a_model_and_a_workflow_speak_in_the_same_events(system: System) -> None:
    """Beside them each has its own: steps, an object, reasoning, token counts."""

    async def grammar(agent: str) -> list[str]:
        async with browser() as client:
            viewer = await watched(client, system.url, await start_run(client, system.url, agent, PROMPT))
        assert PROMPT in viewer.text
        spoken = [kind for kind in viewer.types if re.match(r"text\.|run\.(?!ids)", kind)]
        return [kind for at, kind in enumerate(spoken) if spoken[at - 1 : at] != [kind]]

    spoken = await grammar("assistant")
    assert spoken == ["run.accepted", "run.started", "text.start", "text.delta", "text.end", "run.completed"]
    assert await grammar("writer") == spoken


BEATS: dict[str, Callable[[str], bool]] = {
    "sse": lambda line: line.startswith(":"),
    "ndjson": lambda line: not line,
    "openai-chat": lambda line: '"delta":{},"finish_reason":null' in line,
}
"""Whether a line is a sign of life. `text/plain` has none but the response's head."""


@pytest.mark.parametrize("shown", [0, 1], ids=["before the first text", "after it"])
async def test_each_dialect_has_its_own_heartbeat(system: System, shown: int) -> None:
    """While the agent is silent. Heartbeats are no part of the answer."""
    system.scripted.script("held", {"tokens": 3, "hold_after": shown and 2})
    async with browser() as client:
        run = await start_run(client, system.url, "held", PROMPT)
        received = dict.fromkeys((*BEATS, "text"), b"")
        heads: set[str] = set()

        async def receive(dialect: str) -> None:
            url = httpx.URL(events_of(system.url, run), params={"dialect": dialect})
            async with client.stream("GET", url) as response:
                heads.add(dialect)
                async for chunk in response.aiter_raw():
                    received[dialect] += chunk

        def all_have_heard_two() -> bool:
            return all(
                len([line for line in received[dialect].decode().split("\n")[:-1] if is_beat(line)]) >= 2
                for dialect, is_beat in BEATS.items()
            )

        receiving = [asyncio.create_task(receive(dialect)) for dialect in received]
        await eventually(all_have_heard_two, description="two heartbeats in each dialect")
        await eventually(lambda: "text" in heads, description="the head of the plain text")
        assert received["text"] == b"tok0 " * shown
        system.scripted.release("held")
        await asyncio.gather(*receiving)
    assert received["text"] == b"tok0 tok1 tok2 "
    assert content_of(received["openai-chat"].decode()) == "tok0 tok1 tok2 "
    events = [json.loads(line) for line in received["ndjson"].splitlines() if line]
    assert "".join(event.get("text", "") for event in events) == "tok0 tok1 tok2 "


def hostile_cursors(attempt: int) -> list[str]:
    """About a hundred things that are no position in a run whose attempt this is."""
    most = 2**64 - 1
    known = [
        "-1",
        "$",
        "0",
        "+",
        "-",
        ">",
        "*",
        "(0-1",
        "0-1\t",
        "1-",
        "-1-1",
        "01-1",
        "1-01",
        "1--1",
        "1-1-1",
    ]
    known += ["1.1", "1-1.", "1-1.1.1", "1-1.x", f"{most + 1}-0", f"1-{most + 1}", f"{most}-{most}"]
    known += ["0-99", f"0-{most}", f"{attempt + 1}-0", f"{attempt + 10**6}-3", f"{attempt}-{10**9}"]
    known += ["1-1", "5-3", f"{attempt - 1}-7", "null", "undefined", "NaN", "Infinity", "1e3-1", "0x1-1"]
    known += ["٣-٣", "１-１", "é", "\x00", "\x1f-1", "../../etc/passwd", "%00", "%0d%0aX: y", "a" * 4000]
    known += ["9" * 4000, "1-" + "9" * 4000, "'; DROP TABLE runs; --", "<script>", "{run}:s", "{}", "[]"]
    chance = random.Random(7351)
    alphabet = "0123456789-.$+*><=()\"' aZ\t\x7fü"
    return known + ["x" + "".join(chance.choices(alphabet, k=chance.randint(0, 24))) for _ in range(50)]


async def follow(client: httpx.AsyncClient, url: str, cursor: str, viewer: Viewer, in_header: bool) -> None:
    """Watch from a cursor, sent in the header, or in the query."""
    if in_header and re.fullmatch(r"[\x21-\x7e]+", cursor):
        viewer.cursor = cursor
        await viewer.watch(client, url)
    else:
        await viewer.watch(client, str(httpx.URL(url, params={"last_event_id": cursor})))


@pytest.mark.parametrize("live", [True, False], ids=["live", "ended"])
async def test_no_cursor_is_an_error_and_all_lead_to_the_whole_answer(system: System, live: bool) -> None:
    """A reset, then the attempt from its start."""
    system.scripted.script("held", {"tokens": 9, "hold_after": 5})
    async with browser() as client:
        run = await start_run(client, system.url, "held", PROMPT)
        first = Viewer()
        await first.watch(client, events_of(system.url, run), until="text.delta")
        assert first.cursor is not None
        cursors = hostile_cursors(int(first.cursor.split("-")[0]))
        if not live:
            system.scripted.release("held")
            await watched(client, system.url, run)
        viewers = {cursor: Viewer() for cursor in cursors}
        following = [
            asyncio.create_task(
                follow(client, events_of(system.gateways[at % 2].url, run), cursor, viewer, at % 3 > 0)
            )
            for at, (cursor, viewer) in enumerate(viewers.items())
        ]
        if live:
            for viewer in viewers.values():
                await text_has_begun(viewer)
            system.scripted.release("held")
        async with asyncio.timeout(20):
            await asyncio.gather(*following)
    text = "".join(f"tok{n} " for n in range(9))
    for cursor, viewer in viewers.items():
        assert (viewer.status, viewer.types[:2]) == (200, ["reset", "run.started"]), cursor
        assert (viewer.text, viewer.types[-1]) == (text, "run.completed"), cursor


async def test_a_cursor_of_ten_megabytes_is_refused_without_a_hang(system: System) -> None:
    """It does not fit into a request's head; the gateway serves the next one as ever."""
    async with browser() as client:
        run = await start_run(client, system.url, "assistant", PROMPT)
        async with asyncio.timeout(10):
            with suppress(httpx.TransportError):
                headers = {"last-event-id": "9" * (10 << 20)}
                answer = await client.get(events_of(system.url, run), headers=headers)
                assert answer.status_code in (400, 431)
        assert PROMPT in (await watched(client, system.url, run)).text
