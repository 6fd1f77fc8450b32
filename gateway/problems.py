"""Refusals before the first byte of an answer: RFC 9457 problem details, and the OpenAI error form."""

from __future__ import annotations

import http

import msgspec
from starlette.responses import Response

from gateway.dialects.openai_chat import error_object
from shared.errors import RequestError
from shared.events import RunFailed

_FAILURE_STATUS = {
    "agent_unavailable": 503,
    "expired": 503,
    "storage_full": 503,
    "timeout": 504,
    "gone": 410,
    "config": 500,
    "filter": 500,
    "internal": 500,
}
"""Status of a run that failed before anything was shown; 502 for everything the agent did."""

_OPENAI_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}

_RETRY_AFTER = 1
"""Seconds after which a failure that may pass is worth another try."""


def failed(failure: RunFailed) -> RequestError:
    """The refusal that a run's failure becomes while a status can still be sent."""
    status = _FAILURE_STATUS.get(failure.code, 502)
    retry_after = _RETRY_AFTER if failure.retryable else None
    return RequestError(status, failure.code, failure.message, retry_after=retry_after)


def problem(error: RequestError) -> Response:
    """RFC 9457, with `code` a stable word for programs and `field` the part of the request that is wrong."""
    body = {
        "type": "about:blank",
        "title": http.HTTPStatus(error.status).phrase,
        "status": error.status,
        "detail": error.detail,
        "code": error.code,
    }
    if error.field is not None:
        body["field"] = error.field
    content = msgspec.json.encode(body)
    return Response(content, error.status, _headers(error), "application/problem+json")


def openai_error(error: RequestError) -> Response:
    """The form of the OpenAI API.

    Its clients repeat every 5xx by themselves unless `x-should-retry` says no
    (openai/openai-python `src/openai/_base_client.py::_should_retry`).
    """
    other = "invalid_request_error" if error.status < 500 else "server_error"
    error_type = _OPENAI_TYPES.get(error.status, other)
    content = error_object(error.detail, error.code, error_type, error.field)
    headers = _headers(error)
    if error.status >= 500 and error.retry_after is None:
        headers["x-should-retry"] = "false"
    return Response(content, error.status, headers, "application/json")


def _headers(error: RequestError) -> dict[str, str]:
    headers = {"Cache-Control": "no-store"}
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if error.status == http.HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return headers
