"""A gateway dies, leaves or never gets to the queue."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import pytest

from tests.support.fault_proxy import FaultProxy
from tests.support.sse_client import Frame, StrictParser, Viewer
from tests.support.system import Gateway, System, browser, events_of, start_run, watched
from tests.support.wait import eventually
from tests.system.conftest import StartSystem

LIMIT = 10.0 * 3
"""Seconds within which a gateway has gone and a run has begun; three times the idle machine's."""

TOKENS = 60
TEXT = "".join(f"tok{number} " for number in range(TOKENS))


def speak_slowly(system: System) -> None:
    """The agent `long` takes about two seconds for its answer."""
    system.scripted.script("long", {"tokens": TOKENS, "pace": 0.03})


async def resumed(client: httpx.AsyncClient, urls: list[str], viewer: Viewer, run: str) -> None:
    """Watch at the first gateway as long as it is there, then at the second."""
    for url in urls:
        try:
            await viewer.watch(client, events_of(url, run))
        except httpx.TransportError:
            continue
        if viewer.terminal is not None:
            return
    await viewer.watch_to_end(client, events_of(urls[-1], run))


async def test_clients_of_a_killed_gateway_go_on_at_the_other(start_system: StartSystem) -> None:
    system = start_system(gateways=2)
    speak_slowly(system)
    urls = [gateway.url for gateway in system.gateways]
    async with browser() as client:
        runs = [await start_run(client, urls[0], "long") for _ in range(5)]
        viewers = [(run, Viewer()) for run in runs for _ in range(4)]
        watching = [asyncio.create_task(resumed(client, urls, viewer, run)) for run, viewer in viewers]
        await eventually(lambda: all(viewer.text for _, viewer in viewers), 15, "all see text")
        system.gateways[0].kill()
        assert all(viewer.terminal is None for _, viewer in viewers)
        await asyncio.gather(*watching)
    for _, viewer in viewers:
        assert viewer.text == TEXT
        assert viewer.types[-1] == "run.completed"
        assert viewer.resets == []
    assert len(system.scripted.calls("long")) == len(runs)


class WholeFrames:
    """One connection to its end, which has to come between two frames."""

    def __init__(self) -> None:
        self.parser = StrictParser()
        self.body = b""
        self.frames: list[Frame] = []

    async def read(self, client: httpx.AsyncClient, url: str) -> None:
        async with client.stream("GET", url, headers={"accept": "text/event-stream"}) as response:
            assert response.status_code == 200
            async for chunk in response.aiter_raw():
                self.body += chunk
                self.frames += self.parser.feed(chunk)
        assert self.body.endswith(b"\n\n")


async def test_a_gateway_told_to_end_breaks_no_frame_and_no_run(start_system: StartSystem) -> None:
    """Each of two gateways is replaced in turn under streams: nothing is lost, doubled or ended by it."""
    system = start_system(gateways=2, env={"BFF_HEARTBEAT": "0.5"})
    system.scripted.script("long", {"tokens": TOKENS, "pace": 0.01, "hold_after": 20})
    urls = [gateway.url for gateway in system.gateways]
    async with browser() as client:
        runs = [await start_run(client, urls[0], "long") for _ in range(10)]
        left = [WholeFrames() for _ in runs]
        leaving = [
            asyncio.create_task(one.read(client, events_of(urls[0], run)))
            for one, run in zip(left, runs, strict=True)
        ]
        await eventually(lambda: all(b"tok5" in one.body for one in left), 15, "all see text")
        began = time.monotonic()
        assert await asyncio.to_thread(system.gateways[0].terminate, LIMIT) == 0
        assert time.monotonic() - began < LIMIT
        await asyncio.gather(*leaving)
        for one in left:
            assert not one.frames[-1].event.startswith(("run.completed", "run.failed", "run.stopped"))
            assert one.parser.retry is not None
        viewers = [Viewer(cursor=one.frames[-1].id) for one in left]
        urls += [system.add_gateway().url]
        watching = [
            asyncio.create_task(resumed(client, urls[1:], viewer, run))
            for viewer, run in zip(viewers, runs, strict=True)
        ]
        await eventually(lambda: all(viewer.status == 200 for viewer in viewers), 15, "all have resumed")
        assert await asyncio.to_thread(system.gateways[1].terminate, LIMIT) == 0
        system.scripted.release("long")
        await asyncio.gather(*watching)
    for one, viewer in zip(left, viewers, strict=True):
        assert viewer.types[-1] == "run.completed"
        said = [frame.data["text"] for frame in one.frames if frame.event == "text.delta"]
        assert "".join(said) + viewer.text == TEXT
    assert len(system.scripted.calls("long")) == len(runs)


