"""The canonical events: one union, spoken by everything between an agent's and a front end's dialect.

An event is stored as its type and its JSON without the type (`dump`, `load`); fields at their
default are left out. A type this version does not know loads as None and is passed over by
whoever has to understand it (`docs/protocol.md`).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import msgspec

Json = Any
"""A decoded JSON value: None, bool, int, float, str, list or dict of these."""

SCHEMA = 1
"""Version of the event schema, told in `run.accepted`."""


class _Event(msgspec.Struct, frozen=True, omit_defaults=True):
    type: ClassVar[str]
    visible: ClassVar[bool] = False
    """Whether a person sees it: a run that has shown something is not restarted silently."""


class RunAccepted(_Event, frozen=True, omit_defaults=True):
    type = "run.accepted"
    run: str
    agent: str
    conversation: str | None = None
    schema: int = 0
    warnings: tuple[str, ...] = ()


class RunQueued(_Event, frozen=True, omit_defaults=True):
    """Other runs wait before this one; `position` counts them at the time of acceptance."""

    type = "run.queued"
    position: int


class RunStarted(_Event, frozen=True, omit_defaults=True):
    """First event of an attempt; `prev` is the id of the event before it."""

    type = "run.started"
    attempt: int
    prev: str
    agent: str
    model: str | None = None


class RunIds(_Event, frozen=True, omit_defaults=True):
    """The agent's own ids."""

    type = "run.ids"
    conversation_id: str | None = None
    message_id: str | None = None
    task_id: str | None = None
    workflow_run_id: str | None = None
    model: str | None = None


class TextStart(_Event, frozen=True, omit_defaults=True):
    type = "text.start"
    visible = True
    block: str
    choice: int = 0
    refusal: bool = False


class TextDelta(_Event, frozen=True, omit_defaults=True):
    type = "text.delta"
    visible = True
    block: str
    text: str
    choice: int = 0
    refusal: bool = False


class TextEnd(_Event, frozen=True, omit_defaults=True):
    type = "text.end"
    visible = True
    block: str
    choice: int = 0


class TextReplace(_Event, frozen=True, omit_defaults=True):
    """All text of the answer so far, whatever its block, is now `text`; deltas of `block` follow it."""

    type = "text.replace"
    visible = True
    block: str
    text: str
    reason: str | None = None


class ReasoningStart(_Event, frozen=True, omit_defaults=True):
    type = "reasoning.start"
    visible = True
    block: str


class ReasoningDelta(_Event, frozen=True, omit_defaults=True):
    type = "reasoning.delta"
    visible = True
    block: str
    text: str


class ReasoningEnd(_Event, frozen=True, omit_defaults=True):
    type = "reasoning.end"
    visible = True
    block: str


class ToolStart(_Event, frozen=True, omit_defaults=True):
    type = "tool.start"
    visible = True
    call: str
    name: str


class ToolDelta(_Event, frozen=True, omit_defaults=True):
    """A fragment of the call's arguments, as JSON text."""

    type = "tool.delta"
    visible = True
    call: str
    text: str


class ToolEnd(_Event, frozen=True, omit_defaults=True):
    """The call is complete; `arguments` is the parsed JSON."""

    type = "tool.end"
    visible = True
    call: str
    name: str
    arguments: Json


class ToolResult(_Event, frozen=True, omit_defaults=True):
    type = "tool.result"
    visible = True
    call: str
    result: Json
    name: str | None = None


class Step(_Event, frozen=True, omit_defaults=True):
    """Progress inside the agent: workflow nodes, thoughts, iterations, polling."""

    type = "step"
    name: str
    status: Literal["started", "finished", "failed"]
    title: str | None = None
    detail: str | None = None


class InputRequired(_Event, frozen=True, omit_defaults=True):
    """A person must answer a form; `expires` in Unix seconds."""

    type = "input.required"
    visible = True
    form: Json
    actions: tuple[str, ...] = ()
    expires: int | None = None
    token: str | None = None


