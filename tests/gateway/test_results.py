"""A run's result as JSON, natively and as a chat completion."""

from __future__ import annotations

import json

import pytest

from gateway.dialects.base import ViewOptions
from gateway.results import RunResult
from shared.cursor import Cursor
from shared.errors import RequestError
from shared.events import (
    Data,
    Event,
    ReasoningDelta,
    RunCompleted,
    RunFailed,
    RunStarted,
    RunStopped,
    Source,
    TextDelta,
    ToolDelta,
    ToolStart,
)
from shared.stream_log import Entry
from tests.gateway.dialects.conversations import ANSWER, EXPECTED, TOOL, WHOLE_TEXT, options
from tests.gateway.dialects.log import AGENT, RUN, entries, entry

STOP = RunCompleted(finish_reason="stop")


def result(*events: Event, view: ViewOptions | None = None) -> RunResult:
    """The result of a run with these events."""
    made = RunResult(view or options())
    made.feed(entries(*events))
    return made


def test_the_native_result_has_all_that_a_run_came_to() -> None:
    assert result(*ANSWER, view=options()).to_json() == {
        "id": RUN,
        "agent": AGENT,
        "status": "completed",
        "text": WHOLE_TEXT,
        "reasoning": "Need the weather tool.",
        "outputs": None,
        "usage": {"input_tokens": 42, "output_tokens": 17, "total_tokens": 59},
        "finish_reason": "stop",
        "error": None,
    }


def test_outputs_data_tools_and_sources_are_told() -> None:
    told = result(
        Data(name="outputs", value={"n": 1}), Data(name="hits", value=[1]), Source(title="A"), *TOOL
    ).to_json()
    assert told["outputs"] == {"n": 1}
    assert told["data"] == {"hits": [1]}
    assert told["sources"] == [{"title": "A"}]
    assert told["tool_calls"] == [{"id": "call_1", "name": "get_weather", "arguments": {"city": "Paris"}}]


def test_the_status_follows_the_run() -> None:
    queued = RunResult(options())
    queued.feed(entries()[:1])
    assert (queued.status, queued.ended) == ("queued", False)
    assert result(TextDelta(block="t", text="x")).status == "running"
    assert result(RunStopped(by="client")).to_json()["finish_reason"] == "cancelled"
    failed = result(TextDelta(block="t", text="x"), RunFailed(code="timeout", message="m", retryable=True))
    assert failed.to_json()["error"] == {"code": "timeout", "message": "m", "retryable": True}
    assert failed.to_json()["text"] == "x"


def test_a_new_attempt_begins_the_result_anew() -> None:
    made = result(TextDelta(block="t", text="old"), Data(name="d", value=1))
    made.feed([entry(Cursor(2**50, 0), RunStarted(attempt=2**50, prev="0-1", agent=AGENT))])
    made.feed([entry(Cursor(2**50, 1), TextDelta(block="t", text="new"))])
    assert made.to_json()["text"] == "new"
    assert "data" not in made.to_json()


def test_unknown_events_are_passed_over() -> None:
    made = result()
    made.feed([Entry(Cursor(2**50, 1), "novel.kind", b"{}")])
    assert made.status == "running"


def test_the_chat_completion_is_the_recorded_one() -> None:
    recorded = json.loads((EXPECTED / "openai-chat.json").read_bytes())
    assert result(*ANSWER).to_chat_completion() == recorded


def test_reasoning_is_left_out_when_not_wanted_or_not_safe() -> None:
    for view in (options(reasoning=False), options(safe=True)):
        message = result(*ANSWER, view=view).to_chat_completion()["choices"][0]["message"]
        assert message == {"role": "assistant", "content": WHOLE_TEXT}


def test_tool_calls_of_a_completion_are_json_text_and_only_whole_ones() -> None:
    half = (ToolStart(call="x", name="f"), ToolDelta(call="x", text='{"a'))
    choice = result(*half, *TOOL).to_chat_completion()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert choice["message"]["tool_calls"] == [
        {
            "id": "call_1",
            "type": "function",
            "function": {"name": "get_weather", "arguments": '{"city":"Paris"}'},
        }
    ]


def test_a_completion_without_text_shows_the_data() -> None:
    made = result(Data(name="outputs", value={"n": 1}), STOP)
    assert made.to_chat_completion()["choices"][0]["message"]["content"] == '```json\n{\n  "n": 1\n}\n```'
    assert made.to_json()["text"] == ""


def test_refusals_have_their_field_and_are_text_in_the_safe_profile() -> None:
    refusal = TextDelta(block="t", text="no", refusal=True)
    message = result(refusal, STOP).to_chat_completion()["choices"][0]["message"]
    assert message == {"role": "assistant", "content": None, "refusal": "no"}
    safe = result(refusal, STOP, view=options(safe=True)).to_chat_completion()
    assert safe["choices"][0]["message"] == {"role": "assistant", "content": "no"}


def test_an_empty_answer_is_an_empty_string() -> None:
    hidden = result(ReasoningDelta(block="r", text="hm"), STOP, view=options(safe=True))
    assert hidden.to_chat_completion()["choices"][0]["message"]["content"] == ""


def test_a_failed_run_is_no_completion_but_a_status() -> None:
    with pytest.raises(RequestError) as refused:
        result(TextDelta(block="t", text="x"), RunFailed(code="timeout", message="m")).to_chat_completion()
    assert (refused.value.status, refused.value.code) == (504, "timeout")
