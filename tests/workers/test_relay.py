"""One attempt from the agent's first frame to the terminal event."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, Self

import pytest

from shared.config import Timeouts
from shared.cursor import Cursor
from shared.errors import (
    AgentError,
    AgentProtocolError,
    AgentRejected,
    AgentUnavailable,
    ConfigError,
)
from shared.events import Event, RunFailed, RunIds, Step, Terminal, TextDelta
from shared.sse import FrameTooLarge
from shared.stream_log import Answer, Claim, Entry
from tests.support.wait import eventually
from tests.workers.fake_agents import COMPLETED, END, PING, SILENCE, Answering, Dialect, frame, text
from workers import watch as watch_module
from workers.outbox import WAITING_EVENTS, Left, Outbox
from workers.relay import TRIES, GivenBack, Line, Relay


@dataclass
class Attempt:
    """A relay over agents that answer one after the other."""

    agents: list[Answering]
    timeouts: Timeouts = field(default_factory=Timeouts)
    repeatable: bool = True
    run: float = 60.0
    asked: int = 0
    ids: list[RunIds] = field(default_factory=list)
    side_tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        started = Entry(Cursor(5, 0), "run.started", b"{}")
        claim = Claim("r", "token", 5, started, b"{}", "", {}, ())
        self.outbox = Outbox(claim, lambda _: None, limit_bytes=1 << 20)
        line = Line(
            dialect=Dialect,
            connect=self._connect,
            timeouts=self.timeouts,
            secrets=(),
            repeatable=self.repeatable,
            remember=self.ids.append,
            aside=self._aside,
        )
        self.relay = Relay(line, self.outbox, asyncio.get_running_loop().time() + self.run)

    @classmethod
    def of(cls, *said: Any, **options: Any) -> Self:
        return cls([Answering(*said)], **options)

    async def carry(self) -> Terminal:
        async with asyncio.timeout(10):
            terminal = await self.relay.carry()
            await asyncio.gather(*self.side_tasks)
            return terminal

    async def failure(self) -> RunFailed:
        terminal = await self.carry()
        assert isinstance(terminal, RunFailed)
        return terminal

    @property
    def put(self) -> list[Event | None]:
        append = self.outbox.next_append()
        return [entry.event for entry in append.entries] if append else []

    def _connect(self, dialect: object) -> Answering:
        self.asked += 1
        return self.agents[self.asked - 1]

    def _aside(self, work: Coroutine[Any, Any, None]) -> None:
        self.side_tasks.append(asyncio.create_task(work))


async def test_events_go_into_the_outbox_and_the_end_is_given_back() -> None:
    attempt = Attempt.of([frame("ids", "c1"), frame("step", "a")], text("hello"), END)
    assert await attempt.carry() == COMPLETED
    assert attempt.put == [
        RunIds(conversation_id="c1"),
        Step(name="a", status="started"),
        TextDelta(block="t", text="hello"),
        TextDelta(block="owed", text="!"),
    ]
    assert attempt.ids == [RunIds(conversation_id="c1")]
    assert (attempt.agents[0].left, attempt.agents[0].stopped) == (True, False)


async def test_reading_goes_on_behind_the_end_marker_but_not_behind_the_last_word() -> None:
    attempt = Attempt.of(END, [frame("step", "late")], [frame("done")], SILENCE)
    assert await attempt.carry() == COMPLETED
    assert attempt.put[0] == Step(name="late", status="started")


async def test_a_body_that_does_not_end_is_left_a_while_after_the_end_marker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch_module, "AFTER_END", 0.05)
    attempt = Attempt.of(text("a"), END, SILENCE)
    assert await attempt.carry() == COMPLETED
    assert attempt.agents[0].left


@pytest.mark.parametrize(
    ("error", "code", "retryable"),
    [
        (AgentProtocolError("odd"), "agent_protocol", False),
        (AgentError("bad", code="special", retryable=True), "special", True),
        (FrameTooLarge("a line"), "too_large", False),
        (ConfigError("no such function"), "config", False),
    ],
)
async def test_what_goes_wrong_ends_the_run_and_stops_the_agent(
    error: Exception, code: str, retryable: bool
) -> None:
    attempt = Attempt.of(text("a"), error)
    failed = await attempt.failure()
    assert (failed.code, failed.retryable) == (code, retryable)
    assert (attempt.agents[0].left, attempt.agents[0].stopped) == (True, True)
    assert attempt.put == [TextDelta(block="t", text="a")]


async def test_an_agents_own_error_is_told_with_its_code() -> None:
    failed = await Attempt.of([frame("error")]).failure()
    assert (failed.code, failed.message, failed.agent_code) == ("agent_error", "it broke", "7")


async def test_a_body_without_its_end_marker_is_no_success() -> None:
    failed = await Attempt.of(text("a")).failure()
    assert (failed.code, failed.retryable) == ("interrupted", True)


async def test_an_answer_over_the_limit_is_too_large() -> None:
    attempt = Attempt.of(*[text("x" * 100_000) for _ in range(20)], END)
    assert (await attempt.failure()).code == "too_large"
    assert attempt.agents[0].stopped


async def test_an_agent_out_of_reach_is_asked_again() -> None:
    busy = AgentUnavailable("busy", retry_after=0)
    attempt = Attempt([Answering(busy), Answering(busy), Answering(text("hello"), END)])
    assert await attempt.carry() == COMPLETED
    assert attempt.asked == 3
    assert not any(agent.stopped for agent in attempt.agents)


async def test_it_is_not_asked_for_ever() -> None:
    attempt = Attempt([Answering(AgentUnavailable("busy", retry_after=0)) for _ in range(TRIES)])
    failed = await attempt.failure()
    assert (failed.code, failed.retryable, attempt.asked) == ("agent_unavailable", True, TRIES)


@pytest.mark.parametrize(
    ("said", "options"),
    [
        ((AgentRejected("no"),), {}),
        ((AgentUnavailable("busy", retry_after=0),), {"repeatable": False}),
        ((text("shown"), AgentUnavailable("cut", retry_after=0)), {}),
        ((AgentUnavailable("busy", retry_after=4),), {"run": 3.0}),
    ],
    ids=["refused", "not repeatable", "something was shown", "no time left"],
)
async def test_it_is_not_asked_again_when_that_is_no_use(said: Any, options: Any) -> None:
    attempt = Attempt.of(*said, **options)
    await attempt.failure()
    assert attempt.asked == 1


async def test_a_long_wait_is_spent_elsewhere() -> None:
    attempt = Attempt.of(AgentUnavailable("busy", retry_after=20))
    with pytest.raises(GivenBack) as given_back:
        await attempt.carry()
    assert given_back.value.delay == 20


@pytest.mark.parametrize(
    ("said", "options", "message"),
    [
        ((SILENCE,), {"timeouts": Timeouts(first_event=0.05)}, "sent nothing for"),
        ((PING, PING, SILENCE), {"timeouts": Timeouts(first_event=0.05)}, "sent nothing for"),
        ((text("a"), PING, SILENCE), {"timeouts": Timeouts(progress=0.05)}, "nothing more for"),
        ((text("a"), SILENCE), {"run": 0.05}, "by its deadline"),
    ],
    ids=["silent", "pings only", "silent in the middle", "too long"],
)
async def test_an_agent_that_is_late_is_left(said: Any, options: Any, message: str) -> None:
    attempt = Attempt.of(*said, **options)
    failed = await attempt.failure()
    assert (failed.code, failed.retryable) == ("timeout", True)
    assert message in failed.message
    assert (attempt.agents[0].left, attempt.agents[0].stopped) == (True, True)


async def test_an_agent_is_read_no_faster_than_the_log_takes_it() -> None:
    steps = [[frame("step", "x") for _ in range(100)] for _ in range(100)]
    attempt = Attempt.of(*steps, END)
    carrying = asyncio.create_task(attempt.carry())
    agent = attempt.agents[0]
    await eventually(lambda: agent.read * 100 >= WAITING_EVENTS, 5, "the outbox is full")
    await asyncio.sleep(0.01)
    assert agent.read * 100 < WAITING_EVENTS + 200
    attempt.outbox.leave(Left(Answer.ENDED))
    with pytest.raises(Left):
        await carrying


@pytest.mark.parametrize(
    "said",
    [(SILENCE,), (text("a"), SILENCE), (AgentUnavailable("busy", retry_after=4),)],
    ids=["before the first event", "in the middle", "while it waits to ask again"],
)
async def test_a_run_that_is_not_ours_any_more_is_left_at_once(said: Any) -> None:
    attempt = Attempt.of(*said)
    carrying = asyncio.create_task(attempt.carry())
    await eventually(lambda: attempt.asked, 5, "the agent is asked")
    await asyncio.sleep(0)
    attempt.outbox.leave(Left(Answer.FENCED))
    attempt.relay.stop()
    with pytest.raises(Left, match="FENCED"):
        await asyncio.wait_for(carrying, 1)
    assert attempt.agents[0].left
    assert attempt.put == []
