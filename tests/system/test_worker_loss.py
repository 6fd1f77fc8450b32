"""Workers that die, freeze or are told to go."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.sse_client import Viewer
from tests.support.system import System, browser, events_of, start_run, state_of, text_has_begun, watched
from tests.support.wait import eventually
from tests.system.conftest import StartSystem

ON_A_BUSY_MACHINE = 3
"""Limits are stated for an idle machine."""

QUICK = {
    "BFF_LEASE": "1",
    "BFF_RENEW_EVERY": "0.2",
    "BFF_SUSPECT_FOR": "0.4",
    "BFF_SWEEP_EVERY": "0.1",
}
"""A lost worker is noticed within two seconds. What the defaults promise has a test too."""

AGENTS = """
agents:
  fails: {dialect: openai-chat, url: "{url}/s/fails/openai/v1", model: gpt, api_key: "${KEY}"}
  again: {dialect: openai-chat, url: "{url}/s/again/openai/v1", model: gpt, api_key: "${KEY}",
          on_interrupt: restart}
  once: {dialect: openai-chat, url: "{url}/s/once/openai/v1", model: gpt, api_key: "${KEY}",
         on_interrupt: restart, repeatable: false}
"""

TOKENS = 30
ANSWER = "".join(f"tok{number} " for number in range(TOKENS))
WHOLE: dict[str, Any] = {"tokens": TOKENS}


def held(frames: int) -> dict[str, Any]:
    """An answer that stops after so many frames until it is released; text begins with the second."""
    return {**WHOLE, "hold_after": frames}


def watch(client: httpx.AsyncClient, system: System, run: str) -> tuple[Viewer, asyncio.Task[None]]:
    """Somebody who watches until the end."""
    viewer = Viewer()
    return viewer, asyncio.create_task(viewer.watch_to_end(client, events_of(system.url, run)))


def is_interrupted(viewer: Viewer) -> bool:
    end = viewer.terminal
    return end is not None and (end.event, end.data.get("code"), end.data.get("retryable")) == (
        "run.failed",
        "interrupted",
        True,
    )


def open_runs(system: System) -> int:
    with system.redis.client() as client:
        return int(client.zcard("bff:open"))


async def test_a_killed_worker_is_replaced_in_time(start_system: StartSystem) -> None:
    """With the default settings: silently before the first token, by the policy after it; an agent that
    must not be repeated is not asked twice."""
    system = start_system(AGENTS)
    system.scripted.script("once", held(0), WHOLE)
    system.scripted.script("fails", held(0), held(9), WHOLE)
    system.scripted.script("again", held(9), WHOLE)
    async with browser() as client:
        silent, silent_watch = watch(client, system, await start_run(client, system.url, "fails"))
        system.scripted.wait_for_calls("fails")
        failing, failing_watch = watch(client, system, await start_run(client, system.url, "fails"))
        again, again_watch = watch(client, system, await start_run(client, system.url, "again"))
        once, once_watch = watch(client, system, await start_run(client, system.url, "once"))
        await text_has_begun(failing)
        await text_has_begun(again)
        system.scripted.wait_for_calls("once")
        await eventually(lambda: "run.started" in silent.types, 5, "the silent run has started")
        killed = time.monotonic()
        system.workers[0].kill()
        system.add_worker()
        await asyncio.gather(silent_watch, failing_watch, again_watch, once_watch)
        assert time.monotonic() - killed < 8 * ON_A_BUSY_MACHINE
    assert (silent.text, silent.resets, silent.types[-1]) == (ANSWER, [], "run.completed")
    assert silent.types.count("run.started") == 2
    assert (again.text, again.resets, again.types[-1]) == (ANSWER, ["attempt"], "run.completed")
    assert is_interrupted(failing)
    assert failing.resets == []
    assert failing.text
    assert ANSWER.startswith(failing.text)
    assert is_interrupted(once)
    assert len(system.scripted.calls("once")) == 1
    assert open_runs(system) == 0


@pytest.mark.parametrize("policy", ["fails", "again"])
async def test_a_worker_may_die_at_any_event(start_system: StartSystem, policy: str) -> None:
    """One run is held at each frame of the answer when the worker is killed."""
    system = start_system(AGENTS, env=QUICK)
    system.scripted.script(policy, *(held(frames) for frames in range(TOKENS)), WHOLE)
    async with browser() as client:
        watches = []
        for frames in range(TOKENS):
            run = await start_run(client, system.url, policy)
            watches.append(watch(client, system, run))
            await asyncio.to_thread(system.scripted.wait_for_calls, policy, frames + 1)
        await eventually(lambda: all("run.started" in v.types for v, _ in watches), 10, "all have begun")
        await eventually(
            lambda: all(len(viewer.text.split()) == max(i - 1, 0) for i, (viewer, _) in enumerate(watches)),
            10,
            "each is shown what was sent",
        )
        system.workers[0].kill()
        system.add_worker()
        shown_before = [viewer.text for viewer, _ in watches]
        await asyncio.gather(*(task for _, task in watches))
    for shown, (viewer, _) in zip(shown_before, watches, strict=True):
        if shown and policy == "fails":
            assert is_interrupted(viewer)
            assert viewer.text == shown
            assert viewer.types.count("run.started") == 1
        else:
            assert viewer.types[-1] == "run.completed"
            assert viewer.text == ANSWER
            assert viewer.types.count("run.started") == 2
            assert bool(viewer.resets) >= bool(shown)


async def test_front_ends_that_cannot_take_text_back_are_told(start_system: StartSystem) -> None:
    """A run created in `openai-chat` fails whatever the agent's policy; plain text breaks off at a reset."""
    system = start_system(AGENTS, env=QUICK)
    system.scripted.script("again", held(9), held(9), WHOLE)
    async with browser() as client:

        async def ask_openai() -> str:
            body = {"model": "again", "stream": True, "messages": [{"role": "user", "content": "hello"}]}
            return (await client.post(f"{system.url}/v1/chat/completions", json=body)).text

        async def read_plain(run: str) -> None:
            with pytest.raises(httpx.RemoteProtocolError):
                await client.get(events_of(system.url, run), headers={"accept": "text/plain"})

        openai = asyncio.create_task(ask_openai())
        await asyncio.to_thread(system.scripted.wait_for_calls, "again")
        run = await start_run(client, system.url, "again")
        viewer, watching = watch(client, system, run)
        plain = asyncio.create_task(read_plain(run))
        await text_has_begun(viewer)
        system.workers[0].kill()
        system.add_worker()
        await asyncio.gather(watching, plain)
        chunks = (await openai).strip().split("\n\n")
    assert (viewer.text, viewer.resets) == (ANSWER, ["attempt"])
    assert "tok0" in chunks[1]
    assert '"interrupted"' in chunks[-2]
    assert chunks[-1] == "data: [DONE]"
    assert len(system.scripted.calls("again")) == 3


