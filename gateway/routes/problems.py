"""How refusals look in the native API's description (RFC 9457)."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field


class Problem(BaseModel):
    """A refusal."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str = Field(description="what is wrong and what to do about it")
    code: str = Field(description="a stable word for programs")
    field: str | None = Field(None, description="the part of the request that is wrong")


_MEANINGS = {
    400: "The request cannot be read.",
    401: "The key is missing, unknown or expired.",
    403: "The key may not do this, or the page or host name may not call.",
    404: "There is no such run or agent, or not for this key.",
    413: "The body is too large.",
    415: "The body is not plain JSON.",
    422: "A field is wrong; `field` names it.",
    429: "A limit is reached; `Retry-After` says when to try again.",
    503: "The broker, the agent or this gateway is not available.",
}

PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"description": meaning, "model": Problem, "content": {"application/problem+json": {}}}
    for status, meaning in _MEANINGS.items()
}
"""For a route's `responses`."""
