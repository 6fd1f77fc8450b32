"""The OpenAI routes, read by the official client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from shared.events import Data, RunFailed, Usage
from tests.gateway.house import House, house, words
from tests.support.redis_server import RedisServer
from tests.support.wait import eventually

pytestmark = pytest.mark.usefixtures("no_lasting_keys")

HELLO: Any = [{"role": "user", "content": "hello"}]


@pytest.fixture
async def home(redis_server: RedisServer) -> AsyncIterator[House]:
    async with house(redis_server.url, heartbeat=5.0) as opened:  # holds the head for so long
        yield opened


@pytest.fixture
async def client(home: House) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"http://127.0.0.1:{home.port}/v1",
        api_key="any",
        max_retries=0,
        http_client=openai.DefaultAsyncHttpxClient(trust_env=False),
    ) as made:
        yield made


async def only_run(home: House) -> str:
    """The run that was just begun."""

    async def newest() -> str:
        runs = (await home.client.get("/v1/runs?state=queued")).json()["runs"]
        return str(runs[0]["id"]) if runs else ""

    return await eventually(newest, description="a run is queued")


async def test_a_whole_completion(home: House, client: openai.AsyncOpenAI) -> None:
    asking = asyncio.create_task(client.chat.completions.create(model="writer", messages=HELLO))
    run = await only_run(home)
    await home.worker.says(run, *words("good ", "day"), Usage(3, 4, 7))
    await home.worker.ends(run)
    completion = await asking
    assert completion.id == f"chatcmpl-{run}"
    assert completion.choices[0].message.content == "good day"
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage is not None
    assert completion.usage.total_tokens == 7


async def test_a_streamed_completion(home: House, client: openai.AsyncOpenAI) -> None:
    asking = asyncio.create_task(
        client.chat.completions.create(
            model="writer", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
    )
    run = await only_run(home)
    await home.worker.says(run, *words("good ", "day"), Usage(3, 4, 7))
    await home.worker.ends(run)
    chunks = [chunk async for chunk in await asking]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "good day"
    assert chunks[-1].usage is not None
    assert len({(chunk.id, chunk.created) for chunk in chunks}) == 1


async def test_structured_output_is_shown_as_text(home: House, client: openai.AsyncOpenAI) -> None:
    asking = asyncio.create_task(client.chat.completions.create(model="flow", messages=HELLO))
    run = await only_run(home)
    await home.worker.says(run, Data("outputs", {"a": 1}))
    await home.worker.ends(run)
    content = (await asking).choices[0].message.content
    assert content is not None
    assert content.startswith("```json")


@pytest.mark.parametrize("stream", [True, False])
async def test_a_run_that_fails_before_its_first_text_is_a_status(
    home: House, client: openai.AsyncOpenAI, stream: bool
) -> None:
    asking = asyncio.create_task(
        client.chat.completions.create(model="writer", messages=HELLO, stream=stream)
    )
    run = await only_run(home)
    await home.worker.says(run)
    await home.worker.ends(run, RunFailed("agent_error", "the agent said no"))
    with pytest.raises(openai.InternalServerError, match="the agent said no"):
        await asking


async def test_refusals_have_openais_form(home: House, client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        await client.chat.completions.create(model="nobody", messages=HELLO)
    assert (unknown.value.code, unknown.value.param) == ("unknown_agent", "model")
    with pytest.raises(openai.BadRequestError) as many:
        await client.chat.completions.create(model="writer", messages=HELLO, n=2)
    assert many.value.param == "n"
    pirate: Any = [{"role": "pirate", "content": "x"}]
    with pytest.raises(openai.UnprocessableEntityError) as wrong:
        await client.chat.completions.create(model="writer", messages=pirate)
    assert wrong.value.param == "messages.0.role"
    answer = await home.client.post(
        "/chat/completions", content=b"{", headers={"content-type": "application/json"}
    )
    assert answer.status_code == 400
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


async def test_parts_parameters_and_unknown_fields_reach_the_agent(home: House) -> None:
    body = {
        "model": "writer",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}], "extra": 1}],
        "temperature": 0.5,
        "top_p": None,
        "invented": {"x": 1},
        "user": "u",
        "metadata": {"conversation": "c"},
        "stream": True,
    }
    async with home.client.stream("POST", "/v1/chat/completions", json=body) as response:
        run = await only_run(home)
        request = json.loads(await home.broker.call("GET", f"bff:{{{run}}}:r"))
        await home.worker.answers(run, "x")
        assert response.status_code == 200
    assert request["messages"] == [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    assert request["params"] == {"temperature": 0.5, "invented": {"x": 1}}
    assert (request["user"], request["conversation"]) == ("u", "c")


@pytest.mark.parametrize("how", ["suffix", "header"])
async def test_the_safe_profile_sends_nothing_that_strict_readers_refuse(home: House, how: str) -> None:
    body = {"model": "writer:safe" if how == "suffix" else "writer", "messages": HELLO, "stream": True}
    body["stream_options"] = {"include_usage": True}
    headers = {"x-bff-profile": "safe"} if how == "header" else {}
    asking = asyncio.create_task(home.client.post("/chat/completions", json=body, headers=headers))
    run = await only_run(home)
    await home.worker.says(run, *words("good day"), Usage(3, 4, 7))
    await home.worker.ends(run)
    lines = [line for line in (await asking).text.split("\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert not any("usage" in line for line in lines)
    assert lines[-1] == "data: [DONE]"


async def test_agents_are_listed_as_models(client: openai.AsyncOpenAI) -> None:
    models = [model.id async for model in client.models.list()]
    assert models == ["writer", "restarted", "flow"]
    assert (await client.models.retrieve("writer")).id == "writer"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("absent")
