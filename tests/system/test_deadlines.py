"""Agents that keep silent, or never end, and runs that wait too long."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.support.sse_client import Viewer
from tests.support.system import System, browser, start_run, watched
from tests.support.wait import eventually
from tests.system.conftest import StartSystem

DEADLINE = 0.6
"""Of whichever timeout a run runs into; the others are far away."""

AT_MOST = 3 * (DEADLINE + 1)

AGENTS = """
agents:
  unanswered: {dialect: openai-chat, url: "{url}/s/silent/openai/v1", model: gpt, api_key: "${KEY}",
               timeouts: {first_event: 0.6}}
  unanswered-workflow: {dialect: dify-workflow, url: "{url}/s/silent/dify/v1", api_key: "${KEY}",
                        timeouts: {first_event: 0.6}}
  stalled: {dialect: openai-chat, url: "{url}/s/stalled/openai/v1", model: gpt, api_key: "${KEY}",
            timeouts: {progress: 0.6}}
  stalled-chat: {dialect: dify-chat, url: "{url}/s/stalled/dify/v1", api_key: "${KEY}",
                 timeouts: {progress: 0.6}}
  endless: {dialect: openai-chat, url: "{url}/s/endless/openai/v1", model: gpt, api_key: "${KEY}",
            timeouts: {run: 0.6}}
  endless-workflow: {dialect: dify-workflow, url: "{url}/s/endless/dify/v1", api_key: "${KEY}",
                     timeouts: {run: 0.6}}
  queued: {dialect: openai-chat, url: "{url}/s/silent/openai/v1", model: gpt, api_key: "${KEY}",
           timeouts: {queue: 0.6}}
"""


@pytest.fixture(scope="module")
def shared_system(start_shared_system: StartSystem) -> System:
    return start_shared_system(AGENTS)


@pytest.fixture
def system(shared_system: System) -> System:
    shared_system.scripted.reset()
    return shared_system


async def run_out(system: System, agent: str) -> Viewer:
    """Ask `agent`, and see its run end with `timeout` in time, its connection closed by us."""
    async with browser() as client:
        began = time.monotonic()
        viewer = await watched(client, system.url, await start_run(client, system.url, agent))
        assert time.monotonic() - began < AT_MOST
    assert viewer.terminal is not None
    told = viewer.terminal.data
    assert (told["type"], told["code"], told["retryable"]) == ("run.failed", "timeout", True)
    await eventually(lambda: system.scripted.stats()["open"] == 0, description="the agent is left")
    return viewer


@pytest.mark.parametrize("agent", ["unanswered", "unanswered-workflow"])
@pytest.mark.parametrize(
    "script",
    [{"delay": 60}, {"silent_after": 0}, {"pings_after": 0}],
    ids=["no head", "no frame", "pings only"],
)
async def test_an_agent_that_says_nothing_times_out(
    system: System, agent: str, script: dict[str, Any]
) -> None:
    system.scripted.script("silent", {"tokens": 5, **script})
    viewer = await run_out(system, agent)
    assert viewer.text == ""


@pytest.mark.parametrize("agent", ["stalled", "stalled-chat"])
@pytest.mark.parametrize("script", [{"silent_after": 4}, {"pings_after": 4}], ids=["silence", "pings only"])
async def test_an_agent_that_stops_in_the_middle_times_out(
    system: System, agent: str, script: dict[str, Any]
) -> None:
    """What was said stays; pings are no progress."""
    system.scripted.script("stalled", {"tokens": 9, **script})
    viewer = await run_out(system, agent)
    assert viewer.text.startswith("tok0 tok1 tok2 ")
    assert viewer.resets == []


@pytest.mark.parametrize("agent", ["endless", "endless-workflow"])
async def test_an_agent_that_never_ends_times_out(system: System, agent: str) -> None:
    system.scripted.script("endless", {"endless": True, "pace": 0.02})
    viewer = await run_out(system, agent)
    assert viewer.text.startswith("tok0 tok1 ")


async def test_a_run_that_no_worker_takes_expires(system: System) -> None:
    """It ends though the only worker is frozen, and is not begun when that one wakes up."""
    worker = system.workers[0]
    for name in ("silent", "stalled"):
        system.scripted.script(name, {"tokens": 1})
    async with browser() as client:
        worker.pause()
        try:
            began = time.monotonic()
            run = await start_run(client, system.url, "queued")
            viewer = await watched(client, system.url, run)
            assert time.monotonic() - began < AT_MOST
        finally:
            worker.resume()
        assert viewer.terminal is not None
        assert (viewer.terminal.event, viewer.terminal.data["code"]) == ("run.failed", "expired")
        await watched(client, system.url, await start_run(client, system.url, "stalled"))
        assert [call["script"] for call in system.scripted.stats()["calls"]] == ["stalled"]
