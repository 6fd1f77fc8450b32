"""Dify apps: SSE frames whose JSON names its type in `$.event`; the end of the body ends the answer.

Format: langgenius/dify `api/core/app/entities/task_entities.py`, langgenius/dify-docs
`en/api-reference/openapi_service.json`. Completion, chat (also agent apps and chatflows) and
workflow apps differ in their addresses and request bodies only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal
from urllib.parse import quote

import msgspec

from shared.config import DifyAgent
from shared.errors import AgentError, AgentTruncated
from shared.events import (
    Audio,
    Data,
    Event,
    File,
    InputRequired,
    Json,
    RunCompleted,
    RunIds,
    RunStopped,
    Source,
    Step,
    ToolEnd,
    ToolResult,
    ToolStart,
    Usage,
)
from shared.requests import RunRequest
from shared.sse import ServerSentEvent
from shared.warnings import image_address
from workers.dialects.base import AgentRequest
from workers.dialects.blocks import Blocks
from workers.dialects.decoding import FrameJson, fitted
from workers.dialects.endpoints import endpoint, headers
from workers.dialects.history import as_prompt
from workers.dialects.reported import Report, as_error, report, shown

_IDS = ("task_id", "conversation_id", "message_id", "workflow_run_id")
_Status = Literal["started", "finished", "failed"]
_Reason = Literal["stop", "paused"]


class Tokens(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None


class Citation(msgspec.Struct):
    document_name: str | None = None
    dataset_name: str | None = None
    score: float | None = None
    content: str | None = None


class Metadata(msgspec.Struct):
    usage: Tokens | None = None
    retriever_resources: list[Citation] | None = None


class Attachment(msgspec.Struct):
    id: str | None = None
    related_id: str | None = None
    type: str | None = None
    url: str | None = None
    remote_url: str | None = None
    filename: str | None = None
    mime_type: str | None = None
    belongs_to: str | None = None


class Frame(msgspec.Struct):
    """Any frame; `data` is what workflow events carry, read further by their own model."""

    event: str = ""
    task_id: str | None = None
    conversation_id: str | None = None
    message_id: str | None = None
    workflow_run_id: str | None = None
    id: str | None = None
    answer: str | None = None
    reason: str | None = None
    audio: str | None = None
    metadata: Metadata | None = None
    files: list[Attachment] | None = None
    data: Json = None


class Thought(msgspec.Struct):
    """A state of an agent's step; frames with one id are states of the same step."""

    id: str
    position: int | None = None
    thought: str | None = None
    tool: str | None = None
    tool_input: Json = None
    observation: Json = None


class TextChunk(msgspec.Struct):
    text: str | None = None


class ReasoningChunk(msgspec.Struct):
    reasoning: str | None = None


class Node(msgspec.Struct):
    """A workflow node, an iteration, a loop, a branch or a log entry of an agent."""

    id: str | None = None
    node_id: str | None = None
    title: str | None = None
    label: str | None = None
    index: int | None = None
    status: str | None = None
    error: str | None = None
    retry_index: int | None = None


class Finished(msgspec.Struct):
    status: str | None = None
    outputs: Json = None
    error: str | None = None
    total_tokens: int | None = None
    files: list[Attachment] | None = None


class Action(msgspec.Struct):
    id: str


class Form(msgspec.Struct):
    actions: list[Action] = []
    form_token: str | None = None
    expiration_time: int | None = None


class Answered(msgspec.Struct):
    node_id: str | None = None
    node_title: str | None = None
    action_text: str | None = None


class App(msgspec.Struct, frozen=True):
    """What tells one kind of app from another: addresses, and the body of a request."""

    start: str
    stop: str
    body: Callable[[DifyAgent, RunRequest], dict[str, Json]]


def _inputs(config: DifyAgent, run: RunRequest) -> dict[str, Json]:
    given = config.body.get("inputs")
    return {**(given if isinstance(given, dict) else {}), **run.inputs}


def _named_body(config: DifyAgent, run: RunRequest) -> dict[str, Json]:
    """Completion and workflow apps: the text is one of the named inputs."""
    inputs = _inputs(config, run)
    text = as_prompt(run, remembered=False)
    return {"inputs": {**inputs, config.input_name: text} if text else inputs}


