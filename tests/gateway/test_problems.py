"""Refusals: problem details and the OpenAI form."""

from __future__ import annotations

import json

import pytest

from gateway.problems import failed, openai_error, problem
from shared.errors import RequestError
from shared.events import RunFailed


def test_a_problem_names_status_code_and_field() -> None:
    response = problem(RequestError(422, "bad_body", "input: expected text", field="input", retry_after=3))
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["retry-after"] == "3"
    assert json.loads(bytes(response.body)) == {
        "type": "about:blank",
        "title": "Unprocessable Entity",
        "status": 422,
        "detail": "input: expected text",
        "code": "bad_body",
        "field": "input",
    }


def test_who_is_not_known_is_told_how_to_be() -> None:
    assert problem(RequestError(401, "no_key", "a key is needed")).headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("status", "error_type"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (404, "not_found_error"),
        (429, "rate_limit_error"),
        (502, "server_error"),
    ],
)
def test_the_openai_form_has_a_type_for_each_status(status: int, error_type: str) -> None:
    response = openai_error(RequestError(status, "code", "text", field="model"))
    assert json.loads(bytes(response.body)) == {
        "error": {"message": "text", "type": error_type, "param": "model", "code": "code"}
    }


def test_sdks_are_told_not_to_repeat_what_will_not_pass() -> None:
    assert openai_error(RequestError(502, "c", "t")).headers["x-should-retry"] == "false"
    assert "x-should-retry" not in openai_error(RequestError(503, "c", "t", retry_after=1)).headers
    assert "x-should-retry" not in openai_error(RequestError(400, "c", "t")).headers


def test_a_failed_run_has_a_status() -> None:
    assert failed(RunFailed(code="timeout", message="m")).status == 504
    assert failed(RunFailed(code="agent_rejected", message="m")).status == 502
    overloaded = failed(RunFailed(code="agent_unavailable", message="m", retryable=True))
    assert (overloaded.status, overloaded.retry_after) == (503, 1)
