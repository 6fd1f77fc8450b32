"""The result of a run as one JSON object: our own, and OpenAI's `chat.completion`."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from gateway.dialects.base import ViewOptions
from gateway.dialects.openai_chat import completion_id, finish_reason, usage_object
from gateway.dialects.structured import StructuredOutput
from gateway.problems import failed
from shared.events import Data, FinishReason, Json, RunCompleted, RunFailed, RunStarted, RunStopped
from shared.stream_log import Entry
from shared.summary import Summary, ToolCall


class RunResult:
    """Fed every entry of a run in order; what it says is as far as the run has come."""

    def __init__(self, options: ViewOptions) -> None:
        self._options = options
        self._summary = Summary()
        self._data: dict[str, Json] = {}
        self._started = False

    def feed(self, entries: Iterable[Entry]) -> None:
        """Take the next entries in; unknown events are passed over."""
        for entry in entries:
            event = entry.event
            if event is None:
                continue
            if isinstance(event, RunStarted):
                self._started = True
                self._data.clear()
            elif isinstance(event, Data):
                self._data[event.name] = event.value
            self._summary.feed(event)

    @property
    def ended(self) -> bool:
        """Whether the terminal event is in."""
        return self._summary.end is not None

    @property
    def status(self) -> str:
        """queued, running, completed, failed or stopped."""
        if self._summary.end is not None:
            return self._summary.end.type.removeprefix("run.")
        return "running" if self._started else "queued"

    def to_json(self) -> dict[str, Json]:
        """The native form. What the run did not have is left out, but for what every run is asked for."""
        summary = self._summary
        always = {
            "id": self._options.run,
            "agent": self._options.agent,
            "status": self.status,
            "text": summary.text,
            "outputs": summary.outputs,
            "usage": _plain(summary.usage),
            "finish_reason": self._finish_reason(),
            "error": self._error(),
        }
        perhaps = {
            "reasoning": summary.reasoning,
            "refusal": summary.refusal,
            "tool_calls": [_tool(call) for call in summary.tools.values() if call.complete or call.answered],
            "data": {name: value for name, value in self._data.items() if name != "outputs"},
            "sources": [_plain(source) for source in summary.sources],
            "files": [_plain(file) for file in summary.files],
            "input_required": _plain(summary.form),
            "ids": _plain(summary.ids),
        }
        return always | {name: value for name, value in perhaps.items() if value}

    def to_chat_completion(self) -> dict[str, Json]:
        """OpenAI's form. Raises RequestError when the run failed."""
        end = self._summary.end
        if isinstance(end, RunFailed):
            raise failed(end)
        reason = finish_reason(self._finish_reason() or "stop")
        completion = {
            "id": completion_id(self._options.run),
            "object": "chat.completion",
            "created": self._options.created,
            "model": self._options.agent,
            "choices": [{"index": 0, "message": self._message(), "finish_reason": reason}],
        }
        if self._summary.usage is not None:
            completion["usage"] = usage_object(self._summary.usage)
        return completion

    def _message(self) -> dict[str, Json]:
        summary = self._summary
        calls = [call for call in summary.tools.values() if call.complete] if not self._options.safe else []
        content = summary.text or self._shown_output()
        message: dict[str, Json] = {
            "role": "assistant",
            "content": content if content or not (calls or summary.refusal) else None,
        }
        if self._options.safe:
            return message | {"content": content or summary.refusal}
        if summary.reasoning and self._options.reasoning:
            message["reasoning_content"] = summary.reasoning
        if summary.refusal:
            message["refusal"] = summary.refusal
        if calls:
            message["tool_calls"] = [_openai_tool(call) for call in calls]
        return message

    def _shown_output(self) -> str:
        output = StructuredOutput(self._options.text)
        for name, value in self._data.items():
            output.add(Data(name=name, value=value))
        end = self._summary.end
        return output.shown(end if isinstance(end, RunCompleted) else None)

    def _finish_reason(self) -> FinishReason | None:
        match self._summary.end:
            case RunCompleted(finish_reason=reason):
                return reason
            case RunFailed():
                return "error"
            case RunStopped():
                return "cancelled"
        return None

    def _error(self) -> Json:
        end = self._summary.end
        if not isinstance(end, RunFailed):
            return None
        return {"code": end.code, "message": end.message, "retryable": end.retryable}


def _plain(value: msgspec.Struct | None) -> Json:
    return None if value is None else msgspec.to_builtins(value)


def _tool(call: ToolCall) -> dict[str, Json]:
    told = {"id": call.id, "name": call.name, "arguments": call.arguments}
    return told | {"result": call.result} if call.answered else told


def _openai_tool(call: ToolCall) -> dict[str, Json]:
    arguments = msgspec.json.encode(call.arguments).decode()
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}
