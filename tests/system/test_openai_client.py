"""The official `openai` client, as its users have it, asks agents through the whole system."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionChunk

from tests.support.system import System
from tests.support.wait import eventually
from tests.system.conftest import StartSystem

PROMPT = "no. 7351"

AGENTS = """
agents:
  assistant: {dialect: openai-chat, url: "{url}/openai/v1", model: gpt, api_key: "${KEY}"}
  caller: {dialect: openai-chat, url: "{url}/s/tool_calls/openai/v1", model: gpt, api_key: "${KEY}"}
  thinker: {dialect: openai-chat, url: "{url}/s/deepseek_reasoning/openai/v1", model: r1, api_key: "${KEY}"}
  helpdesk: {dialect: dify-chat, url: "{url}/dify/v1", api_key: "${KEY}"}
  fragile: {dialect: openai-chat, url: "{url}/s/fragile/openai/v1", model: gpt, api_key: "${KEY}"}
  keyless: {dialect: openai-chat, url: "{url}/openai/v1", model: gpt, api_key: "${NOT_SET}"}
"""


@pytest.fixture(scope="module")
def system(start_shared_system: StartSystem) -> System:
    return start_shared_system(AGENTS)


@pytest.fixture
async def client(system: System) -> AsyncIterator[AsyncOpenAI]:
    system.scripted.reset()
    async with AsyncOpenAI(base_url=f"{system.url}/v1", api_key="any", max_retries=0, timeout=10) as client:
        yield client


async def streamed(client: AsyncOpenAI, model: str, **more: Any) -> list[ChatCompletionChunk]:
    """All chunks of one completion."""
    stream = await client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": PROMPT}], stream=True, **more
    )
    return [chunk async for chunk in stream]


def content_of(chunks: list[ChatCompletionChunk]) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


@pytest.mark.parametrize("model", ["assistant", "helpdesk"])
async def test_a_stream_and_a_whole_answer_say_the_same(client: AsyncOpenAI, model: str) -> None:
    chunks = await streamed(client, model)
    whole = await client.chat.completions.create(model=model, messages=[{"role": "user", "content": PROMPT}])
    assert PROMPT in content_of(chunks)
    assert whole.choices[0].message.content == content_of(chunks)
    assert (whole.model, chunks[0].model) == (model, model)
    assert whole.choices[0].finish_reason == chunks[-1].choices[0].finish_reason == "stop"


async def test_token_counts_come_when_they_are_asked_for(client: AsyncOpenAI) -> None:
    chunks = await streamed(client, "assistant", stream_options={"include_usage": True})
    whole = await client.chat.completions.create(
        model="assistant", messages=[{"role": "user", "content": PROMPT}]
    )
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens > 0
    assert whole.usage == chunks[-1].usage
    assert all(chunk.usage is None for chunk in await streamed(client, "assistant"))


async def test_tool_calls_are_put_together(client: AsyncOpenAI) -> None:
    whole = await client.chat.completions.create(
        model="caller", messages=[{"role": "user", "content": PROMPT}]
    )
    chunks = await streamed(client, "caller")
    fragments = [
        call for chunk in chunks for choice in chunk.choices for call in choice.delta.tool_calls or ()
    ]
    assert whole.choices[0].finish_reason == chunks[-1].choices[0].finish_reason == "tool_calls"
    calls = whole.choices[0].message.tool_calls or []
    assert calls
    for index, call in enumerate(calls):
        assert call.type == "function"
        mine = [fragment.function for fragment in fragments if fragment.index == index]
        assert [part.name for part in mine if part and part.name] == [call.function.name]
        assert "".join(part.arguments or "" for part in mine if part) == call.function.arguments


async def test_reasoning_stands_beside_the_content(client: AsyncOpenAI) -> None:
    chunks = await streamed(client, "thinker")
    deltas = [choice.delta.model_dump() for chunk in chunks for choice in chunk.choices]
    reasoning = "".join(delta.get("reasoning_content") or "" for delta in deltas)
    assert reasoning.startswith("First, ")
    assert PROMPT in content_of(chunks)
    assert reasoning not in content_of(chunks)


async def test_agents_are_models(client: AsyncOpenAI) -> None:
    """But for those that cannot be asked."""
    names = [model.id async for model in client.models.list()]
    assert names == ["assistant", "caller", "thinker", "helpdesk", "fragile"]
    assert (await client.models.retrieve("helpdesk")).id == "helpdesk"


async def test_an_unknown_model_is_not_found(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="'no-such'"):
        await client.models.retrieve("no-such")
    with pytest.raises(openai.NotFoundError, match="'no-such'") as raised:
        await streamed(client, "no-such")
    assert (raised.value.code, raised.value.param) == ("unknown_agent", "model")


async def test_a_body_that_does_not_fit_is_a_bad_request(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as raised:
        await client.chat.completions.create(model="assistant", messages=[])
    assert raised.value.param == "messages"
    with pytest.raises(openai.BadRequestError, match="one answer"):
        await streamed(client, "assistant", n=2)


async def test_an_agent_that_cannot_be_asked_is_unavailable(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.InternalServerError, match="NOT_SET") as raised:
        await streamed(client, "keyless")
    assert raised.value.status_code == 503


async def test_a_failure_before_the_text_is_a_status(system: System, client: AsyncOpenAI) -> None:
    system.scripted.script("fragile", {"status": 401})
    for asking in (
        streamed(client, "fragile"),
        client.chat.completions.create(model="fragile", messages=[{"role": "user", "content": PROMPT}]),
    ):
        with pytest.raises(openai.InternalServerError, match="refused the key") as raised:
            await asking
        assert (raised.value.status_code, raised.value.code) == (502, "agent_rejected")


async def test_a_failure_in_the_middle_is_an_error(system: System, client: AsyncOpenAI) -> None:
    """It is raised by the iteration, after the text that was shown."""
    system.scripted.script("fragile", {"tokens": 9, "pace": 0.05, "cut_after": 1500})
    stream = await client.chat.completions.create(
        model="fragile", messages=[{"role": "user", "content": PROMPT}], stream=True
    )
    shown = ""

    async def read() -> None:
        nonlocal shown
        async for chunk in stream:
            shown += content_of([chunk])

    with pytest.raises(openai.APIError) as raised:
        await read()
    assert shown.startswith("tok0 tok1 ")
    assert raised.value.code == "interrupted"


async def test_a_client_that_leaves_does_not_stop_the_run(system: System, client: AsyncOpenAI) -> None:
    """The agent says all it has, as ever when somebody disconnects."""
    system.scripted.script("fragile", {"tokens": 9, "hold_after": 3})
    async with await client.chat.completions.create(
        model="fragile", messages=[{"role": "user", "content": PROMPT}], stream=True
    ) as stream:
        async for chunk in stream:
            if chunk.choices[0].delta.content:
                break
    system.scripted.release("fragile")
    await eventually(
        lambda: [call["ended_by"] for call in system.scripted.calls("fragile")] == ["agent"],
        description="the agent has said all",
    )
