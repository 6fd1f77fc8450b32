"""What a run comes to: its events, fed one by one, as text, outputs, usage and end. Pure."""

from __future__ import annotations

import binascii
import hashlib
from base64 import b64decode
from dataclasses import dataclass, field

from shared.events import (
    Audio,
    Data,
    Event,
    File,
    InputRequired,
    Json,
    ReasoningDelta,
    RunCompleted,
    RunFailed,
    RunIds,
    RunStarted,
    RunStopped,
    Source,
    Terminal,
    TextDelta,
    TextReplace,
    ToolEnd,
    ToolResult,
    ToolStart,
    Usage,
)


@dataclass
class ToolCall:
    """A tool call; `complete` once its arguments are, `answered` once it has a result."""

    id: str
    name: str
    arguments: Json = None
    result: Json = None
    complete: bool = False
    answered: bool = False


@dataclass
class Summary:
    """State of one run after the events fed so far. Of several choices the first counts.

    `outputs` is the latest structured output called `outputs`; `before_replace` the text that the
    first `text.replace` took back. A new attempt starts it afresh.
    """

    usage: Usage | None = None
    outputs: Json = None
    ids: RunIds = field(default_factory=RunIds)
    tools: dict[str, ToolCall] = field(default_factory=dict)
    sources: list[Source] = field(default_factory=list)
    files: list[File] = field(default_factory=list)
    form: InputRequired | None = None
    before_replace: str | None = None
    audio_type: str | None = None
    audio_chunks: int = 0
    end: Terminal | None = None
    _text: list[str] = field(default_factory=list)
    _reasoning: list[str] = field(default_factory=list)
    _refusal: list[str] = field(default_factory=list)
    _audio: hashlib._Hash = field(default_factory=hashlib.sha256)

    @property
    def text(self) -> str:
        """The answer so far."""
        return "".join(self._text)

    @property
    def reasoning(self) -> str:
        """The reasoning so far."""
        return "".join(self._reasoning)

    @property
    def refusal(self) -> str:
        """The refusal so far."""
        return "".join(self._refusal)

    @property
    def audio_sha256(self) -> str:
        """Of the decoded audio, joined."""
        return self._audio.hexdigest()

    def feed(self, event: Event) -> None:
        """Take one more event of the run in."""
        match event:
            case TextDelta(text=text, choice=0, refusal=refusal):
                (self._refusal if refusal else self._text).append(text)
            case TextReplace(text=text):
                if self.before_replace is None:
                    self.before_replace = self.text
                self._text = [text]
            case ReasoningDelta(text=text):
                self._reasoning.append(text)
            case Data(name="outputs", value=value):
                self.outputs = value
            case Usage():
                self.usage = event
            case RunIds():
                self.ids = _merged(self.ids, event)
            case RunStarted():
                vars(self).update(vars(Summary()))  # an attempt begins its answer anew
            case RunCompleted() | RunFailed() | RunStopped():
                self._feed_end(event)
            case _:
                self._feed_item(event)

    def _feed_item(self, event: Event) -> None:
        match event:
            case ToolStart(call=call, name=name):
                self.tools[call] = ToolCall(call, name)
            case ToolEnd(call=call, name=name, arguments=arguments):
                tool = self.tools.setdefault(call, ToolCall(call, name))
                tool.arguments, tool.complete = arguments, True
            case ToolResult(call=call, result=result, name=name):
                tool = self.tools.setdefault(call, ToolCall(call, name or ""))
                tool.result, tool.answered = result, True
            case Source():
                self.sources.append(event)
            case File():
                self.files.append(event)
            case InputRequired():
                self.form = event
            case Audio(media_type=media_type, data=data):
                self.audio_type = media_type
                self.audio_chunks += 1
                try:
                    self._audio.update(b64decode(data))
                except binascii.Error:
                    return  # counted, but not sound
            case _:
                return

    def _feed_end(self, event: Terminal) -> None:
        self.end = event
        if isinstance(event, RunCompleted):
            self.usage = event.usage or self.usage
            self.outputs = event.outputs if event.outputs is not None else self.outputs


def _merged(known: RunIds, told: RunIds) -> RunIds:
    fields = {name: getattr(told, name) or getattr(known, name) for name in RunIds.__struct_fields__}
    return RunIds(**fields)
