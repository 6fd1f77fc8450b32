"""Request bodies: read within bounds, decoded, checked against a model that names what is wrong."""

from __future__ import annotations

import re
from typing import Any, NamedTuple, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from shared.errors import RequestError

MAX_DEPTH = 64
"""Deepest nesting of a JSON body."""

M = TypeVar("M", bound=BaseModel)

_SENTENCES = {
    "dict_type": "expected a JSON object",
    "model_type": "expected a JSON object",
    "model_attributes_type": "expected a JSON object",
    "extra_forbidden": "there is no such field",
    "missing": "this field is needed",
}
"""What pydantic says of a body in the words of Python, said of JSON."""

_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_BRACKETS = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


class JsonBody(NamedTuple):
    """A body as it came, and its value."""

    raw: bytes
    value: Any

    def fit(self, model: type[M]) -> M:
        """The value as `model`. Raises RequestError (422) that names the first wrong field."""
        try:
            return model.model_validate(self.value)
        except ValidationError as error:
            raise _explained(error) from None


async def read_json(request: Request, limit: int) -> JsonBody:
    """The JSON body of at most `limit` bytes. Raises RequestError: 400, 413 or 415."""
    _check_headers(request, limit)
    raw = await _read(request, limit)
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise RequestError(
            400, "not_json", f"the body is not JSON: {error.msg} at character {error.pos}", field="body"
        ) from None
    if _too_deep(raw):
        raise RequestError(
            400, "too_deep", f"the body is nested over {MAX_DEPTH} levels deep; flatten it", field="body"
        )
    return JsonBody(raw, value)


def _check_headers(request: Request, limit: int) -> None:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise RequestError(
            415, "json_expected", "send the body with `Content-Type: application/json`", field="Content-Type"
        )
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise RequestError(
            415, "compressed", "compressed bodies are not read; send it as it is", field="Content-Encoding"
        )
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > limit:
        raise _too_large(limit)


async def _read(request: Request, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise _too_large(limit)
            parts.append(part)
    except ClientDisconnect:
        raise RequestError(400, "disconnected", "the body did not come to its end", field="body") from None
    return b"".join(parts)


def _too_large(limit: int) -> RequestError:
    return RequestError(
        413, "too_large", f"the body is over the limit of {limit} bytes (BFF_MAX_BODY_BYTES)", field="body"
    )


def _too_deep(raw: bytes) -> bool:
    """Whether valid JSON nests too deep: take the innermost brackets away as often as is allowed."""
    if raw.count(b"[") + raw.count(b"{") <= MAX_DEPTH:
        return False
    brackets = _STRING.sub(b"", raw).translate(_BRACKETS, _NO_BRACKETS)
    for _ in range(MAX_DEPTH):
        if not brackets:
            return False
        brackets = brackets.replace(b"[]", b"")
    return bool(brackets)


def _explained(error: ValidationError) -> RequestError:
    """The first complaint: the field by its path, what is wrong, and what else is. Tags of unions, which
    our models write as `<tag>`, are no part of the path."""
    details = error.errors(include_url=False, include_input=False, include_context=False)
    first, others = details[0], len(details) - 1
    field = ".".join(str(part) for part in first["loc"] if not str(part).startswith("<")) or "body"
    more = f" (and {others} more)" if others else ""
    wrong = _SENTENCES.get(first["type"], first["msg"])
    return RequestError(422, "invalid_body", f"{field}: {wrong}{more}", field=field)
