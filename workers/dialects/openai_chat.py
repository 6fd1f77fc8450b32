"""Chat Completions streaming and its look-alikes: one JSON chunk per frame, then a literal [DONE].

Format: openai/openai-python `src/openai/types/chat/chat_completion_chunk.py`. Look-alikes differ
in where reasoning, usage and errors stand; all places are read, because they exclude each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec
import orjson

from shared.config import OpenAIChatAgent
from shared.errors import AgentError, AgentTruncated
from shared.events import Event, FinishReason, Json, RunCompleted, RunIds, Source, Usage
from shared.requests import RunRequest
from shared.sse import ServerSentEvent
from shared.warnings import CHAT_PARAMETERS
from workers.dialects.base import AgentRequest
from workers.dialects.blocks import Blocks
from workers.dialects.decoding import FrameJson
from workers.dialects.endpoints import endpoint, headers
from workers.dialects.reported import Report, as_error, report
from workers.dialects.think import ThinkSplitter
from workers.dialects.tool_calls import Fragment, Function, ToolCalls

DONE = b"[DONE]"

FINISH_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "max_tokens": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
    "abort": "cancelled",
}
"""What servers call their reasons; any other word (`eos`, `end_turn`) means stop."""


class Delta(msgspec.Struct):
    content: str | list[dict[str, Json]] | None = None
    reasoning_content: Json = None
    reasoning: Json = None
    refusal: str | None = None
    tool_calls: list[Fragment] | None = None
    function_call: Function | None = None
    annotations: list[dict[str, Json]] | None = None


class Choice(msgspec.Struct):
    index: int | None = None
    delta: Delta | None = None
    finish_reason: str | None = None
    usage: Json = None


class Groq(msgspec.Struct):
    usage: Json = None


class Chunk(msgspec.Struct):
    """A chunk; `error` or `object: error` make it the report of a failure."""

    id: str | None = None
    model: str | None = None
    object: str | None = None
    choices: list[Choice] | None = None
    usage: Json = None
    x_groq: Groq | None = None
    error: Json = None


class OpenAIChat:
    """One answer of a Chat Completions server."""

    framing: str = "sse"

    def __init__(self, config: OpenAIChatAgent) -> None:
        self.complete = False
        self.closed = False
        self.ended_as: str | None = None
        self._config = config
        self._json = FrameJson()
        self._blocks = Blocks()
        self._tools = ToolCalls()
        self._thinking: dict[int, ThinkSplitter] = {}
        self._finished: set[int] = set()
        self._finish_reason: FinishReason = "stop"
        self._usage: Usage | None = None
        self._told_ids = False

    def request(self, run: RunRequest) -> AgentRequest:
        """POST {url}/chat/completions with the whole history."""
        config = self._config
        body: dict[str, Json] = {key: run.params[key] for key in run.params if key in CHAT_PARAMETERS}
        if run.user is not None:
            body["user"] = run.user
        body |= config.body
        body |= {"model": config.model, "messages": _messages(run), "stream": True}
        if config.usage:
            body["stream_options"] = {"include_usage": True}
        return AgentRequest(
            "POST",
            endpoint(config.url, "/chat/completions"),
            headers(config.headers, config.api_key, key_header=config.api_key_header),
            body,
        )

    def map(self, frame: ServerSentEvent) -> Iterable[Event]:
        """The events of one chunk."""
        data = frame.data
        if not data or self.closed:
            return ()
        if data.startswith(DONE):
            self.complete = self.closed = True
            return self._json.mend(self._close(None))
        chunk = self._json.model(data, Chunk)
        if chunk.error or chunk.object == "error" or frame.event == "error":
            return self._json.mend(self._fail(chunk, data))
        return self._json.mend(self._map(chunk))

    def finish(self) -> Iterable[Event]:
        """The rest, the usage, and the end if the agent told one."""
        return self._json.mend(self._finish())

    def stop_request(self) -> AgentRequest | None:
        """There is none: closing the connection stops the agent."""
        return None

    def _map(self, chunk: Chunk) -> Iterator[Event]:
        if not self._told_ids and chunk.id:
            self._told_ids = True
            yield RunIds(message_id=chunk.id, model=chunk.model or None)
        for choice in chunk.choices or ():
            number = choice.index or 0
            if choice.delta is not None and number not in self._finished:
                yield from self._map_delta(choice.delta, number)
            if choice.usage:
                self._count(choice.usage)
            if choice.finish_reason and number not in self._finished:
                yield from self._end_choice(number, choice.finish_reason)
        if chunk.x_groq is not None:
            self._count(chunk.x_groq.usage)
        if chunk.usage:
            self._count(chunk.usage)

    def _map_delta(self, delta: Delta, choice: int) -> Iterator[Event]:
        for reasoning in (delta.reasoning_content, delta.reasoning):
            if reasoning and isinstance(reasoning, str):
                yield from self._blocks.reasoning(reasoning, choice)
                break
        if isinstance(delta.content, str):
            yield from self._map_text(delta.content, choice)
        elif delta.content:
            yield from self._map_parts(delta.content, choice)
        if delta.refusal:
            yield from self._blocks.refusal(delta.refusal, choice)
        if delta.annotations:
            yield from _sources(delta.annotations)
        if delta.tool_calls or delta.function_call:
            yield from self._map_tools(delta, choice)

    def _map_tools(self, delta: Delta, choice: int) -> Iterator[Event]:
        yield from self._end_text(choice)
        for fragment in delta.tool_calls or ():
            yield from self._tools.feed(fragment)
        if delta.function_call:
            yield from self._tools.feed(Fragment(index=0, function=delta.function_call))

    def _map_text(self, text: str, choice: int) -> Iterable[Event]:
        if not self._config.split_think:
            return self._blocks.text(text, choice)
        splitter = self._thinking.setdefault(choice, ThinkSplitter())
        return self._map_split(splitter.feed(text), choice)

    def _map_split(self, parts: Iterable[tuple[str, str]], choice: int) -> Iterator[Event]:
        for kind, text in parts:
            add = self._blocks.reasoning if kind == "reasoning" else self._blocks.text
            yield from add(text, choice)

    def _map_parts(self, parts: list[dict[str, Json]], choice: int) -> Iterator[Event]:
        """Content as a list of parts; `thinking` holds parts of its own (Mistral)."""
        for part in parts:
            text, thinking = part.get("text"), part.get("thinking")
            if isinstance(text, str):
                yield from self._map_text(text, choice)
            for inner in thinking if isinstance(thinking, list) else ():
                if isinstance(inner, dict) and isinstance(inner.get("text"), str):
                    yield from self._blocks.reasoning(inner["text"], choice)

    def _end_choice(self, choice: int, reason: str) -> Iterator[Event]:
        if reason == "error":
            self.ended_as = reason
            yield from self._owed()
            raise AgentError("the agent reported an error")
        if self.ended_as is None:
            self.ended_as = reason
            self._finish_reason = FINISH_REASONS.get(reason, "stop")
        self._finished.add(choice)
        self.complete = True
        yield from self._close(choice)

    def _end_text(self, choice: int) -> Iterator[Event]:
        if choice in self._thinking:
            yield from self._map_split(self._thinking[choice].end(), choice)
        yield from self._blocks.close(choice)

    def _close(self, choice: int | None) -> Iterator[Event]:
        """End the text of one choice or of all, and the tool calls."""
        for number in sorted(self._thinking) if choice is None else (choice,):
            yield from self._end_text(number)
        if choice is None:
            yield from self._blocks.close()
        yield from self._tools.close(cut=self._finish_reason in ("length", "content_filter", "cancelled"))

    def _fail(self, chunk: Chunk, data: bytes) -> Iterator[Event]:
        for choice in chunk.choices or ():  # OpenRouter: this chunk also ends the choice
            self.ended_as, choice.finish_reason = choice.finish_reason or self.ended_as, None
        yield from self._map(chunk)
        yield from self._owed()
        raise as_error(report(self._json.value(data)) or Report("the agent reported an error"))

    def _owed(self) -> Iterator[Event]:
        """What an answer that breaks off still owes."""
        for choice in sorted(self._thinking):
            yield from self._end_text(choice)
        yield from self._blocks.close()
        if self._usage is not None:
            yield self._usage

    def _finish(self) -> Iterator[Event]:
        yield from self._owed()
        if not self.complete:
            raise AgentTruncated("the agent closed the stream before a finish reason or [DONE]")
        yield RunCompleted(self._finish_reason, self.ended_as, self._usage)

    def _count(self, usage: Json) -> None:
        """Keep the latest counts; they are told once, at the end, wherever and however often they came."""
        if isinstance(usage, dict) and usage:
            self._usage = _usage(usage) or self._usage


def _messages(run: RunRequest) -> Json:
    if run.messages:
        return msgspec.to_builtins(list(run.messages))
    return [{"role": "user", "content": orjson.dumps(run.inputs).decode()}] if run.inputs else []


def _usage(told: dict[str, Json]) -> Usage | None:
    details = told.get("completion_tokens_details")
    usage = Usage(
        _tokens(told.get("prompt_tokens")),
        _tokens(told.get("completion_tokens")),
        _tokens(told.get("total_tokens")),
        _tokens(details.get("reasoning_tokens")) or None if isinstance(details, dict) else None,
    )
    return None if usage == Usage() else usage


def _tokens(value: Json) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _sources(annotations: list[dict[str, Json]]) -> Iterator[Event]:
    """Citations of web pages: `{"type": "url_citation", "url_citation": {"url", "title"}}`."""
    for annotation in annotations:
        cited = annotation.get("url_citation")
        if isinstance(cited, dict) and isinstance(cited.get("url"), str):
            title = cited.get("title")
            yield Source(title=title if isinstance(title, str) else None, url=cited["url"])