@pytest.mark.parametrize(
    ("point", "milestones"),
    [
        ("after_claim", ["run.started", "run.started", "run.completed"]),
        ("before_finish", ["run.started", "run.failed"]),
        ("after_finish", ["run.started", "run.completed"]),
    ],
)
async def test_a_worker_may_die_at_any_step(
    start_system: StartSystem, point: str, milestones: list[str]
) -> None:
    system = start_system(AGENTS, env={**QUICK, "BFF_FAILPOINT": f"{point}:kill"})
    system.scripted.script("fails", WHOLE)
    async with browser() as client:
        run = await start_run(client, system.url, "fails")
        viewer, watching = watch(client, system, run)
        await eventually(lambda: not system.workers[0].running, 10, "the worker has died")
        await eventually(lambda: "run.started" in viewer.types, 10, "its attempt is told")
        system.add_worker(BFF_FAILPOINT="")
        await watching
        await eventually(lambda: open_runs(system) == 0, 10, "nothing is left to do")
        later = await watched(client, system.url, run)
    told = ("run.started", "reset", "run.completed", "run.failed")
    assert [kind for kind in viewer.types if kind in told] == milestones
    assert later.terminal == viewer.terminal
    assert viewer.text == ANSWER
    assert len(system.scripted.calls("fails")) == 1


