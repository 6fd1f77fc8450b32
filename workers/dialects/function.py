"""Python functions: frames made by `workers/agents/function.py` from what the function gives.

A frame's event is `text`, `data` (any other JSON value), the type of one of our events, or `end`.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from shared.config import FunctionAgent
from shared.errors import AgentError, AgentProtocolError, AgentTruncated
from shared.events import (
    Data,
    Event,
    Json,
    ReasoningDelta,
    ReasoningEnd,
    ReasoningStart,
    RunAccepted,
    RunCompleted,
    RunFailed,
    RunQueued,
    RunStarted,
    RunStopped,
    TextDelta,
    TextEnd,
    TextReplace,
    TextStart,
    Usage,
    load,
)
from shared.requests import RunRequest
from shared.sse import ServerSentEvent
from workers.dialects.base import AgentRequest
from workers.dialects.blocks import Blocks
from workers.dialects.decoding import FrameJson
from workers.dialects.reported import shown

TEXT, DATA, END = "text", "data", "end"
"""Frames that are no event of ours."""


class Function:
    """One call of a function. Blocks are opened and closed for it."""

    framing: str = "sse"

    def __init__(self, config: FunctionAgent) -> None:
        self.complete = False
        self.closed = False
        self.ended_as: str | None = None
        self._config = config
        self._json = FrameJson()
        self._blocks = Blocks()
        self._usage: Usage | None = None
        self._outputs: Json = None
        self._end: RunCompleted | RunStopped | None = None

    def request(self, run: RunRequest) -> AgentRequest:
        """A function is called, not requested."""
        raise AgentProtocolError(f"{self._config.function} is a function and has no address")

    def map(self, frame: ServerSentEvent) -> Iterable[Event]:
        """The events of what the function gave."""
        if frame.event == TEXT:
            return () if self.complete else self._blocks.text(frame.data.decode("utf-8", "surrogatepass"))
        if frame.event == DATA:
            return self._json.mend(self._map_data(self._json.value(frame.data)))
        if frame.event == END:
            self.complete = self.closed = True
            return self._blocks.close()
        return self._map_event(frame)

    def finish(self) -> Iterable[Event]:
        """The end; of a function that returned, also without a word of its own."""
        if not self.complete:
            raise AgentTruncated(f"{self._config.function} did not return")
        return self._json.mend(
            [*self._blocks.close(), self._end or RunCompleted("stop", None, self._usage, self._outputs)]
        )

    def stop_request(self) -> AgentRequest | None:
        """There is none: the function is told by its stream."""
        return None

    def _map_data(self, value: Json) -> Iterable[Event]:
        self._outputs = value
        return (Data("outputs", value),)

    def _map_event(self, frame: ServerSentEvent) -> Iterable[Event]:
        try:
            event = load(frame.event, frame.data)
        except msgspec.ValidationError as error:
            raise AgentProtocolError(f"{self._config.function} gave a wrong {frame.event}: {error}") from None
        match event:
            case None | RunAccepted() | RunQueued() | RunStarted():
                raise AgentProtocolError(
                    f"{self._config.function} gave {frame.event}, which is not its to give"
                )
            case TextStart() | TextEnd() | ReasoningStart() | ReasoningEnd():
                return ()
            case TextDelta(text=text, refusal=refusal):
                if self.complete:
                    return ()
                return self._blocks.refusal(text) if refusal else self._blocks.text(text)
            case ReasoningDelta(text=text):
                return () if self.complete else self._blocks.reasoning(text)
            case TextReplace(text=text, reason=reason):
                return self._blocks.replace(text, reason)
            case RunCompleted() | RunStopped():
                return self._ended(event)
            case RunFailed():
                raise AgentError(shown(event.message), retryable=event.retryable, agent_code=event.agent_code)
            case Usage():
                self._usage = event
                return (event,)
            case Data(name="outputs", value=value):
                self._outputs = value
                return (event,)
            case _:
                return (event,)

    def _ended(self, event: RunCompleted | RunStopped) -> Iterable[Event]:
        if self._end is None:
            self._end = event
            if isinstance(event, RunCompleted):
                self._end = msgspec.structs.replace(
                    event, usage=event.usage or self._usage, outputs=event.outputs or self._outputs
                )
                self.ended_as = event.finish_reason_raw
        self.complete = True
        return self._blocks.close()
