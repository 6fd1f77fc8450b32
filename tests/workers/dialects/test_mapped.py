"""Agents described by rules alone."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from cli.adapter import Replay
from shared.config import MappedAgent
from shared.errors import AgentError, AgentProtocolError, AgentTruncated, ConfigError
from shared.events import Data, Event, RunIds, Step, Usage
from shared.requests import Message, RunRequest
from shared.sse import ServerSentEvent
from shared.summary import Summary
from workers.dialects.mapped import Mapped

RULES: list[dict[str, Any]] = [
    {"when": {"event": "ping"}, "ignore": True},
    {"when": {"$.kind": "delta", "$.final": False}, "text": "$.parts[*].text"},
    {"when": {"event": "thought"}, "reasoning": "$.text"},
    {"when": {"event": "step"}, "step": "$.name"},
    {
        "when": {"event": "result"},
        "data": "$.out",
        "usage": {"input_tokens": "$.in", "output_tokens": "$.o"},
        "conversation": "$.cid",
    },
    {"when": {"event": "error"}, "error": "$.message"},
    {"when": {"event": "end"}, "end": True},
]


def make(**options: Any) -> Mapped:
    return Mapped(
        MappedAgent.model_validate({"dialect": "mapped", "url": "http://odd/v1", "events": RULES, **options})
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
    dialect, _, total, error = play(sse("[DONE]"), sse("not json"), end=["[DONE]"])
    assert (dialect.complete, dialect.closed, error, total.text) == (True, True, None, "")


def test_an_error_fails_the_run() -> None:
    error = play(sse('{"message": "bad key sk-0123456789"}', "error"))[3]
    assert str(error) == "bad key [secret]"


def test_a_whole_text_that_grows_becomes_deltas() -> None:
    rules = [{"whole": "$.t"}]
    frames = [sse(f'{{"t": "{text}"}}') for text in ("a", "ab", "ab", "abc")]
    _, events, total, _ = play(*frames, events=rules, end_of_body_completes=True)
    assert total.text == "abc"
    assert not any(event.type == "text.replace" for event in events)
    _, _, total, _ = play(*frames, sse('{"t": "new"}'), events=rules, end_of_body_completes=True)
    assert (total.text, total.before_replace) == ("new", "abc")


def test_data_may_be_plain_text() -> None:
    _, _, total, _ = play(
        sse("12"), sse(' {"a'), content="text", events=[{"text": "$"}], end_of_body_completes=True
    )
    assert total.text == '12 {"a'


@pytest.mark.parametrize("data", ["not json", '{"text": {"a": 1}}', '{"text": [1]}'])
def test_what_is_not_as_the_rule_says_is_a_protocol_error(data: str) -> None:
    assert isinstance(play(sse(data, "thought"))[3], AgentProtocolError)


def test_the_request_is_filled() -> None:
    dialect = make(
        url="http://odd/v1/{user}?q={input}",
        body={"fixed": 1, "question": "{input}", "n": "{inputs.n}"},
        api_key="k",
        framing="ndjson",
    )
    request = dialect.request(RunRequest((Message("user", "a b"),), {"n": 3}, user="u/1"))
    assert request.url == "http://odd/v1/u%2F1?q=a%20b"
    assert request.body == {"fixed": 1, "question": "a b", "n": 3}
    assert request.headers == {"Accept": "application/x-ndjson", "Authorization": "Bearer k"}
    assert make(method="GET").request(RunRequest()).body is None


WORDS = {"end": ["end", "[DONE]"], "ignore": ["ping", "[KEEP-ALIVE]"]}
TEXT = [{"when": {"event": "say"}, "text": "$.t"}]


@pytest.mark.parametrize(
    "frame",
    [sse('{"t": "a", "event": "x"}', "say"), sse('{"t": "a", "event": "say", "type": "x"}')]
    + [sse(f'{{"t": "a", "event": {other}, "type": "say"}}') for other in ("null", "{}", "3")],
)
def test_a_word_is_the_line_else_the_event_else_the_type(frame: ServerSentEvent) -> None:
    assert play(frame, END, events=TEXT, **WORDS)[2].text == "a"


@pytest.mark.parametrize(
    "frame", [sse("noon", "ping"), sse('{"type": "ping"}'), sse("", "ping"), sse("[KEEP-ALIVE]")]
)
def test_ignored_frames_need_not_be_json(frame: ServerSentEvent) -> None:
    dialect, _, _, error = play(frame, END, events=TEXT, **WORDS)
    assert (error, dialect.unmatched) == (None, 0)


@pytest.mark.parametrize("end", [sse("bye", "end"), sse("", "end"), sse('{"type": "end"}'), sse("[DONE]")])
def test_a_word_ends_the_answer(end: ServerSentEvent) -> None:
    dialect, _, total, error = play(sse('{"t": "a"}', "say"), end, events=TEXT, **WORDS)
    assert (total.text, error, dialect.complete, dialect.unmatched) == ("a", None, True, 0)


def test_behind_a_bare_end_frames_are_read_and_behind_one_in_brackets_they_are_not() -> None:
    events = [{"when": {"event": "usage"}, "usage": {"input_tokens": "$.in"}}]
    late = sse('{"in": 3}', "usage")
    assert play(END, late, events=events, **WORDS)[2].usage == Usage(3)
    assert play(sse("[DONE]"), late, events=events, **WORDS)[2].usage is None


def test_a_rule_takes_what_the_end_holds() -> None:
    events = [{"when": {"event": "end"}, "usage": {"input_tokens": "$.in"}}]
    assert play(sse('{"in": 3}', "end"), events=events, **WORDS)[2].usage == Usage(3)


def test_a_rule_may_be_for_raw_data() -> None:
    events = [{"when": {"event": "[PAUSE]"}, "text": "$"}, *TEXT]
    assert play(sse('{"t": "a"}', "say"), sse("[PAUSE]"), END, events=events, **WORDS)[2].text == "a[PAUSE]"


@pytest.mark.parametrize(
    ("data", "name", "value"),
    [
        ("$.x.hits", "hits", [1]),
        ("$.x['hits'][0]", "hits", 1),
        ("$.x.hits[*]", "hits", [1]),
        ("$.x.*", "x", [[1]]),
        ("$..hits", "hits", [[1]]),
        ("$", "outputs", {"x": {"hits": [1]}}),
        ({"found": "$.x.hits"}, "found", [1]),
    ],
)
def test_one_output_is_the_value_itself(data: Any, name: str, value: Any) -> None:
    _, events, total, _ = play(sse('{"x": {"hits": [1]}}'), sse("[DONE]"), events=[{"data": data}], **WORDS)
    assert (events[0], total.outputs) == (Data(name, value), value)


def test_several_outputs_are_an_object() -> None:
    rules = [{"when": {"$.n": 1}, "data": {"a": "$.a", "b": "$.b"}}, {"data": "$.c"}]
    frames = [sse('{"n": 1, "a": 1}'), sse('{"c": 2}'), sse('{"c": 3}')]
    assert play(*frames, sse("[DONE]"), events=rules, **WORDS)[2].outputs == {"a": 1, "c": 3}


def test_a_bad_path_names_its_field() -> None:
    with pytest.raises(ConfigError, match=r"^events\.1\.data\.a: not a JSONPath: '\$\.\['"):
        make(events=[{"when": {"event": "x"}, "text": "$.t"}, {"data": {"a": "$.["}}], end=["end"])
    with pytest.raises(ConfigError, match=r"^events\.0\.when\.\$\[: "):
        make(events=[{"when": {"$[": 1}, "text": "$.t"}], end=["end"])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"events": []}, "at least one rule"),
        ({"events": [{"when": {"event": "x"}}]}, "takes nothing"),
        ({"events": [{"when": {"type": "x"}, "text": "$.t"}]}, "begins with [$]"),
        ({"events": [{"when": {"event": True}, "text": "$.t"}]}, "quotes"),
        ({"events": [{"text": "$.t", "data": ["$.a"]}]}, "a mapping of names"),
        ({"events": [{"text": "$.a"}, *TEXT], "end": ["end"]}, "rule 2 is never reached"),
        ({"events": [*TEXT, *TEXT], "end": ["end"]}, "rule 2 is never reached"),
        ({"events": TEXT}, "nothing ends"),
        ({"end": ["ping"], "ignore": ["ping"]}, "ping stands in `ignore`"),
        ({"ignore": ["thought"]}, "thought stands in `ignore`"),
        ({"end": [["DONE"]]}, "needs quotes"),
        ({"end": "end"}, "must be a list"),
        ({"events": [{"when": {"$.day": date(2026, 1, 2)}, "text": "$.t"}]}, "not a valid JSON value"),
        ({"url": "http://{inputs.host}/x"}, "host or port"),
    ],
)
def test_rules_that_cannot_be_meant_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        make(**options)