def _chat_body(config: DifyAgent, run: RunRequest) -> dict[str, Json]:
    """Chat apps keep the conversation under an id of their own: then they have the earlier turns."""
    known = run.metadata.get("agent_conversation")
    conversation = known if isinstance(known, str) and config.history == "last" else ""
    query = as_prompt(run, remembered=bool(conversation))
    inputs = _inputs(config, run)
    if not query and isinstance(inputs.get(config.input_name), str):
        query = inputs[config.input_name]
    return {"query": query, "inputs": inputs, "conversation_id": conversation}


COMPLETION = App("/completion-messages", "/completion-messages/{}/stop", _named_body)
CHAT = App("/chat-messages", "/chat-messages/{}/stop", _chat_body)
WORKFLOW = App("/workflows/run", "/workflows/tasks/{}/stop", _named_body)


class Dify:
    """One answer of a Dify app."""

    framing: str = "sse"

    def __init__(self, config: DifyAgent, app: App) -> None:
        self.complete = False
        self.closed = False
        self.ended_as: str | None = None
        self._config = config
        self._app = app
        self._user = config.user
        self._json = FrameJson()
        self._blocks = Blocks()
        self._answer: list[str] = []
        self._closing = False
        self._ids = RunIds()
        self._thoughts = _Thoughts()
        self._files: set[str] = set()
        self._usage: Usage | None = None
        self._outputs: Json = None
        self._stopped: str | None = None

    def request(self, run: RunRequest) -> AgentRequest:
        """The start of the app, in streaming mode."""
        self._user = run.user or self._config.user
        body = {**self._config.body, **self._app.body(self._config, run)}
        body |= {"response_mode": "streaming", "user": self._user}
        files = [*run.files, *_images(run)]
        if files:
            body["files"] = files
        return self._post(self._app.start, body)

    def map(self, frame: ServerSentEvent) -> Iterable[Event]:
        """The events of one frame."""
        if not frame.data or self.closed:
            return ()
        return self._json.mend(self._map(frame))

    def finish(self) -> Iterable[Event]:
        """The rest, and the end if the app told one."""
        return self._json.mend(self._finish())

    def stop_request(self) -> AgentRequest | None:
        """POST to the task's stop address, with the user that started it: another one is ignored."""
        if self._ids.task_id is None:
            return None
        return self._post(self._app.stop.format(quote(self._ids.task_id, safe="")), {"user": self._user})

    def _post(self, path: str, body: Json) -> AgentRequest:
        config = self._config
        return AgentRequest("POST", endpoint(config.url, path), headers(config.headers, config.api_key), body)

    def _map(self, sse: ServerSentEvent) -> Iterator[Event]:
        value = self._json.value(sse.data)
        kind = value.get("event") if isinstance(value, dict) else None
        if kind == "ping":
            return
        if kind == "error":
            yield from self._fail(value)
        frame = fitted(value, Frame)
        yield from self._learn_ids(frame)
        if frame.event == "agent_thought":
            yield from self._thoughts.feed(fitted(value, Thought))
        elif frame.event == "message_file":
            yield from self._map_files([fitted(value, Attachment)])
        elif frame.event in _MAPS:
            yield from _MAPS[frame.event](self, frame)

    def _learn_ids(self, frame: Frame) -> Iterator[Event]:
        known = self._ids
        ids = RunIds(
            conversation_id=frame.conversation_id or known.conversation_id,
            message_id=frame.message_id or known.message_id,
            task_id=frame.task_id or known.task_id,
            workflow_run_id=frame.workflow_run_id or known.workflow_run_id,
        )
        if ids != known:
            self._ids = ids
            yield ids

    def _fail(self, value: Mapping[str, Json]) -> Iterator[Event]:
        """The app's own error. It ends the stream; HTTP stays 200."""
        self.complete = self.closed = True
        ids = {name: value[name] for name in _IDS if isinstance(value.get(name), str)}
        yield from self._learn_ids(Frame(**ids))
        yield from self._blocks.close()
        raise as_error(report(value) or Report("the agent reported an error"))

    def _map_text(self, frame: Frame) -> Iterable[Event]:
        """`message` and `text_chunk`. A `message` behind `agent_message` is the whole answer once more."""
        text = frame.answer if frame.data is None else fitted(frame.data, TextChunk).text
        if self.complete or not text:
            return ()
        if self._closing:
            return self._settle(text)
        return self._blocks.text(text)

    def _map_agent_text(self, frame: Frame) -> Iterable[Event]:
        if self.complete or not frame.answer:
            return ()
        self._closing = True
        self._answer.append(frame.answer)
        return self._blocks.text(frame.answer)

    def _settle(self, text: str) -> Iterable[Event]:
        shown_so_far = "".join(self._answer)
        self._answer = [text]
        if text.startswith(shown_so_far):
            return self._blocks.text(text[len(shown_so_far) :])
        return self._blocks.replace(text)

    def _map_replace(self, frame: Frame) -> Iterable[Event]:
        """Moderation takes text back, also behind the end: it must not stay."""
        text = (frame.answer if frame.data is None else fitted(frame.data, TextChunk).text) or ""
        self._answer = [text]
        return self._blocks.replace(text, frame.reason or None)

    def _map_reasoning(self, frame: Frame) -> Iterable[Event]:
        text = fitted(frame.data, ReasoningChunk).reasoning
        return self._blocks.reasoning(text) if text and not self.complete else ()

    def _map_message_end(self, frame: Frame) -> Iterator[Event]:
        yield from self._end("message_end")
        yield from self._thoughts.close()
        metadata = frame.metadata or Metadata()
        for cited in metadata.retriever_resources or ():
            yield Source(
                title=cited.document_name, dataset=cited.dataset_name, score=cited.score, text=cited.content
            )
        yield from self._map_files(frame.files)
        told = metadata.usage
        if told is not None and told != Tokens():
            self._usage = Usage(told.prompt_tokens, told.completion_tokens, told.total_tokens)
            yield self._usage

    def _map_finished(self, frame: Frame) -> Iterator[Event]:
        """The workflow's end; its `outputs` are an object, whatever text was streamed."""
        finished = fitted(frame.data, Finished)
        yield from self._end(finished.status or "succeeded")
        self.ended_as = finished.status or self.ended_as
        if finished.outputs is not None:
            self._outputs = finished.outputs
            yield Data("outputs", finished.outputs)
        yield from self._map_files(finished.files)
        if self._usage is None and finished.total_tokens is not None:
            self._usage = Usage(total_tokens=finished.total_tokens)
            yield self._usage
        if finished.status == "failed":
            raise AgentError(shown(finished.error or "the workflow failed"), agent_code="workflow_failed")
        if finished.status == "stopped":
            self._stopped = shown(finished.error or "stopped")

    def _end(self, word: str) -> Iterable[Event]:
        if self.ended_as is None:
            self.ended_as = word
        self.complete = True
        return self._blocks.close()

    def _map_files(self, files: Iterable[Attachment] | None) -> Iterator[Event]:
        """Files the app made, each once: they are told again at the end."""
        for file in files or ():
            address = file.url or file.remote_url
            key = file.related_id or file.id or address
            if address is None or key is None or key in self._files or file.belongs_to == "user":
                continue
            self._files.add(key)
            yield File(url=address, kind=file.type, name=file.filename, media_type=file.mime_type, id=file.id)

    def _map_audio(self, frame: Frame) -> Iterator[Event]:
        if frame.audio:
            yield Audio("audio/mpeg", frame.audio)

    def _map_form(self, frame: Frame) -> Iterator[Event]:
        form = fitted(frame.data, Form)
        yield from self._blocks.close()
        shape = {
            name: frame.data[name] for name in frame.data if name not in ("form_token", "expiration_time")
        }
        actions = tuple(action.id for action in form.actions)
        yield InputRequired(shape, actions, form.expiration_time, form.form_token)

    def _map_form_answered(self, frame: Frame) -> Iterator[Event]:
        answered = fitted(frame.data, Answered)
        status: _Status = "finished" if frame.event == "human_input_form_filled" else "failed"
        yield Step(answered.node_id or "form", status, answered.node_title, answered.action_text)

    def _map_paused(self, frame: Frame) -> Iterable[Event]:
        return self._end("paused")

    def _map_step(self, frame: Frame) -> Iterator[Event]:
        node = fitted(frame.data, Node)
        name = node.node_id or node.id or frame.event
        status = _status(frame.event, node.status)
        yield Step(name, status, node.title or node.label, _detail(frame.event, node))

    def _finish(self) -> Iterator[Event]:
        yield from self._blocks.close()
        if not self.complete:
            raise AgentTruncated("the agent closed the stream before the end of its answer")
        if self._stopped is not None:
            yield RunStopped("agent", self._stopped)
        else:
            reason: _Reason = "paused" if self.ended_as == "paused" else "stop"
            yield RunCompleted(reason, self.ended_as, self._usage, self._outputs)


