"""Errors as agents report them, in a stream or in the body of a refusal.

Forms: `{"error": {"message", "code", "type"}}` and `{"error": "text"}` (OpenAI and look-alikes),
`{"object": "error", "message", "code"}` (vLLM), `{"code", "message", "status"}` (Dify),
`{"detail": ...}` (FastAPI), `{"message"}`.
"""

from __future__ import annotations

import re

import msgspec

from shared.errors import AgentError, AgentRejected, AgentUnavailable
from shared.events import Json
from workers.dialects.decoding import whole

MAX_SHOWN = 500
"""Characters of an agent's own words that are passed on."""

BUSY = frozenset((408, 425, 429, 502, 503, 504, 529))
"""Statuses after which the same request may succeed. 529: overloaded (Anthropic)."""

_BUSY_WORDS = frozenset(("rate_limit_exceeded", "too_many_requests", "overloaded", "overloaded_error"))
_FINAL_WORDS = frozenset(("insufficient_quota", "rate_limit_error", "billing_hard_limit_reached"))
"""Refusals that come as 429 and stay."""

_SECRET = re.compile(
    r"(?i:bearer)\s+[^\s\"']+"
    r"|\b(?:sk|pk|rk|app|key|api|gsk|xai|dataset)-[\w*.-]{6,}"
    r"|\beyJ[\w-]{8,}\.[\w-]+\.[\w-]*"
)
_ADDRESS = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s\"'<>]+", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]+")


class Report(msgspec.Struct, frozen=True):
    """What an agent said of its failure. `status` is an HTTP status when it named one."""

    message: str
    code: str | int | None = None
    kind: str | None = None
    status: int | None = None


def shown(text: str) -> str:
    """`text` cut to a sane length, without anything that looks like a key or an address."""
    text = _CONTROL.sub(" ", whole(text[: 4 * MAX_SHOWN]))
    text = _ADDRESS.sub("[address]", _SECRET.sub("[secret]", text)).strip()
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"


def report(value: Json) -> Report | None:
    """The error that `value` tells of, or None when it tells of none."""
    if not isinstance(value, dict):
        return None
    inner = value.get("error") or value.get("detail")
    if isinstance(inner, dict):
        return _from_object(inner)
    if isinstance(inner, str):
        return Report(shown(inner), _code(value.get("code")), None, _status(value.get("status")))
    return _from_object(value) if isinstance(value.get("message"), str) else None


def as_error(found: Report, status: int | None = None) -> AgentError:
    """The exception for it; `status` is that of the HTTP answer when there was one."""
    status = status or found.status or (found.code if isinstance(found.code, int) else None)
    words = {found.code, found.kind}
    message = found.message or "the agent reported an error"
    faulty = (status or 0) >= 500 or found.kind in ("server_error", "InternalServerError")
    kind, retryable = AgentError, faulty
    if words & _FINAL_WORDS:
        kind, retryable = AgentRejected, False
    elif status in BUSY or words & _BUSY_WORDS:
        kind, retryable = AgentUnavailable, True
    elif status is not None and 400 <= status < 500:
        kind, retryable = AgentRejected, False
    return kind(
        message,
        retryable=retryable,
        agent_code=found.code,
        agent_type=found.kind,
        agent_status=found.status,
    )


def _from_object(value: dict[str, Json]) -> Report:
    message, kind = value.get("message"), value.get("type")
    return Report(
        shown(message) if isinstance(message, str) else "the agent reported an error",
        _code(value.get("code")),
        shown(kind) if isinstance(kind, str) else None,
        _status(value.get("status")),
    )


def _code(value: Json) -> str | int | None:
    if isinstance(value, str):
        return shown(value)[:64] or None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _status(value: Json) -> int | None:
    return value if isinstance(value, int) and 100 <= value < 600 else None
