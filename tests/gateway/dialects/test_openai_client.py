"""The official `openai` client reads our streams from a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionChunk

from gateway.dialects.base import Encoded, ViewOptions
from gateway.dialects.openai_chat import OpenAIChat
from shared.events import Event, RunFailed
from tests.gateway.dialects.conversations import ANSWER, FAILED, TOOL, WHOLE_TEXT, options
from tests.gateway.dialects.log import entries
from tests.gateway.serving import ScriptedSubscriber, StreamingApp, quick, served


@asynccontextmanager
async def client_of(events: Sequence[Event], view: ViewOptions) -> AsyncIterator[AsyncOpenAI]:
    """A client of a server that streams these events, with a heartbeat when something was shown."""
    dialect = OpenAIChat(view)
    encoded = [dialect.encode(entry) for entry in entries(*events)]
    if encoded[-1].failure is None:
        encoded.insert(-1, Encoded((dialect.heartbeat(),)))
    told = [one for one in encoded if one.frames or one.ends]
    app = StreamingApp(ScriptedSubscriber(*told), quick(), dialect="openai-chat", view=view)
    async with (
        served(app, app.settings, app.drain) as port,
        AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="k", max_retries=0) as client,
    ):
        yield client


async def streamed(client: AsyncOpenAI, **more: Any) -> list[ChatCompletionChunk]:
    """All chunks of one completion."""
    async with asyncio.timeout(10):
        stream = await client.chat.completions.create(
            model="weather-agent", messages=[{"role": "user", "content": "?"}], stream=True, **more
        )
        return [chunk async for chunk in stream]


@pytest.mark.parametrize("safe", [False, True])
async def test_the_official_client_reads_the_text_and_the_finish(safe: bool) -> None:
    async with client_of(ANSWER, options(safe=safe)) as client:
        chunks = await streamed(client)
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(delta.content or "" for delta in deltas) == WHOLE_TEXT
    assert [delta.role for delta in deltas if delta.role] == ["assistant"]
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert {(chunk.id, chunk.created, chunk.model) for chunk in chunks} == {
        ("chatcmpl-run_01KAQ7", 1795360000, "weather-agent")
    }


async def test_the_official_client_reads_the_usage() -> None:
    async with client_of(ANSWER, options(usage=True)) as client:
        chunks = await streamed(client, stream_options={"include_usage": True})
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 59


async def test_the_official_client_puts_tool_calls_together() -> None:
    async with client_of(TOOL, options()) as client:
        chunks = await streamed(client)
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert calls[0].id == "call_1"
    assert calls[0].function is not None
    assert calls[0].function.name == "get_weather"
    arguments = [call.function.arguments or "" for call in calls if call.function]
    assert "".join(arguments) == '{"city":"Paris"}'


async def test_the_official_client_raises_an_error_in_the_middle() -> None:
    async with client_of(FAILED, options()) as client:
        with pytest.raises(openai.APIError, match="upstream agent failed"):
            await streamed(client)


async def test_a_failure_before_any_text_is_a_status_for_the_official_client() -> None:
    failed = RunFailed(code="timeout", message="the agent was silent")
    async with client_of([failed], options()) as client:
        with pytest.raises(openai.InternalServerError, match="the agent was silent") as raised:
            await streamed(client)
    assert raised.value.status_code == 504