async def test_a_frozen_worker_that_wakes_up_writes_nothing(start_system: StartSystem) -> None:
    """Its runs are another's by then; it closes its agents' connections and leaves the new leases alone."""
    system = start_system(AGENTS, env=QUICK)
    system.scripted.script("again", held(9), held(12), WHOLE)
    system.scripted.script("fails", held(9))
    zombie = system.workers[0]
    async with browser() as client:
        again_run = await start_run(client, system.url, "again")
        again, again_watch = watch(client, system, again_run)
        failing, failing_watch = watch(client, system, await start_run(client, system.url, "fails"))
        await text_has_begun(again)
        await text_has_begun(failing)
        zombie.pause()
        system.add_worker()
        await failing_watch
        await asyncio.to_thread(system.scripted.wait_for_calls, "again", 2)
        zombie.resume()
        await eventually(
            lambda: (
                [call["ended_by"] for name in ("again", "fails") for call in system.scripted.calls(name)]
                == ["client", None, "client"]
            ),
            10,
            "the zombie has left its agents",
        )
        with system.redis.client() as redis:
            owner = redis.hget(f"bff:{{{again_run}}}:m", "token")
            assert str(redis.get(f"bff:{{{again_run}}}:l")).split()[0] == owner
        system.scripted.release()
        await again_watch
        assert (await state_of(client, system.url, again_run))["text"] == ANSWER
    assert (again.text, again.resets) == (ANSWER, ["attempt"])
    assert again.types.count("run.started") == 2
    assert is_interrupted(failing)


async def test_a_worker_told_to_go_finishes_what_it_has(start_system: StartSystem) -> None:
    system = start_system(AGENTS)
    system.scripted.script("fails", {**WHOLE, "pace": 0.02})
    worker = system.workers[0]
    async with browser() as client:
        runs = [await start_run(client, system.url, "fails") for _ in range(20)]
        watches = [watch(client, system, run) for run in runs]
        await eventually(lambda: all(viewer.text for viewer, _ in watches), 10, "all are told")
        worker.process.terminate()
        await asyncio.to_thread(worker.wait_for_log, "no new runs")
        late = await start_run(client, system.url, "fails")
        await asyncio.gather(*(task for _, task in watches))
        assert await asyncio.to_thread(worker.process.wait, 10) == 0
        assert (await state_of(client, system.url, late))["status"] == "queued"
        system.add_worker()
        assert (await watched(client, system.url, late)).text == ANSWER
    assert {(viewer.text, viewer.types.count("run.started")) for viewer, _ in watches} == {(ANSWER, 1)}
    assert len(system.scripted.calls("fails")) == 21


async def test_what_is_left_after_the_grace_goes_by_its_policy(start_system: StartSystem) -> None:
    """With the default lease: what a worker hands over waits for nothing."""
    system = start_system(AGENTS, env={"BFF_GRACE": "1"})
    system.scripted.script("fails", held(0), held(9), WHOLE)
    system.scripted.script("again", held(9), WHOLE)
    worker = system.workers[0]
    async with browser() as client:
        silent, silent_watch = watch(client, system, await start_run(client, system.url, "fails"))
        await asyncio.to_thread(system.scripted.wait_for_calls, "fails")
        failing, failing_watch = watch(client, system, await start_run(client, system.url, "fails"))
        again, again_watch = watch(client, system, await start_run(client, system.url, "again"))
        await text_has_begun(failing)
        await text_has_begun(again)
        system.add_worker()
        told = time.monotonic()
        status = await asyncio.to_thread(worker.terminate)
        assert status == 0, worker.log
        await asyncio.gather(silent_watch, failing_watch, again_watch)
        assert time.monotonic() - told < 4 * ON_A_BUSY_MACHINE
    assert (silent.text, silent.resets, silent.types[-1]) == (ANSWER, [], "run.completed")
    assert (again.text, again.resets, again.types[-1]) == (ANSWER, ["attempt"], "run.completed")
    assert is_interrupted(failing)


async def test_a_run_that_kills_every_worker_is_given_up(start_system: StartSystem, tmp_path: Path) -> None:
    (tmp_path / "poison.py").write_text("import os\n\ndef drink(call):\n    os._exit(70)\n")
    agents = "agents: {poison: {function: 'poison:drink'}}"
    env = {**QUICK, "BFF_LEASE": "0.4", "BFF_SUSPECT_FOR": "0.1", "PYTHONPATH": str(tmp_path)}
    system = start_system(agents, workers=0, env=env)
    async with browser() as client:
        run = await start_run(client, system.url, "poison")
        viewer, watching = watch(client, system, run)
        worker = system.add_worker()

        def restarted() -> bool:
            if not worker.running:
                worker.start()
            return watching.done()

        await eventually(restarted, 60, "the run is given up")
        await watching
    assert viewer.terminal is not None
    assert viewer.terminal.data["code"] == "poisoned"
    assert viewer.types.count("run.started") == 3