class _Seen(msgspec.Struct):
    name: str
    title: str | None
    done: bool = False
    calls: list[str] = []
    told: bool = False
    answered: bool = False


class _Thoughts:
    """Steps of an agent app. What they think was streamed as text already; their tools were not."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}

    def feed(self, thought: Thought) -> Iterator[Event]:
        """What this state of a step adds to the one before."""
        seen = self._seen.get(thought.id)
        if seen is None:
            title = f"Thought {thought.position or len(self._seen) + 1}"
            seen = self._seen[thought.id] = _Seen(thought.id, title)
            yield Step(seen.name, "started", seen.title)
        tools = [name for name in (thought.tool or "").split(";") if name]
        if tools and not seen.calls:
            seen.calls = [f"{thought.id}:{place}" for place in range(len(tools))]
            yield from (ToolStart(call, name) for call, name in zip(seen.calls, tools, strict=True))
        calls = list(zip(seen.calls, tools, strict=False))
        if calls and not seen.told and (thought.tool_input or thought.observation):
            seen.told = True
            yield from (ToolEnd(call, name, _for_tool(thought.tool_input, name, {})) for call, name in calls)
        if calls and not seen.answered and thought.observation:
            seen.answered = True
            yield from (ToolResult(call, _for_tool(thought.observation, name), name) for call, name in calls)
        if not seen.done and (thought.observation or (thought.thought and not tools)):
            seen.done = True
            yield Step(seen.name, "finished", seen.title)

    def close(self) -> Iterator[Event]:
        """The answer is there: what was still under way is done."""
        for seen in self._seen.values():
            if not seen.done:
                seen.done = True
                yield Step(seen.name, "finished", seen.title)


def _for_tool(text: Json, name: str, empty: Json = "") -> Json:
    """The part for one tool of a JSON string that is keyed by tool name; other text as it is."""
    value = text
    if isinstance(text, str):
        try:
            value = FrameJson().value(text.encode("utf-8", "replace"))
        except AgentError:
            return text or empty
    return value[name] if isinstance(value, dict) and name in value else value or empty


def _images(run: RunRequest) -> Iterator[dict[str, Json]]:
    """Images of the last user message, as files that Dify fetches itself."""
    last = next((message for message in reversed(run.messages) if message.role == "user"), None)
    for part in last.content if last is not None and isinstance(last.content, list) else ():
        address = image_address(part)
        if address is not None:
            yield {"type": "image", "transfer_method": "remote_url", "url": address}


def _status(event: str, status: str | None) -> _Status:
    if status in ("failed", "exception", "error"):
        return "failed"
    ended = event.endswith(("_finished", "_completed")) or status in ("succeeded", "success")
    return "finished" if ended else "started"


def _detail(event: str, node: Node) -> str | None:
    error = shown(node.error) if node.error else None
    if event == "node_retry":
        return f"retry {node.retry_index or 1}" + (f": {error}" if error else "")
    if event.endswith("_next") and node.index is not None:
        return f"round {node.index + 1}"
    return error


_MAPS: dict[str, Callable[[Dify, Frame], Iterable[Event]]] = {
    "message": Dify._map_text,
    "text_chunk": Dify._map_text,
    "agent_message": Dify._map_agent_text,
    "message_replace": Dify._map_replace,
    "text_replace": Dify._map_replace,
    "reasoning_chunk": Dify._map_reasoning,
    "message_end": Dify._map_message_end,
    "workflow_finished": Dify._map_finished,
    "workflow_paused": Dify._map_paused,
    "tts_message": Dify._map_audio,
    "human_input_required": Dify._map_form,
    "human_input_form_filled": Dify._map_form_answered,
    "human_input_form_timeout": Dify._map_form_answered,
    "node_started": Dify._map_step,
    "node_finished": Dify._map_step,
    "node_retry": Dify._map_step,
    "iteration_started": Dify._map_step,
    "iteration_next": Dify._map_step,
    "iteration_completed": Dify._map_step,
    "loop_started": Dify._map_step,
    "loop_next": Dify._map_step,
    "loop_completed": Dify._map_step,
    "parallel_branch_started": Dify._map_step,
    "parallel_branch_finished": Dify._map_step,
    "agent_log": Dify._map_step,
}
"""Every event that becomes something; others (`workflow_started`, `tts_message_end`) only teach ids."""
