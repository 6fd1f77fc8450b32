"""Nothing that a request holds is dropped without a word."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter

from shared.config import Agent
from shared.requests import Message, RunRequest
from shared.warnings import warnings

AGENT: TypeAdapter[Agent] = TypeAdapter(Agent)

USER = Message("user", "Hi")
OPENAI = {"dialect": "openai-chat", "url": "http://a", "model": "m"}
DIFY = {"dialect": "dify-chat", "url": "http://a"}
REST = {"dialect": "rest", "url": "http://a"}
FUNCTION = {"function": "a:b"}


def told(agent: dict[str, Any], run: RunRequest) -> str:
    return " ".join(warnings(AGENT.validate_python(agent), run))


@pytest.mark.parametrize("agent", [OPENAI, DIFY, REST, FUNCTION])
def test_a_plain_request_is_honoured_whole(agent: dict[str, Any]) -> None:
    assert told(agent, RunRequest((USER,))) == ""


@pytest.mark.parametrize(
    ("agent", "run", "word"),
    [
        (OPENAI, RunRequest((USER,), params={"n": 2, "temperature": 1}), "n"),
        (OPENAI, RunRequest((USER,), {"a": 1}), "inputs"),
        (OPENAI, RunRequest((USER,), files=({},)), "files"),
        (DIFY, RunRequest((USER,), params={"temperature": 1}), "temperature"),
        (DIFY, RunRequest((Message("user", [{"type": "input_audio"}]),)), "parts"),
        (DIFY, RunRequest((Message("assistant", None, tool_calls=[{}]), USER)), "parts"),
        (REST, RunRequest((Message("user", "a"), USER)), "last user message"),
        (REST, RunRequest((USER,), {"lang": "de"}), "lang"),
        ({**REST, "body": {"q": "{{input}}"}}, RunRequest((USER,)), "no place for messages"),
        (FUNCTION, RunRequest((USER,), params={"seed": 1}), "seed"),
    ],
)
def test_what_an_agent_cannot_take_is_told(agent: dict[str, Any], run: RunRequest, word: str) -> None:
    assert word in told(agent, run)


def test_what_a_template_takes_is_not_told() -> None:
    agent = {**REST, "url": "http://a/?l={inputs.lang}", "body": {"m": "{messages}"}}
    assert told(agent, RunRequest((USER, USER), {"lang": "de"})) == ""
