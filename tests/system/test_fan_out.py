"""Many viewers of many runs, on any gateway, from any position."""

from __future__ import annotations

import asyncio

import httpx

from tests.support.sse_client import Viewer
from tests.support.system import browser, events_of, start_run, watched
from tests.support.wait import eventually
from tests.system.conftest import StartSystem

TEXT = "A gateway owns the connection; a worker owns the work."
"""What the scripted agent says, but for the piece of the prompt."""


async def test_every_viewer_on_every_gateway_sees_every_run_whole(start_system: StartSystem) -> None:
    """100 runs with 5 viewers each on two gateways, all attached before the first token."""
    system = start_system(gateways=2, workers=2)
    system.scripted.script("long", {"pace": 0.005, "hold_after": 0})
    async with browser() as client:
        runs = [await start_run(client, system.gateways[i % 2].url, "long", f"no. {i}") for i in range(100)]
        viewers = [(run, i % 2, Viewer()) for run in runs for i in range(5)]
        watching = [
            asyncio.create_task(viewer.watch_to_end(client, events_of(system.gateways[gateway].url, run)))
            for run, gateway, viewer in viewers
        ]
        await eventually(lambda: all(viewer.frames for *_, viewer in viewers), 30, "all are attached")
        await asyncio.to_thread(system.scripted.wait_for_calls, "long", 100)
        assert not any(viewer.text for *_, viewer in viewers)
        system.scripted.release("long")
        await asyncio.gather(*watching)
    for run, _, viewer in viewers:
        prompt = f" (no. {runs.index(run)})"
        assert prompt in viewer.text
        assert viewer.text.replace(prompt, "") == TEXT
        assert viewer.types[-1] == "run.completed"


async def test_a_client_cut_after_every_byte_resumes_with_exactly_the_rest(start_system: StartSystem) -> None:
    system = start_system(gateways=2)
    async with browser() as client:
        run = await start_run(client, system.url, "assistant")
        whole = await watched(client, system.url, run)
        body = (await client.get(events_of(system.url, run), headers={"accept": "text/event-stream"})).content

        async def cut_at(length: int) -> None:
            viewer = Viewer()
            await viewer.watch(client, events_of(system.url, run), stop_after=length)
            if viewer.terminal is None:
                await viewer.watch(client, events_of(system.gateways[length % 2].url, run))
            assert viewer.frames == whole.frames

        lengths = iter(range(1, len(body)))

        async def cutter() -> None:
            for length in lengths:
                await cut_at(length)

        await asyncio.gather(*(cutter() for _ in range(8)))


async def test_a_client_of_an_attempt_that_was_lost_gets_the_other_one_whole(
    start_system: StartSystem,
) -> None:
    """The old attempt is shown, its worker dies, another one answers; then everybody comes back."""
    quick = {"BFF_LEASE": "1", "BFF_SUSPECT_FOR": "0.4", "BFF_RENEW_EVERY": "0.2"}
    system = start_system(gateways=2, env=quick)
    system.scripted.script("long", {"tokens": 12, "hold_after": 8}, {"tokens": 12})
    answer = "".join(f"tok{number} " for number in range(12))
    async with browser() as client:
        run = await start_run(client, system.url, "long-again")
        early = Viewer()
        await early.watch(client, events_of(system.url, run), until="text.delta")
        system.workers[0].kill()
        system.add_worker()
        whole = await watched(client, system.url, run)
        assert whole.text == answer
        old = [frame for frame in early.frames if frame.event not in ("run.accepted", "run.queued")]

        async def come_back(shown: int, url: str) -> None:
            viewer = Viewer()
            for frame in early.frames[:shown]:
                viewer.see(frame)
            await viewer.watch(client, events_of(url, run))
            assert viewer.text == answer
            assert viewer.resets == (["attempt"] if shown > len(early.frames) - len(old) + 1 else [])

        for shown in range(len(early.frames) + 1):
            for gateway in system.gateways:
                await come_back(shown, gateway.url)


async def test_a_viewer_at_the_end_has_nothing_left(start_system: StartSystem) -> None:
    system = start_system()
    async with browser() as client:
        run = await start_run(client, system.url, "assistant")
        viewer = await watched(client, system.url, run)
        await viewer.watch(client, events_of(system.url, run))
        assert viewer.status == 204


async def test_one_stream_is_seen_in_every_native_form(start_system: StartSystem) -> None:
    system = start_system()
    async with browser() as client:
        run = await start_run(client, system.url, "assistant")
        viewer = await watched(client, system.url, run)

        async def body(accept: str) -> httpx.Response:
            return await client.get(events_of(system.url, run), headers={"accept": accept})

        assert (await body("text/plain")).text == viewer.text
        lines = (await body("application/x-ndjson")).text.splitlines()
        assert len(lines) == len(viewer.frames)
        state = await client.get(f"{system.url}/v1/runs/{run}")
        assert state.json()["text"] == viewer.text
