"""Python functions as agents: whatever kind they are, they become the same frames and events."""

from __future__ import annotations

import asyncio

import pytest

from shared.config import FunctionAgent
from shared.errors import AgentError, AgentProtocolError, ConfigError
from shared.events import Event
from shared.requests import Message, RunRequest
from shared.summary import Summary
from tests.support.wait import eventually
from tests.workers.agents import functions
from workers.agents import open_agent
from workers.agents.client import HttpAgents
from workers.agents.function import load_function
from workers.agents.handover import LIMIT_BYTES
from workers.dialects import AGENT_DIALECTS

pytestmark = pytest.mark.anyio

RUN = RunRequest(
    (Message("user", "hello"),), {"name": "Ada"}, conversation="c1", user="u1", metadata={"team": "blue"}
)


async def run(name: str) -> list[Event]:
    config = FunctionAgent(function=f"tests.workers.agents.functions:{name}")
    dialect = AGENT_DIALECTS["function"](config)
    events: list[Event] = []
    async with asyncio.timeout(10), open_agent(HttpAgents(), config, dialect, RUN) as batches:
        async for batch in batches:
            events += [event for frame in batch for event in dialect.map(frame)]
    return events + list(dialect.finish())


async def total_of(name: str) -> Summary:
    total = Summary()
    for event in await run(name):
        total.feed(event)
    assert total.end is not None
    return total


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("stream", "You said: hello"),
        ("blocking_stream", "blocking Ada"),
        ("coroutine", "HELLO"),
        ("returns_coroutine", "HELLO"),
        ("nothing", ""),
        ("halves", "a\N{WAVING HAND SIGN}b\ufffd"),
    ],
)
async def test_text_of_every_kind_of_function(name: str, text: str) -> None:
    assert (await total_of(name)).text == text


async def test_a_dict_is_structured_output() -> None:
    total = await total_of("plain")
    assert total.outputs == {"user": "u1", "conversation": "c1", "metadata": {"team": "blue"}}
    assert total.text == ""


async def test_events_pass_and_blocks_are_kept_in_order() -> None:
    assert [event.type for event in await run("events")] == [
        "reasoning.start",
        "reasoning.delta",
        "reasoning.end",
        "text.start",
        "text.delta",
        "data",
        "usage",
        "data",
        "text.end",
        "run.completed",
    ]
    total = await total_of("events")
    assert (total.outputs, total.usage and total.usage.total_tokens) == ({"answer": 42}, 3)


@pytest.mark.parametrize("name", ["fails", "fails_blocking", "gives_an_object"])
async def test_a_failure_is_an_agent_error_without_internals(name: str) -> None:
    with pytest.raises(AgentError) as caught:
        await run(name)
    assert "hunter2" not in str(caught.value)


async def test_a_function_cannot_forge_events_of_the_run() -> None:
    with pytest.raises(AgentProtocolError):
        await run("forges")


@pytest.mark.parametrize("name", ["never_ends", "floods", "floods_async"])
async def test_leaving_ends_the_function(name: str) -> None:
    config = FunctionAgent(function=f"tests.workers.agents.functions:{name}")
    stream = open_agent(HttpAgents(), config, AGENT_DIALECTS["function"](config), RUN)
    async with asyncio.timeout(5), stream as batches:
        assert await anext(batches)
    await eventually(functions.closed.is_set, description="the generator is closed")


@pytest.mark.parametrize("name", ["floods", "floods_async"])
async def test_a_fast_generator_waits_for_its_reader(name: str) -> None:
    config = FunctionAgent(function=f"tests.workers.agents.functions:{name}")
    bound = LIMIT_BYTES // 1024 + 2
    async with open_agent(HttpAgents(), config, AGENT_DIALECTS["function"](config), RUN) as batches:
        await eventually(lambda: functions.given > bound // 2)
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert functions.given <= bound
        assert await anext(batches)
        await eventually(lambda: functions.given > bound)
    await eventually(functions.closed.is_set)


@pytest.mark.parametrize(
    "spec",
    [
        "no.such.module:f",
        "tests.workers.agents.functions:absent",
        "tests.workers.agents.functions:not_callable",
    ],
)
def test_a_function_that_is_not_there_is_a_configuration_error(spec: str) -> None:
    with pytest.raises(ConfigError, match=spec.split(":", maxsplit=1)[0]):
        load_function(spec)
