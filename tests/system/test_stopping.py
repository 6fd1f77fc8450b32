"""Runs that somebody ends: by a call from any gateway, or by leaving."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from tests.support.sse_client import Viewer
from tests.support.system import System, browser, events_of, start_run, state_of, text_has_begun, watched
from tests.support.wait import eventually
from tests.system.conftest import StartSystem

STOPPED_WITHIN = 3.0
"""One second on an idle machine, three times as much on a loaded one."""

AGENTS = """
agents:
  assistant: {dialect: openai-chat, url: "{url}/s/held/openai/v1", model: gpt, api_key: "${KEY}"}
  workflow: {dialect: dify-workflow, url: "{url}/s/held/dify/v1", api_key: "${KEY}"}
  paced: {dialect: openai-chat, url: "{url}/s/paced/openai/v1", model: gpt, api_key: "${KEY}"}
  lingering: {dialect: openai-chat, url: "{url}/s/paced/openai/v1", model: gpt, api_key: "${KEY}",
              on_disconnect: linger, linger: 2}
"""


@pytest.fixture(scope="module")
def shared_system(start_shared_system: StartSystem) -> System:
    return start_shared_system(AGENTS, gateways=2)


@pytest.fixture
def system(shared_system: System) -> System:
    """Two gateways and a worker; `held` says ten words and waits, `paced` goes on for ever."""
    shared_system.scripted.reset()
    shared_system.scripted.script("held", {"tokens": 50, "hold_after": 12})
    shared_system.scripted.script("paced", {"endless": True, "pace": 0.1})
    return shared_system


@asynccontextmanager
async def watching(client: httpx.AsyncClient, url: str, run: str) -> AsyncIterator[Viewer]:
    """Somebody who has seen text, and stays until the end of the run or of the block."""
    viewer = Viewer()
    task = asyncio.create_task(viewer.watch(client, events_of(url, run)))
    try:
        await text_has_begun(viewer)
        yield viewer
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def stop(client: httpx.AsyncClient, url: str, run: str) -> httpx.Response:
    return await client.post(f"{url}/v1/runs/{run}/stop")


async def all_are_told(*viewers: Viewer) -> None:
    """Wait until everybody has been told that the run was stopped by a client."""
    await eventually(lambda: all(viewer.terminal for viewer in viewers), STOPPED_WITHIN, "all are told")
    for viewer in viewers:
        assert viewer.terminal is not None
        assert (viewer.terminal.event, viewer.terminal.data["by"]) == ("run.stopped", "client")


async def agent_is_left(system: System, name: str, deadline: float = STOPPED_WITHIN) -> None:
    """Wait until the only call under `name` was ended by us, not by the agent."""
    await asyncio.to_thread(system.scripted.wait_for_calls, name)
    await eventually(
        lambda: [call["ended_by"] for call in system.scripted.calls(name)] == ["client"],
        deadline,
        "the agent sees its connection closed",
    )


async def test_a_stop_at_another_gateway_reaches_every_viewer_and_the_agent(system: System) -> None:
    here, there = (gateway.url for gateway in system.gateways)
    async with browser() as client:
        run = await start_run(client, here, "assistant")
        async with (
            watching(client, here, run) as one,
            watching(client, here, run) as two,
            watching(client, there, run) as three,
        ):
            answer = await stop(client, there, run)
            assert (answer.status_code, answer.json()["status"]) == (202, "stopped")
            await all_are_told(one, two, three)
            await agent_is_left(system, "held")


async def test_a_stop_does_not_need_the_worker(system: System) -> None:
    """A frozen worker writes nothing more when it wakes up, and leaves its agent."""
    here, there = (gateway.url for gateway in system.gateways)
    async with browser() as client:
        run = await start_run(client, here, "assistant")
        async with watching(client, here, run) as one, watching(client, there, run) as two:
            system.workers[0].pause()
            try:
                assert (await stop(client, there, run)).status_code == 202
                await all_are_told(one, two)
                system.scripted.release("held")
            finally:
                system.workers[0].resume()
        await eventually(lambda: system.scripted.stats()["open"] == 0, 5, "the agent is left")
        assert (await watched(client, here, run)).frames == one.frames


async def test_a_stop_reaches_the_agents_own_stop_address(system: System) -> None:
    async with browser() as client:
        run = await start_run(client, system.url, "workflow")
        await asyncio.to_thread(system.scripted.wait_for_calls, "held")
        async with watching(client, system.url, run) as viewer:
            await stop(client, system.gateways[1].url, run)
            await all_are_told(viewer)
        await eventually(lambda: system.scripted.stats()["stops"] == 1, STOPPED_WITHIN, "Dify is told")
        await eventually(lambda: system.scripted.stats()["open"] == 0, STOPPED_WITHIN, "Dify is left")


async def test_a_run_that_waits_is_stopped_and_never_starts(system: System) -> None:
    here, there = (gateway.url for gateway in system.gateways)
    async with browser() as client:
        system.workers[0].pause()
        try:
            run = await start_run(client, here, "assistant")
            viewer = Viewer()
            telling = asyncio.create_task(viewer.watch(client, events_of(here, run)))
            await eventually(lambda: viewer.frames, description="the viewer is attached")
            assert (await state_of(client, there, run))["status"] == "queued"
            assert (await stop(client, there, run)).status_code == 202
            await all_are_told(viewer)
            await telling
        finally:
            system.workers[0].resume()
        assert "run.started" not in viewer.types
        other = await start_run(client, here, "workflow")
        async with watching(client, here, other):  # so the worker has looked at what waited before
            assert [call["route"] for call in system.scripted.calls("held")] == ["/dify/v1/workflows/run"]
            await stop(client, here, other)


async def test_a_second_stop_and_one_of_an_ended_run_tell_how_it_ended(system: System) -> None:
    async with browser() as client:
        run = await start_run(client, system.url, "assistant")
        async with watching(client, system.url, run) as viewer:
            answers = await asyncio.gather(*(stop(client, g.url, run) for g in system.gateways * 2))
            assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 202]
            assert {answer.json()["status"] for answer in answers} == {"stopped"}
            await all_are_told(viewer)
        ended = await start_run(client, system.url, "assistant")
        system.scripted.release("held")
        whole = await watched(client, system.url, ended)
        answer = await stop(client, system.gateways[1].url, ended)
        assert (answer.status_code, answer.json()["status"]) == (200, "completed")
        assert (await watched(client, system.url, ended)).frames == whole.frames
        assert (await stop(client, system.url, "0" * 32)).status_code == 404


async def test_leaving_is_not_stopping_unless_the_run_says_so(system: System) -> None:
    """`continue` is the default; `cancel` gives a reconnect two seconds."""
    async with browser() as client:
        goes_on = await start_run(client, system.url, "assistant")
        cancelled = await start_run(client, system.url, "paced", on_disconnect="cancel")
        async with watching(client, system.url, goes_on), watching(client, system.url, cancelled):
            pass
        left = time.monotonic()
        await agent_is_left(system, "paced", 3 * (2 + 1.5 + 1))
        assert time.monotonic() - left > 1.5
        stopped = await watched(client, system.url, cancelled)
        assert stopped.terminal is not None
        assert (stopped.terminal.event, stopped.terminal.data["by"]) == ("run.stopped", "policy")
        system.scripted.release("held")
        assert (await watched(client, system.url, goes_on)).types[-1] == "run.completed"


async def test_a_lingering_run_ends_two_seconds_after_its_last_viewer_anywhere(system: System) -> None:
    here, there = (gateway.url for gateway in system.gateways)
    async with browser() as client:
        run = await start_run(client, here, "lingering")
        async with watching(client, there, run) as stays:
            async with watching(client, here, run):
                pass
            seen = len(stays.frames)
            await eventually(lambda: len(stays.frames) > seen + 45, 15, "it goes on for 4.5 s")
            assert stays.terminal is None
        left = time.monotonic()
        await agent_is_left(system, "paced", 3 * (2 + 1.5 + 1))
        assert time.monotonic() - left > 1.5
        assert (await watched(client, here, run)).types[-1] == "run.stopped"


@pytest.mark.slow
async def test_viewers_of_a_killed_gateway_count_no_longer_after_15_seconds(system: System) -> None:
    """Until then they may come back; a viewer on another gateway keeps a run, and hears heartbeats."""
    doomed = system.add_gateway()
    async with browser() as client:
        alone = await start_run(client, system.url, "lingering")
        shared = await start_run(client, system.url, "lingering")
        silent = await start_run(client, system.url, "assistant")
        async with (
            watching(client, doomed.url, alone),
            watching(client, doomed.url, shared),
            watching(client, system.url, shared) as stays,
            watching(client, system.url, silent) as hears,
        ):
            doomed.kill()
            system.gateways.remove(doomed)
            killed = time.monotonic()
            await is_stopped(client, system, alone)
            assert 9 < time.monotonic() - killed < 30
            assert stays.terminal is None
            assert hears.terminal is None
        assert hears.comments >= 2
        assert (await watched(client, system.url, alone)).types[-1] == "run.stopped"
        for run in (shared, silent):
            await stop(client, system.url, run)


async def is_stopped(client: httpx.AsyncClient, system: System, run: str) -> None:
    """Wait for the end without being a viewer."""

    async def stopped() -> bool:
        return bool((await state_of(client, system.url, run))["status"] == "stopped")

    await eventually(stopped, 40, "the run is stopped")
