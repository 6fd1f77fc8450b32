"""Agents described by rules alone."""

from __future__ import annotations

from typing import Any

import pytest

from cli.adapter import Replay
from shared.config import MappedAgent
from shared.errors import AgentError, AgentProtocolError, AgentTruncated, ConfigError
from shared.events import Event, RunIds, Step, Usage
from shared.requests import Message, RunRequest
from shared.sse import ServerSentEvent
from shared.summary import Summary
from workers.dialects.mapped import Mapped

RULES: list[dict[str, Any]] = [
    {"event": "ping", "ignore": True},
    {"when": {"$.kind": "delta", "$.final": False}, "text": "$.parts[*].text"},
    {"event": "thought", "reasoning": "$.text"},
    {"event": "step", "step": "$.name"},
    {
        "event": "result",
        "data": {"outputs": "$.out", "all": "$.out[*]"},
        "usage": {"input_tokens": "$.in", "output_tokens": "$.o"},
        "conversation": "$.cid",
    },
    {"event": "error", "error": "$.message"},
    {"event": "end", "end": True},
]


def make(**options: Any) -> Mapped:
    return Mapped(
        MappedAgent.model_validate({"dialect": "mapped", "url": "http://odd/v1", "rules": RULES, **options})
    )


def play(*frames: ServerSentEvent, **options: Any) -> tuple[Mapped, list[Event], Summary, AgentError | None]:
    dialect = make(**options)
    replay = Replay(dialect)
    events, total = list(replay.events(iter(frames))), Summary()
    for event in events:
        total.feed(event)
    return dialect, events, total, replay.error


def sse(data: str, event: str = "") -> ServerSentEvent:
    return ServerSentEvent(data.encode(), event)


END = sse("{}", "end")


def test_rules_take_what_their_paths_lead_to() -> None:
    dialect, events, total, error = play(
        sse('{"text": "hm"}', "thought"),
        sse('{"kind": "delta", "final": false, "parts": [{"text": "a"}, {"text": "b"}, {"x": 1}]}'),
        sse('{"name": "search"}', "step"),
        sse('{"out": [1, 2], "in": 3, "o": 4, "cid": "c9"}', "result"),
        END,
    )
    assert (error, dialect.unmatched) == (None, 0)
    assert (total.text, total.reasoning, total.outputs, total.usage) == ("ab", "hm", [1, 2], Usage(3, 4))
    assert Step("search", "started") in events
    assert RunIds(conversation_id="c9") in events


@pytest.mark.parametrize("data", ['{"event": "thought", "text": "x"}', '{"type": "thought", "text": "x"}'])
def test_a_type_may_stand_in_the_frame_itself(data: str) -> None:
    assert play(sse(data), END)[2].reasoning == "x"


def test_true_is_not_one() -> None:
    assert play(sse('{"kind": "delta", "final": 0, "parts": [{"text": "a"}]}'), END)[0].unmatched == 1


def test_frames_without_a_rule_are_counted() -> None:
    dialect, events, _, _ = play(sse('{"new": 1}'), sse("{}", "ping"), sse("[]"), sse("3"), END)
    assert dialect.unmatched == 3
    assert [event.type for event in events] == ["run.completed"]


def test_text_behind_the_end_is_ignored_and_data_is_not() -> None:
    late = sse('{"kind": "delta", "final": false, "parts": [{"text": "late"}]}')
    _, _, total, _ = play(END, late, sse('{"out": 1}', "result"))
    assert (total.text, total.outputs) == ("", 1)


def test_the_body_must_have_its_end_marker_unless_there_is_none() -> None:
    assert isinstance(play()[3], AgentTruncated)
    assert play(end_of_body_completes=True)[3] is None


def test_a_literal_ends_the_stream_at_once() -> None:
    dialect, _, total, error = play(sse("[DONE]"), sse("not json"), done="[DONE]")
    assert (dialect.complete, dialect.closed, error, total.text) == (True, True, None, "")


def test_an_error_fails_the_run() -> None:
    error = play(sse('{"message": "bad key sk-0123456789"}', "error"))[3]
    assert str(error) == "bad key [secret]"


def test_a_whole_text_that_grows_becomes_deltas() -> None:
    rules = [{"whole": "$.t"}]
    frames = [sse(f'{{"t": "{text}"}}') for text in ("a", "ab", "ab", "abc")]
    _, events, total, _ = play(*frames, rules=rules, end_of_body_completes=True)
    assert total.text == "abc"
    assert not any(event.type == "text.replace" for event in events)
    _, _, total, _ = play(*frames, sse('{"t": "new"}'), rules=rules, end_of_body_completes=True)
    assert (total.text, total.before_replace) == ("new", "abc")


def test_data_may_be_plain_text() -> None:
    _, _, total, _ = play(
        sse("12"), sse(' {"a'), content="text", rules=[{"text": "$"}], end_of_body_completes=True
    )
    assert total.text == '12 {"a'


@pytest.mark.parametrize("data", ["not json", '{"text": {"a": 1}}', '{"text": [1]}'])
def test_what_is_not_as_the_rule_says_is_a_protocol_error(data: str) -> None:
    assert isinstance(play(sse(data, "thought"))[3], AgentProtocolError)


def test_the_request_is_filled() -> None:
    dialect = make(
        url="http://odd/v1/{{ user }}?q={{ prompt }}",
        request={"question": "{{ prompt }}", "n": "{{ inputs.n }}"},
        body={"fixed": 1},
        api_key="k",
        framing="ndjson",
    )
    request = dialect.request(RunRequest((Message("user", "a b"),), {"n": 3}, user="u/1"))
    assert request.url == "http://odd/v1/u%2F1?q=a%20b"
    assert request.body == {"fixed": 1, "question": "a b", "n": 3}
    assert request.headers == {"Accept": "application/x-ndjson", "Authorization": "Bearer k"}
    assert make(method="GET").request(RunRequest()).body is None


def test_a_bad_path_or_template_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match=r"\$\.\["):
        make(rules=[{"text": "$.["}])
    with pytest.raises(ConfigError, match="nope"):
        make(request={"a": "{{ nope }}"})
    with pytest.raises(ValueError, match="host or port"):
        make(url="http://{{ inputs.host }}/x")