def doomed_gateway(system: System) -> Gateway:
    """One that dies as soon as it has created a run, before the run is on the queue."""
    return system.add_gateway(BFF_FAILPOINT="after_accept:kill")


async def test_a_run_of_a_gateway_that_died_before_the_queue_starts_all_the_same(
    start_system: StartSystem,
) -> None:
    system = start_system()
    doomed = doomed_gateway(system)
    async with browser() as client:
        with pytest.raises(httpx.TransportError):
            await start_run(client, doomed.url, "assistant")
        began = time.monotonic()
        await asyncio.to_thread(system.scripted.wait_for_calls, "", 1, LIMIT)
        assert time.monotonic() - began < LIMIT
        (run,) = (await client.get(f"{system.url}/v1/runs")).json()["runs"]
        viewer = await watched(client, system.url, run["id"])
    assert viewer.types[-1] == "run.completed"


async def asked_until_answered(client: httpx.AsyncClient, urls: list[str], key: str) -> dict[str, Any]:
    """The whole result, asked for again at the next gateway with the same key until there is one."""
    for url in urls * 3:
        try:
            answer = await client.post(
                f"{url}/v1/runs",
                json={"agent": "long", "input": "once"},
                headers={"idempotency-key": key, "accept": "application/json", "prefer": "wait=60"},
            )
        except httpx.TransportError:
            continue
        assert answer.status_code == 200, answer.text
        result: dict[str, Any] = answer.json()
        return result
    raise AssertionError("no gateway answers")


async def test_fifty_posts_with_one_key_are_one_run_though_a_gateway_dies(start_system: StartSystem) -> None:
    """One gateway is killed between create and enqueue; the agent is called once."""
    system = start_system()
    doomed = doomed_gateway(system)
    speak_slowly(system)
    urls = [doomed.url, system.url]
    async with browser() as client:
        system.gateways[0].pause()
        asking = [
            asyncio.create_task(asked_until_answered(client, urls[i % 2 :] + urls[: i % 2], "fifty"))
            for i in range(50)
        ]
        await eventually(lambda: not doomed.running, 15, "the doomed gateway has created the run")
        system.gateways[0].resume()
        results = await asyncio.gather(*asking)
    assert [result["text"] for result in results] == [TEXT] * 50
    assert len({result["id"] for result in results}) == 1
    assert len(system.scripted.calls("long")) == 1


async def test_a_post_repeated_after_a_lost_answer_is_the_same_run(start_system: StartSystem) -> None:
    """The answer is lost on the way, then the client repeats, 20 times at once."""
    system = start_system()
    speak_slowly(system)
    port = httpx.URL(system.url).port
    assert port is not None
    with FaultProxy(port) as proxy:
        urls = [f"http://127.0.0.1:{proxy.port}"]
        async with browser() as client:
            proxy.drop_next_reply()
            results = await asyncio.gather(*(asked_until_answered(client, urls, "twenty") for _ in range(20)))
    assert [result["text"] for result in results] == [TEXT] * 20
    assert len({result["id"] for result in results}) == 1
    assert len(system.scripted.calls("long")) == 1
