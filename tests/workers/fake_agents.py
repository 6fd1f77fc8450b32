"""Agents and a dialect of the tests' own: what is said is named, not spelled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from types import TracebackType
from typing import Any

from shared.errors import AgentError, AgentTruncated
from shared.events import Event, RunCompleted, RunIds, Step, TextDelta
from shared.requests import RunRequest
from shared.sse import ServerSentEvent
from workers.agents.base import Batch
from workers.dialects.base import AgentRequest

SILENCE = object()
"""The agent says nothing and keeps the connection."""


def frame(event: str, text: str = "") -> ServerSentEvent:
    return ServerSentEvent(text.encode(), event)


def text(value: str) -> Batch:
    return [frame("text", value)]


END = [frame("end")]
PING = [frame("ping")]
COMPLETED = RunCompleted(finish_reason="stop")


class Dialect:
    """Frames are named after what they mean."""

    framing = "sse"
    ended_as: str | None = None

    def __init__(self) -> None:
        self.complete = False
        self.closed = False

    def request(self, run: RunRequest) -> AgentRequest:
        raise NotImplementedError

    def map(self, sse: ServerSentEvent) -> Iterable[Event]:
        match sse.event:
            case "text":
                yield TextDelta(block="t", text=sse.data.decode())
            case "step":
                yield Step(name=sse.data.decode(), status="started")
            case "ids":
                yield RunIds(conversation_id=sse.data.decode())
            case "end":
                self.complete = True
            case "done":
                self.complete = self.closed = True
            case "error":
                raise AgentError("it broke", agent_code=7)

    def finish(self) -> Iterable[Event]:
        if not self.complete:
            raise AgentTruncated("no end")
        yield TextDelta(block="owed", text="!")
        yield COMPLETED

    def stop_request(self) -> AgentRequest | None:
        return None


class Answering:
    """An agent's stream that gives what it is told to, and notes what is done to it."""

    def __init__(self, *said: Any) -> None:
        self._said = said
        self.read = 0
        self.left = False
        self.stopped = False

    async def __aenter__(self) -> AsyncIterator[Batch]:
        return self._batches()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.left = True

    async def stop(self) -> None:
        self.stopped = True

    async def _batches(self) -> AsyncIterator[Batch]:
        for one in self._said:
            if one is SILENCE:
                await asyncio.get_running_loop().create_future()
            if isinstance(one, Exception):
                raise one
            self.read += 1
            yield one
