"""OpenAI Chat Completions streaming: `data:` lines only, one JSON chunk each, then a literal [DONE].

Never `id:`, `event:` or `retry:`: openai-python's decoder takes a blank line after an `id:` for an
event with empty data (openai/openai-python `src/openai/_streaming.py`), and AutoDev and Shire refuse
the lines themselves (unit-mesh/auto-dev `.../devti/llms/custom/ResponseBodyCallback.kt`).
"""

from __future__ import annotations

import msgspec

from gateway.dialects.base import Encoded, FrontendDialect, ViewOptions
from gateway.dialects.structured import StructuredOutput
from shared.events import (
    Data,
    Event,
    FinishReason,
    Json,
    ReasoningDelta,
    RunAccepted,
    RunCompleted,
    RunFailed,
    RunStopped,
    TextDelta,
    TextReplace,
    ToolDelta,
    ToolEnd,
    ToolStart,
    Usage,
)
from shared.stream_log import Entry

_json = msgspec.json.encode
_NOTHING = Encoded()
_DONE = b"data: [DONE]\n\n"

_FINISH_REASONS: dict[FinishReason, str] = {
    "length": "length",
    "tool_calls": "tool_calls",
    "content_filter": "content_filter",
}
"""Everything else is `stop`: there is no word for paused or cancelled."""


def completion_id(run: str) -> str:
    """The id of a run's chunks, or of its whole completion."""
    return f"chatcmpl-{run}"


def finish_reason(reason: FinishReason) -> str:
    """Our finish reason in OpenAI's words."""
    return _FINISH_REASONS.get(reason, "stop")


