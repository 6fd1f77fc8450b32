"""Plays the Chat Completions API.

Errors and chunks have the form that openai-python `src/openai/types/chat/` and
`src/openai/_exceptions.py` read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from cli.scripted.http import Request
from cli.scripted.vendor import Question, Refusal, has_bearer, json_bytes, json_object, payloads, sse

MODELS = json_bytes(
    {
        "object": "list",
        "data": [{"id": "gpt-4.1-mini", "object": "model", "created": 1744316542, "owned_by": "system"}],
    }
)

_FAILURES = {
    401: ("Incorrect API key provided.", "invalid_request_error", "invalid_api_key"),
    403: ("Country, region, or territory not supported", "request_forbidden", "unsupported_country"),
    404: (
        "The model does not exist or you do not have access to it.",
        "invalid_request_error",
        "model_not_found",
    ),
    429: ("Rate limit reached for requests", "requests", "rate_limit_exceeded"),
}
_FAILURE = ("The server had an error while processing your request. Sorry about that!", "server_error", None)
_BASE = {
    "id": "chatcmpl-Generated0000000000000001",
    "object": "chat.completion.chunk",
    "created": 1795356000,
    "model": "gpt-4.1-mini-2025-04-14",
}


class OpenAIChat:
    """`POST /chat/completions`, stream and not."""

    transcript = "openai-chat/usage"
    content_type = "text/event-stream; charset=utf-8"
    ping = b": keep-alive\n\n"

    def admit(self, request: Request, key: str) -> Question:
        check_key(request, key)
        fields = json_object(request.body)
        if fields is None:
            raise _invalid("We could not parse the JSON body of your request.", None)
        if not isinstance(fields.get("model"), str):
            raise _invalid("you must provide a model parameter", None)
        messages = fields.get("messages")
        if not isinstance(messages, list) or not messages:
            raise _invalid(
                "Missing required parameter: 'messages'.", "messages", "missing_required_parameter"
            )
        options = fields.get("stream_options") or {}
        return Question(
            prompt=_last_text(messages),
            user=str(fields.get("user", "")),
            stream=fields.get("stream") is True,
            usage=fields.get("stream") is not True or options.get("include_usage") is True,
        )

    def refusal(self, status: int) -> bytes:
        return _error(*_FAILURES.get(status, _FAILURE))

    def adapt(self, recorded: Sequence[bytes], question: Question) -> list[bytes]:
        if question.usage:
            return list(recorded)
        asked_for = (frame for frame in recorded if b'"choices":[],' not in frame)
        return [frame.replace(b',"usage":null', b"") for frame in asked_for]

    def say(self, texts: Iterable[str], question: Question) -> Iterator[bytes]:
        yield _chunk({"role": "assistant", "content": ""})
        count = 0
        for count, text in enumerate(texts, start=1):  # noqa: B007 (the last count is the usage)
            yield _chunk({"content": text})
        yield _chunk({}, "stop")
        if question.usage:
            usage = {"prompt_tokens": 7, "completion_tokens": count, "total_tokens": 7 + count}
            yield sse({**_BASE, "choices": [], "usage": usage})
        yield b"data: [DONE]\n\n"

    def whole(self, frames: Iterable[bytes]) -> bytes:
        chunks = payloads(frames)
        choices = [choice for chunk in chunks for choice in chunk["choices"]]
        deltas = [choice["delta"] for choice in choices]
        message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None}
        for name in ("content", "reasoning_content"):
            if any(delta.get(name) for delta in deltas):
                message[name] = "".join(delta.get(name) or "" for delta in deltas)
        if calls := _tool_calls(deltas):
            message["tool_calls"] = calls
        finish = next(choice["finish_reason"] for choice in reversed(choices) if choice["finish_reason"])
        answer = {name: chunks[0][name] for name in ("id", "created", "model")}
        answer |= {
            "object": "chat.completion",
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish}],
        }
        usage = next((chunk["usage"] for chunk in chunks if chunk.get("usage")), None)
        return json_bytes(answer | {"usage": usage} if usage else answer)

    def stopped(self, question: Question) -> list[bytes]:
        return []


def check_key(request: Request, key: str) -> None:
    """Raises Refusal unless the key is there and right."""
    if "authorization" not in request.headers:
        text = "You didn't provide an API key. You need to provide your API key in an Authorization header."
        raise Refusal(401, _error(text, "invalid_request_error", None))
    if not has_bearer(request, key):
        raise Refusal(401, _error(*_FAILURES[401]))


def _error(message: str, kind: str, code: str | None, param: str | None = None) -> bytes:
    return json_bytes({"error": {"message": message, "type": kind, "param": param, "code": code}})


def _invalid(message: str, param: str | None, code: str | None = None) -> Refusal:
    return Refusal(400, _error(message, "invalid_request_error", code, param))


def _chunk(delta: dict[str, str], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return sse({**_BASE, "choices": [choice]})


def _last_text(messages: list[Any]) -> str:
    users = [message for message in messages if isinstance(message, dict) and message.get("role") == "user"]
    content = users[-1].get("content") if users else ""
    if isinstance(content, list):
        content = " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content or "")


def _tool_calls(deltas: list[dict[str, Any]]) -> list[dict[str, Any]]:
    calls: dict[int, dict[str, Any]] = {}
    for part in (part for delta in deltas for part in delta.get("tool_calls") or ()):
        if "id" in part:
            calls[part["index"]] = {name: part[name] for name in ("id", "type", "function")}
        else:
            calls[part["index"]]["function"]["arguments"] += part["function"]["arguments"]
    return list(calls.values())