class Data(_Event, frozen=True, omit_defaults=True):
    """Structured output under a name, such as a workflow's `outputs`."""

    type = "data"
    visible = True
    name: str
    value: Json


class Source(_Event, frozen=True, omit_defaults=True):
    """A citation."""

    type = "source"
    visible = True
    title: str | None = None
    url: str | None = None
    dataset: str | None = None
    score: float | None = None
    text: str | None = None


class File(_Event, frozen=True, omit_defaults=True):
    """A file by URL, or inline as base64."""

    type = "file"
    visible = True
    url: str | None = None
    kind: str | None = None
    name: str | None = None
    media_type: str | None = None
    id: str | None = None
    data: str | None = None


class Audio(_Event, frozen=True, omit_defaults=True):
    """A chunk of audio; `data` is base64 on its own."""

    type = "audio"
    visible = True
    media_type: str
    data: str


class Usage(_Event, frozen=True, omit_defaults=True):
    """Token counts as told by the agent; None where it did not say. A later one replaces an earlier."""

    type = "usage"
    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    reasoning_tokens: int | None = None


FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "paused", "cancelled", "error"]


class RunCompleted(_Event, frozen=True, omit_defaults=True):
    type = "run.completed"
    finish_reason: FinishReason
    finish_reason_raw: str | None = None
    usage: Usage | None = None
    outputs: Json | None = None


class RunFailed(_Event, frozen=True, omit_defaults=True):
    """`code` is one of the words in `docs/protocol.md`; `message` is safe to show."""

    type = "run.failed"
    code: str
    message: str
    retryable: bool = False
    agent_code: str | None = None


class RunStopped(_Event, frozen=True, omit_defaults=True):
    type = "run.stopped"
    by: Literal["client", "policy", "agent"]
    reason: str | None = None


Terminal = RunCompleted | RunFailed | RunStopped

Event = (
    RunAccepted
    | RunQueued
    | RunStarted
    | RunIds
    | TextStart
    | TextDelta
    | TextEnd
    | TextReplace
    | ReasoningStart
    | ReasoningDelta
    | ReasoningEnd
    | ToolStart
    | ToolDelta
    | ToolEnd
    | ToolResult
    | Step
    | InputRequired
    | Data
    | Source
    | File
    | Audio
    | Usage
    | RunCompleted
    | RunFailed
    | RunStopped
)

EVENT_TYPES: dict[str, type[Event]] = {
    cls.type: cls
    for cls in (
        RunAccepted,
        RunQueued,
        RunStarted,
        RunIds,
        TextStart,
        TextDelta,
        TextEnd,
        TextReplace,
        ReasoningStart,
        ReasoningDelta,
        ReasoningEnd,
        ToolStart,
        ToolDelta,
        ToolEnd,
        ToolResult,
        Step,
        InputRequired,
        Data,
        Source,
        File,
        Audio,
        Usage,
        RunCompleted,
        RunFailed,
        RunStopped,
    )
}

TERMINAL_TYPES = frozenset((RunCompleted.type, RunFailed.type, RunStopped.type))

_encoder = msgspec.json.Encoder()
_decoders = {name: msgspec.json.Decoder(cls) for name, cls in EVENT_TYPES.items()}


def dump(event: Event) -> bytes:
    """The event's compact JSON without its type, on one line."""
    return _encoder.encode(event)


def load(event_type: str, data: bytes) -> Event | None:
    """The event stored as `data`, or None when this version does not know its type.

    Raises msgspec.ValidationError when the data does not fit a known type.
    """
    decoder = _decoders.get(event_type)
    return None if decoder is None else decoder.decode(data)


def with_type(event_type: str, data: bytes) -> bytes:
    """The JSON object `data` with `"type"` put first: the payload of a native frame."""
    head = b'{"type":"' + event_type.encode() + b'"'
    return head + b"}" if data == b"{}" else head + b"," + data[1:]