def usage_object(usage: Usage) -> dict[str, Json]:
    """Token counts; what the agent did not tell counts as 0, as the format has no null here."""
    given, taken = usage.input_tokens or 0, usage.output_tokens or 0
    counts: dict[str, Json] = {
        "prompt_tokens": given,
        "completion_tokens": taken,
        "total_tokens": usage.total_tokens if usage.total_tokens is not None else given + taken,
    }
    if usage.reasoning_tokens is not None:
        counts["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning_tokens}
    return counts


def error_object(message: str, code: str, error_type: str, param: str | None = None) -> bytes:
    """The error form, as a body of its own or as a chunk."""
    return _json({"error": {"message": message, "type": error_type, "param": param, "code": code}})


class OpenAIChat(FrontendDialect):
    """Append-only. The role chunk belongs to `run.accepted`, so that it comes before all else, once."""

    media_type = "text/event-stream"
    resumable = False
    takes_back = False
    obeys_retry = False
    holds_head = True

    def __init__(self, options: ViewOptions) -> None:
        head = _json(
            {
                "id": completion_id(options.run),
                "object": "chat.completion.chunk",
                "created": options.created,
                "model": options.agent,
            }
        )
        self._head = b"data: " + head[:-1] + b',"choices":['
        self._content = self._head + b'{"index":0,"delta":{"content":'
        self._usage_wanted = options.usage and not options.safe
        self._reasoning = options.reasoning and not options.safe
        self._safe = options.safe
        self._sent: list[str] = []
        self._shown = False
        self._calls: dict[str, int] = {}
        self._with_arguments: set[str] = set()
        self._output = StructuredOutput(options.text)
        self._usage: Usage | None = None

    @property
    def opening(self) -> bytes:
        return self._chunk(b'{"role":"assistant","content":""}')

    def encode(self, entry: Entry) -> Encoded:
        event = entry.event
        if isinstance(event, TextDelta) and not (event.refusal or event.choice):
            return self._text(event.text)
        return self._other(event)

    def reset(self, reason: str) -> Encoded:
        return self._fail("The answer was interrupted and what was sent is void; ask again.", "interrupted")

    def heartbeat(self) -> bytes:
        return self._chunk(b"{}")

    def _other(self, event: Event | None) -> Encoded:
        match event:
            case RunAccepted():
                return Encoded((self.opening,))
            case TextDelta():
                return self._refusal_or_choice(event)
            case TextReplace(text=text):
                return self._replace(text)
            case ReasoningDelta(text=text) if self._reasoning and text:
                return self._visible(b'{"content":null,"reasoning_content":%b}' % _json(text))
            case ToolStart() | ToolDelta() | ToolEnd() if not self._safe:
                return self._tool(event)
            case Data() as data:
                self._output.add(data)
            case Usage() as usage:
                self._usage = usage
            case RunCompleted() as completed:
                self._usage = completed.usage or self._usage
                return self._end(finish_reason(completed.finish_reason), self._output.shown(completed))
            case RunStopped():
                return self._end("stop", self._output.shown())
            case RunFailed() as failed:
                end = self._fail(failed.message, failed.code)
                return end if self._shown else end._replace(failure=failed)
        return _NOTHING

    def _chunk(self, delta: bytes, reason: bytes = b"null", choice: int = 0) -> bytes:
        return b'%b{"index":%d,"delta":%b,"finish_reason":%b}]}\n\n' % (self._head, choice, delta, reason)

    def _visible(self, delta: bytes, choice: int = 0) -> Encoded:
        self._shown = True
        return Encoded((self._chunk(delta, choice=choice),))

    def _text(self, text: str) -> Encoded:
        if not text:
            return _NOTHING
        self._sent.append(text)
        self._shown = True
        return Encoded((b'%b%b},"finish_reason":null}]}\n\n' % (self._content, _json(text)),))

    def _refusal_or_choice(self, delta: TextDelta) -> Encoded:
        if delta.refusal and self._safe:  # outside of what AutoDev's strict mode knows
            return self._text(delta.text)
        name = b"refusal" if delta.refusal else b"content"
        return self._visible(b'{"%b":%b}' % (name, _json(delta.text)), delta.choice)

    def _replace(self, text: str) -> Encoded:
        sent = "".join(self._sent)
        if text.startswith(sent):
            return self._text(text[len(sent) :])
        return Encoded((self._chunk(b"{}", b'"content_filter"'), _DONE), ends=True)

    def _tool(self, event: ToolStart | ToolDelta | ToolEnd) -> Encoded:
        frames = []
        call = event.call
        if call not in self._calls:
            frames.append(self._tool_start(call, "" if isinstance(event, ToolDelta) else event.name))
        if isinstance(event, ToolDelta):
            frames.append(self._arguments(call, event.text))
        elif isinstance(event, ToolEnd) and call not in self._with_arguments:
            frames.append(self._arguments(call, _json(event.arguments).decode()))
        self._shown = True
        return Encoded(frames)

    def _tool_start(self, call: str, name: str) -> bytes:
        index = self._calls.setdefault(call, len(self._calls))
        start = {"id": call, "type": "function", "function": {"name": name, "arguments": ""}}
        return self._chunk(_json({"tool_calls": [{"index": index, **start}]}))

    def _arguments(self, call: str, text: str) -> bytes:
        self._with_arguments.add(call)
        fragment = {"index": self._calls[call], "function": {"arguments": text}}
        return self._chunk(_json({"tool_calls": [fragment]}))

    def _end(self, reason: str, output: str) -> Encoded:
        frames: list[bytes] = []
        if output and not self._sent:
            frames += self._text(output).frames
        frames.append(self._chunk(b"{}", _json(reason)))
        if self._usage_wanted and self._usage is not None:
            counts = _json(usage_object(self._usage))
            frames.append(b'%b],"usage":%b}\n\n' % (self._head, counts))
        frames.append(_DONE)
        return Encoded(frames, ends=True)

    def _fail(self, message: str, code: str) -> Encoded:
        if self._safe:
            # ClickPrompt breaks on an error object, AutoDev and Shire pass it over: only text is seen.
            # `length` is the one finish reason that says that an answer is not whole.
            note = self._content + _json(f"\n\n[{message}]") + b'},"finish_reason":null}]}\n\n'
            return Encoded((note, self._chunk(b"{}", b'"length"'), _DONE), ends=True)
        error = b"data: %b\n\n" % error_object(message, code, "upstream_error")
        return Encoded((error, _DONE), ends=True)
