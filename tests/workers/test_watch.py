"""Deadlines of an attempt: what is overdue, and what it is called."""

from __future__ import annotations

import asyncio

import pytest

from shared.config import Timeouts
from shared.errors import AgentTimeout
from tests.support.wait import eventually
from workers import watch as watch_module
from workers.watch import Watch

SOON = 0.05
LONG = 60.0


class Stopped:
    """Counts how often the watch has said stop."""

    def __init__(self) -> None:
        self.times = 0
        self.at = 0.0

    def __call__(self) -> None:
        self.times += 1
        self.at = asyncio.get_running_loop().time()


def begin(stopped: Stopped, *, first: float = LONG, progress: float = LONG, run: float = LONG) -> Watch:
    deadline = asyncio.get_running_loop().time() + run
    return Watch(Timeouts(first_event=first, progress=progress), deadline, stopped)


async def reason(watch: Watch, stopped: Stopped) -> str:
    await eventually(lambda: stopped.times, 5, "the watch runs out")
    assert isinstance(watch.expired, AgentTimeout)
    return str(watch.expired)


async def test_an_agent_that_says_nothing_is_overdue() -> None:
    stopped = Stopped()
    assert "sent nothing for 0.05 s" in await reason(begin(stopped, first=SOON), stopped)


async def test_an_agent_that_says_nothing_more_is_overdue() -> None:
    """The time between events is shorter than that to the first one, and counts from the first event."""
    stopped = Stopped()
    watch = begin(stopped, progress=SOON)
    watch.progress()
    assert "nothing more for 0.05 s" in await reason(watch, stopped)


async def test_each_event_buys_time() -> None:
    stopped = Stopped()
    watch = begin(stopped, first=4 * SOON, progress=4 * SOON)
    began = asyncio.get_running_loop().time()
    for _ in range(6):
        await asyncio.sleep(SOON)
        watch.progress()
    await reason(watch, stopped)
    assert stopped.at - began >= 10 * SOON


async def test_a_run_has_a_deadline_whatever_the_agent_says() -> None:
    stopped = Stopped()
    watch = begin(stopped, run=SOON)
    watch.progress()
    assert "by its deadline" in await reason(watch, stopped)


async def test_after_the_end_marker_there_is_a_short_while_and_no_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch_module, "AFTER_END", SOON)
    stopped = Stopped()
    watch = begin(stopped)
    watch.end_seen()
    watch.progress()
    await eventually(lambda: stopped.times, 5, "the watch runs out")
    assert watch.expired is None


async def test_a_closed_watch_keeps_silent() -> None:
    stopped = Stopped()
    watch = begin(stopped, first=SOON)
    watch.close()
    await asyncio.sleep(2 * SOON)
    assert stopped.times == 0
