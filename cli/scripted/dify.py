"""Plays Dify's service API: text generator, chat, chatflow and workflow apps.

Formats and checks follow langgenius/dify `api/controllers/service_api/` (`wraps.py`,
`app/completion.py`, `app/workflow.py`) and `api/libs/external_api.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal
from uuid import uuid4

from cli.scripted.http import Request
from cli.scripted.vendor import Question, Refusal, has_bearer, json_bytes, json_object, payloads, sse

_TASK = "900bbd43-dc0b-4383-a372-aa6e6c414227"
_CONVERSATION = "45701982-8118-4bc5-8e9b-64562b4555f2"
_MESSAGE = "5ad4cb98-f0c7-4085-b384-88c403be6290"
_RUN = "fb47b2e6-5e43-4f90-be01-d5c5a088d156"
_CREATED = 1795357600

_FAILURES = {
    400: ("invalid_param", "Invalid parameter."),
    401: ("unauthorized", "Access token is invalid"),
    403: ("forbidden", "The app's API service has been disabled."),
    404: ("not_found", "Conversation Not Exists."),
    429: ("too_many_requests", "Too many requests. Please try again later."),
    503: ("service_unavailable", "The server is temporarily unable to service your request."),
}
_FAILURE = ("internal_server_error", "Internal Server Error, please contact support.")


class Dify:
    """One kind of Dify app."""

    content_type = "text/event-stream"
    ping = b"event: ping\n\n"

    def __init__(self, kind: Literal["completion", "chat", "workflow"], transcript: str) -> None:
        self.transcript = transcript
        self._kind = kind
        self._common: dict[str, Any] = {"message_id": _MESSAGE, "created_at": _CREATED}
        if kind == "chat":
            self._common = {"conversation_id": _CONVERSATION, **self._common}
        elif kind == "workflow":
            self._common = {"workflow_run_id": _RUN}

    def admit(self, request: Request, key: str) -> Question:
        fields = checked_fields(request, key)
        inputs = fields.get("inputs")
        if not isinstance(inputs, dict):
            raise _invalid("inputs is required in input form")
        if self._kind == "chat" and not isinstance(fields.get("query"), str):
            raise _invalid("query is required in input form")
        if fields.get("response_mode", "blocking") not in ("blocking", "streaming"):
            raise _invalid("response_mode must be one of blocking, streaming")
        if fields.get("conversation_id") not in (None, "", _CONVERSATION):
            raise Refusal(404, self.refusal(404))
        texts = [value for value in inputs.values() if isinstance(value, str)]
        prompt = fields["query"] if self._kind == "chat" else inputs.get("query", texts[0] if texts else "")
        streams = fields.get("response_mode") == "streaming"
        return Question(str(prompt), user=fields["user"], stream=streams, task=str(uuid4()))

    def refusal(self, status: int) -> bytes:
        return _error(*_FAILURES.get(status, _FAILURE), status)

    def adapt(self, recorded: Sequence[bytes], question: Question) -> list[bytes]:
        return [frame.replace(_TASK.encode(), question.task.encode()) for frame in recorded]

    def say(self, texts: Iterable[str], question: Question) -> Iterator[bytes]:
        yield self.ping
        said: list[str] = []
        if self._kind == "workflow":
            started = {"id": _RUN, "inputs": {"query": question.prompt}, "created_at": _CREATED}
            yield self._frame("workflow_started", question, data=started)
        for text in texts:
            said.append(text)
            if self._kind == "workflow":
                delta = {"text": text, "from_variable_selector": ["llm", "text"]}
                yield self._frame("text_chunk", question, data=delta)
            else:
                yield self._frame("message", question, id=_MESSAGE, answer=text)
        if self._kind == "workflow":
            yield self._finished(question, "succeeded", {"result": "".join(said)}, len(said))
        else:
            yield self._message_end(question, len(said))

    def whole(self, frames: Iterable[bytes]) -> bytes:
        events = payloads(frames)
        if self._kind == "workflow":
            finished = next(event for event in events if event["event"] == "workflow_finished")
            return json_bytes({name: finished[name] for name in ("workflow_run_id", "task_id", "data")})
        end = next(event for event in events if event["event"] == "message_end")
        answer = "".join(event["answer"] for event in events if event["event"] == "message")
        return json_bytes({**end, "event": "message", "mode": self._kind, "answer": answer})

    def stopped(self, question: Question) -> list[bytes]:
        if self._kind == "workflow":
            return [self._finished(question, "stopped", {}, 0)]
        return [self._message_end(question, 0)]

    def _finished(self, question: Question, status: str, outputs: dict[str, str], tokens: int) -> bytes:
        data: dict[str, Any] = {
            "id": _RUN,
            "status": status,
            "outputs": outputs,
            "error": "Workflow execution aborted" if status == "stopped" else None,
            "elapsed_time": 1.0,
            "total_tokens": tokens,
            "total_steps": 1,
            "created_at": _CREATED,
            "finished_at": _CREATED + 1,
            "files": [],
        }
        return self._frame("workflow_finished", question, data=data)

    def _message_end(self, question: Question, tokens: int) -> bytes:
        usage = {"prompt_tokens": 7, "completion_tokens": tokens, "total_tokens": 7 + tokens}
        metadata: dict[str, Any] = {"annotation_reply": None, "retriever_resources": [], "usage": usage}
        return self._frame("message_end", question, id=_MESSAGE, metadata=metadata, files=None)

    def _frame(self, event: str, question: Question, **fields: Any) -> bytes:
        return sse({"event": event, **self._common, "task_id": question.task, **fields})


def checked_fields(request: Request, key: str) -> dict[str, Any]:
    """The body's fields, `user` among them. Raises Refusal for a wrong key or an unusable body."""
    if not request.headers.get("authorization", "").startswith("Bearer "):
        text = "Authorization header must be provided and start with 'Bearer'"
        raise Refusal(401, _error("unauthorized", text, 401))
    if not has_bearer(request, key):
        raise Refusal(401, _error(*_FAILURES[401], 401))
    if not request.headers.get("content-type", "").startswith("application/json"):
        text = (
            "Did not attempt to load JSON data because the request Content-Type was not 'application/json'."
        )
        raise Refusal(415, _error("unsupported_media_type", text, 415))
    fields = json_object(request.body)
    if fields is None:
        raise _invalid("Failed to decode JSON object")
    if not isinstance(fields.get("user"), str) or not fields["user"]:
        raise _invalid("Arg user must be provided.")
    return fields


def _error(code: str, message: str, status: int) -> bytes:
    return json_bytes({"code": code, "message": message, "status": status})


def _invalid(message: str) -> Refusal:
    return Refusal(400, _error("invalid_param", message, 400))
