"""Old services that answer once."""

from __future__ import annotations

from typing import Any

import pytest

from cli.adapter import Replay
from shared.config import RestAgent
from shared.errors import AgentError, AgentProtocolError, AgentTruncated
from shared.events import Data, Event
from shared.requests import Message, RunRequest
from shared.sse import ServerSentEvent
from shared.summary import Summary
from workers.dialects.rest import Rest


def make(**options: Any) -> Rest:
    return Rest(RestAgent.model_validate({"dialect": "rest", "url": "http://old/search", **options}))


def play(body: bytes, **options: Any) -> tuple[list[Event], Summary, AgentError | None]:
    replay = Replay(make(**options))
    events = list(replay.events(iter([ServerSentEvent(body)] if body else [])))
    total = Summary()
    for event in events:
        total.feed(event)
    return events, total, replay.error


def test_text_and_outputs_are_taken_by_path() -> None:
    body = b'{"result": {"summary": "short", "hits": [1, 2]}}'
    events, total, _ = play(body, text="$.result.summary", data="$.result.hits")
    assert (total.text, total.outputs) == ("short", [1, 2])
    assert Data("hits", [1, 2]) in events
    assert [event.type for event in events] == [
        "text.start",
        "text.delta",
        "data",
        "text.end",
        "run.completed",
    ]


def test_several_outputs_are_named_and_an_object() -> None:
    events, total, _ = play(b'{"a": 1, "b": {"c": 2}}', data={"x": "$.a", "y": "$.b.c", "z": "$.d"})
    assert [event for event in events if event.type == "data"] == [Data("x", 1), Data("y", 2)]
    assert total.outputs == {"x": 1, "y": 2}


def test_without_a_path_the_whole_answer_is_data() -> None:
    _, total, _ = play(b'{"a": 1}')
    assert (total.text, total.outputs) == ("", {"a": 1})


def test_what_is_not_json_is_text() -> None:
    assert play("schön".encode(), text="$.x")[1].text == "schön"


@pytest.mark.parametrize("body", [b'{"a": ', b"[1,"])
def test_json_that_was_cut_is_a_protocol_error(body: bytes) -> None:
    assert isinstance(play(body)[2], AgentProtocolError)


def test_an_answer_without_what_was_asked_for_is_a_protocol_error() -> None:
    assert "$.x" in str(play(b'{"a": 1}', text="$.x")[2])


def test_an_error_is_found_by_path() -> None:
    assert str(play(b'{"err": "no such thing"}', error="$.err")[2]) == "no such thing"
    assert play(b'{"err": null, "a": 1}', error="$.err")[2] is None


def test_no_body_is_no_answer() -> None:
    assert isinstance(play(b"")[2], AgentTruncated)


def test_the_request_is_filled() -> None:
    request = make(body={"limit": 3, "input": "{input}"}).request(RunRequest((Message("user", "q"),)))
    assert (request.method, request.url, request.body) == (
        "POST",
        "http://old/search",
        {"limit": 3, "input": "q"},
    )
