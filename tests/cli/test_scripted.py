"""The scripted agent server says what its transcripts say, and breaks when it is told to."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from cli.scripted import KEY, Script, ScriptedAgents
from cli.scripted.transcripts import TRANSCRIPTS, recorded
from tests.support.scripted_agents import AgentProcess
from tests.support.tls import CERTIFICATE, CERTIFICATE_KEY
from tests.support.wait import eventually

OPENAI = "/openai/v1/chat/completions"
COMPLETION = "/dify/v1/completion-messages"
CHAT = "/dify/v1/chat-messages"
WORKFLOW = "/dify/v1/workflows/run"
BEARER = {"authorization": f"Bearer {KEY}"}

PROMPT = 'say "hi" \\ to Zoë'


def openai_body(prompt: str = PROMPT, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}]
    return {"model": "any", "messages": messages, "stream": True, **fields}


def dify_body(prompt: str = PROMPT, **fields: Any) -> dict[str, Any]:
    inputs = {"query": prompt}
    return {"query": prompt, "inputs": inputs, "user": "u1", "response_mode": "streaming", **fields}


BODIES: dict[str, dict[str, Any]] = {
    OPENAI: openai_body(stream_options={"include_usage": True}),
    COMPLETION: dify_body(),
    CHAT: dify_body(),
    WORKFLOW: dify_body(),
    "/legacy/sse": {"question": PROMPT},
    "/legacy/ndjson": {"question": PROMPT},
    "/legacy/rest": {"question": PROMPT},
}


def route_of(transcript: str) -> str:
    routes = {
        "openai-chat": OPENAI,
        "dify-completion": COMPLETION,
        "dify-chat": CHAT,
        "dify-workflow": WORKFLOW,
    }
    return routes.get(transcript.split("/")[0], f"/{transcript}")


@pytest.fixture
async def agents() -> AsyncIterator[ScriptedAgents]:
    async with ScriptedAgents(control=True) as server:
        yield server


@pytest.fixture
async def client(agents: ScriptedAgents) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=agents.url, headers=BEARER, trust_env=False) as client:
        yield client


def objects(body: str) -> list[dict[str, Any]]:
    """The JSON objects of an SSE or NDJSON body."""
    lines = (line.removeprefix("data: ") for line in body.split("\n"))
    return [json.loads(line) for line in lines if line.startswith("{")]


@pytest.mark.parametrize("name", TRANSCRIPTS)
@pytest.mark.parametrize("options", [{}, {"one_byte": True}, {"framing": "length"}, {"framing": "close"}])
async def test_an_exact_script_is_the_transcript_byte_for_byte(
    agents: ScriptedAgents, client: httpx.AsyncClient, name: str, options: dict[str, Any]
) -> None:
    route = route_of(name)
    agents.script("exact", Script(transcript=name, exact=True, **options))
    answer = await client.post("/s/exact" + route, json=BODIES[route])
    assert answer.content == recorded(name)


@pytest.mark.parametrize("name", TRANSCRIPTS)
async def test_every_transcript_carries_a_piece_of_the_prompt(
    agents: ScriptedAgents, client: httpx.AsyncClient, name: str
) -> None:
    route = route_of(name)
    agents.script("asked", Script(transcript=name))
    body = (await client.post("/s/asked" + route, json=BODIES[route])).text
    values = [json.dumps(value, ensure_ascii=False) for value in objects(body)]
    piece = json.dumps(f"({PROMPT})", ensure_ascii=False)[1:-1]
    if name == "openai-chat/tool_calls":
        deltas = [value["choices"][0]["delta"] for value in objects(body)]
        calls = [call for delta in deltas for call in delta.get("tool_calls", ()) if call["index"] == 0]
        arguments = json.loads("".join(call["function"]["arguments"] for call in calls))
        assert arguments["city"] == f"Berlin ({PROMPT})"
    else:
        assert any(piece in value for value in values)
    if name.startswith("openai-chat"):
        assert sum("zoë" in value.lower() for value in values) == 1


async def test_a_workflows_text_and_outputs_agree(client: httpx.AsyncClient) -> None:
    events = objects((await client.post("/s/text_chunk" + WORKFLOW, json=dify_body())).text)
    text = "".join(event["data"]["text"] for event in events if event["event"] == "text_chunk")
    assert text == f"Bonjour le monde ({PROMPT})"
    assert events[-1]["data"]["outputs"] == {"result": text}


async def test_usage_comes_only_when_asked_for(client: httpx.AsyncClient) -> None:
    without = objects((await client.post(OPENAI, json=openai_body())).text)
    assert not any("usage" in chunk for chunk in without)
    asked = openai_body(stream_options={"include_usage": True})
    assert objects((await client.post(OPENAI, json=asked)).text)[-1]["usage"]["total_tokens"] == 33


async def test_answers_that_do_not_stream_say_the_same(client: httpx.AsyncClient) -> None:
    answer = (await client.post(OPENAI, json=openai_body(stream=False))).json()
    content = answer["choices"][0]["message"]["content"]
    assert content == f"A gateway owns the connection; a worker ({PROMPT}) owns the work."
    assert answer["usage"]["total_tokens"] == 33
    tools = (await client.post("/s/tool_calls" + OPENAI, json=openai_body(stream=False))).json()
    first = tools["choices"][0]["message"]["tool_calls"][0]["function"]
    assert json.loads(first["arguments"]) == {"city": f"Berlin ({PROMPT})", "unit": "celsius"}
    workflow = (await client.post(WORKFLOW, json=dify_body(response_mode="blocking"))).json()
    assert workflow["data"]["outputs"]["title"] == f"Ship it ({PROMPT})"
    chat = (await client.post(CHAT, json=dify_body(response_mode="blocking"))).json()
    assert chat["answer"] == f"You have 30 days of leave per year ({PROMPT}) [1]."


async def test_generated_answers_have_as_many_tokens_as_told(
    agents: ScriptedAgents, client: httpx.AsyncClient
) -> None:
    agents.script("three", Script(tokens=3))
    chunks = objects((await client.post("/s/three" + OPENAI, json=openai_body())).text)
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == "tok0 tok1 tok2 "
    events = objects((await client.post("/s/three" + CHAT, json=dify_body())).text)
    assert [event["event"] for event in events] == ["message"] * 3 + ["message_end"]
    outputs = objects((await client.post("/s/three" + WORKFLOW, json=dify_body())).text)[-1]["data"][
        "outputs"
    ]
    assert outputs == {"result": "tok0 tok1 tok2 "}


async def test_models_are_listed(client: httpx.AsyncClient) -> None:
    assert (await client.get("/openai/v1/models")).json()["data"][0]["id"] == "gpt-4.1-mini"


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer wrong"}])
async def test_without_its_key_each_vendor_refuses_in_its_own_form(
    agents: ScriptedAgents, headers: dict[str, str]
) -> None:
    async with httpx.AsyncClient(base_url=agents.url, headers=headers, trust_env=False) as stranger:
        openai = await stranger.post(OPENAI, json=openai_body())
        dify = await stranger.post(WORKFLOW, json=dify_body())
    assert openai.status_code == dify.status_code == 401
    assert openai.json()["error"]["type"] == "invalid_request_error"
    assert dify.json()["code"] == "unauthorized"


@pytest.mark.parametrize(
    ("route", "missing", "status", "words"),
    [
        (OPENAI, "model", 400, "you must provide a model parameter"),
        (OPENAI, "messages", 400, "missing_required_parameter"),
        (COMPLETION, "user", 400, "Arg user must be provided."),
        (COMPLETION, "inputs", 400, "invalid_param"),
        (CHAT, "query", 400, "invalid_param"),
        (WORKFLOW, "inputs", 400, "invalid_param"),
        ("/legacy/rest", "question", 400, "question is missing"),
    ],
)
async def test_a_body_that_the_real_one_refuses_is_refused(
    client: httpx.AsyncClient, route: str, missing: str, status: int, words: str
) -> None:
    body = {name: value for name, value in BODIES[route].items() if name != missing}
    answer = await client.post(route, json=body)
    assert (answer.status_code, words in answer.text) == (status, True)


async def test_legacy_services_take_a_question_in_the_query_too(client: httpx.AsyncClient) -> None:
    answer = await client.get("/legacy/rest", params={"question": "wo & wann"})
    assert answer.json()["result"]["summary"] == "The holiday rules are in chapter 4 (wo & wann)"


async def test_an_unknown_conversation_is_not_found(client: httpx.AsyncClient) -> None:
    answer = await client.post(CHAT, json=dify_body(conversation_id="0b5d"))
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_calls_follow_the_list_of_scripts_and_then_its_last(
    agents: ScriptedAgents, client: httpx.AsyncClient
) -> None:
    agents.script("flaky", Script(status=503, retry_after=2), Script(status=429), Script(tokens=1))
    answers = [await client.post("/s/flaky" + OPENAI, json=openai_body()) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [503, 429, 200, 200]
    assert answers[0].headers["retry-after"] == "2"
    assert answers[1].json()["error"]["code"] == "rate_limit_exceeded"


@pytest.mark.parametrize("framing", ["chunked", "length", "close"])
async def test_a_cut_ends_the_body_at_that_byte(agents: ScriptedAgents, framing: Any) -> None:
    whole = recorded("openai-chat/plain")
    async with httpx.AsyncClient(headers=BEARER, trust_env=False) as client:
        for at in (0, 1, 100, len(whole) - 1):
            script = Script(transcript="openai-chat/plain", exact=True, cut_after=at, framing=framing)
            url = agents.script("cut", script)
            got = b""
            try:
                async with client.stream("POST", url + OPENAI, json=openai_body()) as answer:
                    async for chunk in answer.aiter_raw():
                        got += chunk
            except httpx.RemoteProtocolError:
                assert framing != "close"
            else:
                assert framing == "close"
            assert got == whole[:at]


async def test_a_reset_is_a_reset(agents: ScriptedAgents, client: httpx.AsyncClient) -> None:
    agents.script("reset", Script(cut_after=300, reset=True))
    with pytest.raises(httpx.ReadError):
        await client.post("/s/reset" + OPENAI, json=openai_body())
    assert agents.stats()["calls"][-1]["ended_by"] == "fault"


async def test_raw_bytes_and_hostile_bodies_go_out_as_they_are(
    agents: ScriptedAgents, client: httpx.AsyncClient
) -> None:
    agents.script("raw", Script(raw=b"SSH-2.0-no\r\n"))
    with pytest.raises(httpx.RemoteProtocolError):
        await client.post("/s/raw" + OPENAI, json=openai_body())
    hostile = b"data: \xff\xfe\r\rdata\n\n\x00"
    agents.script("hostile", Script(body=hostile, content_type="text/html"))
    answer = await client.post("/s/hostile" + OPENAI, json=openai_body())
    assert (answer.content, answer.headers["content-type"]) == (hostile, "text/html")


async def test_what_is_held_goes_on_when_released(agents: ScriptedAgents, client: httpx.AsyncClient) -> None:
    agents.script("held", Script(tokens=5, hold_after=3))
    call = asyncio.create_task(client.post("/s/held" + OPENAI, json=openai_body()))
    await eventually(lambda: agents.stats()["open"] == 1)
    await client.post("/_release", json={"name": "held"})
    assert (await call).text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(
    "script",
    [
        Script(tokens=5, silent_after=2),
        Script(tokens=5, pings_after=2),
        Script(endless=True),
        Script(tokens=1, hold_after=0),
        Script(tokens=9, pace=60),
    ],
    ids=["silent", "pings", "endless", "held", "slow"],
)
async def test_a_client_that_leaves_is_noticed(
    agents: ScriptedAgents, client: httpx.AsyncClient, script: Script
) -> None:
    agents.script("left", script)
    async with client.stream("POST", "/s/left" + OPENAI, json=openai_body()) as answer:
        assert answer.status_code == 200
        assert agents.stats()["open"] == 1
    await eventually(lambda: agents.stats()["open"] == agents.stats()["connections"] == 0)
    call = agents.stats()["calls"][-1]
    assert (call["ended_by"], call["prompt"]) == ("client", PROMPT)
    assert call["ended"] >= call["began"]


async def test_pings_have_the_vendors_form(agents: ScriptedAgents, client: httpx.AsyncClient) -> None:
    agents.script("pings", Script(tokens=5, pings_after=0))
    for route, ping in ((OPENAI, b": keep-alive\n\n"), (WORKFLOW, b"event: ping\n\n")):
        async with client.stream("POST", "/s/pings" + route, json=BODIES[route]) as answer:
            got = b""
            async for chunk in answer.aiter_raw():
                got += chunk
                if len(got) >= 2 * len(ping):
                    break
        assert got.startswith(2 * ping)


@pytest.mark.parametrize(
    ("route", "stop", "last"),
    [
        (COMPLETION, "completion-messages/{}/stop", "message_end"),
        (CHAT, "chat-messages/{}/stop", "message_end"),
        (WORKFLOW, "workflows/tasks/{}/stop", "workflow_finished"),
    ],
)
async def test_difys_stop_ends_the_stream_of_the_same_user_only(
    agents: ScriptedAgents, client: httpx.AsyncClient, route: str, stop: str, last: str
) -> None:
    agents.script("long", Script(tokens=1000, pace=60))
    call = asyncio.create_task(client.post("/s/long" + route, json=dify_body()))
    await eventually(lambda: agents.stats()["open"] == 1)
    task = agents.stats()["calls"][-1]["task"]
    for user in ("somebody else", "u1"):
        answer = await client.post("/dify/v1/" + stop.format(task), json={"user": user})
        assert answer.json() == {"result": "success"}
        assert agents.stats()["calls"][-1]["user"] == "u1"
    final = objects((await call).text)[-1]
    assert (final["event"], final["task_id"]) == (last, task)
    assert agents.stats()["stops"] == 2
    assert agents.stats()["calls"][-1]["ended_by"] == "stopped"


async def test_calls_and_connections_are_counted(agents: ScriptedAgents, client: httpx.AsyncClient) -> None:
    agents.script("held", Script(tokens=1, hold_after=0))
    calls = [asyncio.create_task(client.post("/s/held" + OPENAI, json=openai_body())) for _ in range(7)]
    await eventually(lambda: agents.stats()["open"] == 7)
    agents.release()
    await asyncio.gather(*calls)
    await client.post(OPENAI, json=openai_body())
    stats = (await client.get("/_stats")).json()
    assert (stats["open"], stats["max_open"], stats["max_connections"], stats["total"]) == (0, 7, 7, 8)
    assert stats["scripts"]["held"] == {"open": 0, "max_open": 7, "calls": 7}
    await client.post("/_reset", json={})
    assert (await client.get("/_stats")).json()["total"] == 0


async def test_an_unread_flood_waits(agents: ScriptedAgents) -> None:
    agents.script("flood", Script(endless=True, pattern="x" * 10_000))
    with socket.create_connection(("127.0.0.1", int(agents.url.rpartition(":")[2]))) as client:
        body = json.dumps(openai_body()).encode()
        head = f"POST /s/flood{OPENAI} HTTP/1.1\r\nauthorization: Bearer {KEY}\r\n"
        client.sendall(head.encode() + b"content-length: %d\r\n\r\n%b" % (len(body), body))
        sizes = [-1]

        def stands_still() -> bool:
            calls = agents.stats()["calls"]
            sizes.append(calls[-1]["bytes_sent"] if calls else -1)
            return sizes[-1] > 0 and len(sizes) > 50 and len(set(sizes[-50:])) == 1

        await eventually(stands_still, 20)
    assert sizes[-1] < 50_000_000


async def test_bad_scripts_are_refused(client: httpx.AsyncClient) -> None:
    for order in ({"name": "x", "scripts": [{"tokns": 3}]}, {"name": "x", "scripts": [{"transcript": "no"}]}):
        assert (await client.post("/_script", json=order)).status_code == 400
    assert (await client.post("/_release", content=b"{")).status_code == 400


async def test_without_control_nothing_can_be_set() -> None:
    async with ScriptedAgents() as server, httpx.AsyncClient(base_url=server.url, trust_env=False) as client:
        assert (await client.get("/_stats")).status_code == 404
        assert (await client.post("/_script", json={"name": "x"})).status_code == 404


def test_as_a_process_over_tls(tmp_path: Path) -> None:
    options = ("--tls-certificate", str(CERTIFICATE), "--tls-key", str(CERTIFICATE_KEY), "--key", "sk-own")
    with AgentProcess(tmp_path, *options) as agents:
        url = agents.script("three", {"tokens": 3})
        headers = {"authorization": "Bearer sk-own"}
        context = ssl.create_default_context(cafile=CERTIFICATE)
        answer = httpx.post(
            url + OPENAI, json=openai_body(), headers=headers, verify=context, trust_env=False
        )
        assert answer.text.endswith("data: [DONE]\n\n")
        assert agents.calls("three")[0]["ended_by"] == "agent"
