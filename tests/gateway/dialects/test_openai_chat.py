"""The OpenAI chat stream: the recorded forms byte for byte, and each rule that its readers need."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.dialects.base import Encoded, ViewOptions
from gateway.dialects.openai_chat import OpenAIChat
from shared.cursor import Cursor
from shared.events import (
    Data,
    Event,
    FinishReason,
    Json,
    RunCompleted,
    RunFailed,
    RunQueued,
    RunStopped,
    Step,
    TextDelta,
    TextReplace,
    ToolEnd,
    ToolStart,
    Usage,
)
from shared.stream_log import Entry
from tests.gateway.dialects.conversations import ANSWER, EXPECTED, FAILED, TOOL, WHOLE_TEXT, options
from tests.gateway.dialects.log import body, entries, told

STOP = RunCompleted(finish_reason="stop")


def chunks(view: ViewOptions, *events: Event) -> list[Any]:
    """The JSON of each frame; [DONE] as a string."""
    frames = told(OpenAIChat(view), *events).frames
    texts = [frame.removeprefix(b"data: ").decode() for frame in frames]
    return [text.strip() if "[DONE]" in text else json.loads(text) for text in texts]


def deltas(*events: Event) -> list[dict[str, Json]]:
    """The deltas between the role chunk and the finish chunk."""
    told_chunks = [chunk for chunk in chunks(options(), *events) if isinstance(chunk, dict)]
    return [chunk["choices"][0]["delta"] for chunk in told_chunks if chunk.get("choices")][1:-1]


def text(value: str, **more: Any) -> TextDelta:
    return TextDelta(block="t1", text=value, **more)


@pytest.mark.parametrize(
    ("name", "view", "events"),
    [
        ("openai-chat", options(), ANSWER),
        ("openai-chat-usage", options(usage=True), ANSWER),
        ("openai-chat-safe", options(safe=True, usage=True), ANSWER),
        ("openai-chat-tool", options(), TOOL),
        ("openai-chat-error", options(), FAILED),
    ],
)
def test_the_recorded_forms_come_out_byte_for_byte(
    name: str, view: ViewOptions, events: tuple[Event, ...]
) -> None:
    recorded = (EXPECTED / f"{name}.sse").read_bytes().replace(b": keep-alive\n\n", b"")
    # Our role chunk is sent before anything is known, so its content is "" for tool calls as well.
    recorded = recorded.replace(b'"role":"assistant","content":null', b'"role":"assistant","content":""')
    assert body(OpenAIChat(view), *events) == recorded


@pytest.mark.parametrize("safe", [False, True])
def test_only_data_lines_are_ever_sent(safe: bool) -> None:
    dialect = OpenAIChat(options(safe=safe))
    whole = body(OpenAIChat(options(safe=safe)), *ANSWER) + dialect.heartbeat()
    whole += b"".join(dialect.reset("attempt").frames)
    assert all(line.startswith(b"data: ") for line in whole.split(b"\n") if line)


def test_only_the_first_chunk_has_a_role_and_all_have_one_id_and_time() -> None:
    sent = [*chunks(options(), *ANSWER)[:-1], json.loads(OpenAIChat(options()).heartbeat()[6:])]
    assert [("role" in chunk["choices"][0]["delta"]) for chunk in sent] == [True] + [False] * (len(sent) - 1)
    assert {(chunk["id"], chunk["created"]) for chunk in sent} == {("chatcmpl-run_01KAQ7", 1795360000)}


def test_the_role_chunk_belongs_to_the_first_event_so_that_all_viewers_share_it() -> None:
    dialect = OpenAIChat(options())
    accepted, started = entries()
    assert dialect.encode(accepted) == Encoded((dialect.opening,))
    assert dialect.encode(started) == Encoded()


def test_a_heartbeat_is_an_empty_delta() -> None:
    assert json.loads(OpenAIChat(options()).heartbeat()[6:])["choices"] == [
        {"index": 0, "delta": {}, "finish_reason": None}
    ]


def test_reasoning_is_left_out_when_not_wanted() -> None:
    assert b"reasoning" not in body(OpenAIChat(options(reasoning=False)), *ANSWER)


def test_usage_is_sent_only_when_asked_for_and_told() -> None:
    assert chunks(options(usage=True), text("x"), STOP)[-2]["choices"] != []
    told_before = (Usage(input_tokens=3, output_tokens=2, reasoning_tokens=1), STOP)
    assert chunks(options(usage=True), *told_before)[-2] | {"id": 0, "model": 0} == {
        "id": 0,
        "object": "chat.completion.chunk",
        "created": 1795360000,
        "model": 0,
        "choices": [],
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 2,
            "total_tokens": 5,
            "completion_tokens_details": {"reasoning_tokens": 1},
        },
    }


def test_tool_calls_are_counted_and_arguments_without_fragments_come_whole() -> None:
    sent = deltas(
        ToolStart(call="a", name="f"),
        ToolEnd(call="a", name="f", arguments={"x": 1}),
        ToolEnd(call="b", name="g", arguments={}),
        RunCompleted(finish_reason="tool_calls"),
    )
    calls = [delta["tool_calls"][0] for delta in sent]
    assert calls == [
        {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"x":1}'}},
        {"index": 1, "id": "b", "type": "function", "function": {"name": "g", "arguments": ""}},
        {"index": 1, "function": {"arguments": "{}"}},
    ]


def test_a_refusal_has_its_own_field_but_is_text_for_readers_that_do_not_know_it() -> None:
    refusal = text("I cannot.", refusal=True)
    assert deltas(refusal, STOP) == [{"refusal": "I cannot."}]
    safe = chunks(options(safe=True), refusal, STOP)
    assert safe[1]["choices"][0]["delta"] == {"content": "I cannot."}


def test_the_second_choice_keeps_its_index() -> None:
    assert chunks(options(), text("x", choice=1), STOP)[1]["choices"][0]["index"] == 1


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("tool_calls", "tool_calls"),
        ("content_filter", "content_filter"),
        ("paused", "stop"),
        ("cancelled", "stop"),
        ("error", "stop"),
    ],
)
def test_finish_reasons_without_a_name_are_stop(ours: FinishReason, theirs: str) -> None:
    finish = chunks(options(), text("x"), RunCompleted(finish_reason=ours))[-2]
    assert finish["choices"][0] == {"index": 0, "delta": {}, "finish_reason": theirs}


def test_steps_and_queueing_are_not_shown() -> None:
    silent = (RunQueued(position=3), Step(name="node", status="started"))
    assert body(OpenAIChat(options()), *silent, *ANSWER) == body(OpenAIChat(options()), *ANSWER)


def test_unknown_events_are_passed_over() -> None:
    assert OpenAIChat(options()).encode(Entry(Cursor(7, 1), "novel.kind", b"{}")) == Encoded()


def test_a_workflow_is_shown_by_its_data_before_the_finish() -> None:
    sent = deltas(Data(name="outputs", value={"n": 1}), STOP)
    assert sent == [{"content": '```json\n{\n  "n": 1\n}\n```'}]
    assert deltas(Data(name="outputs", value="plain"), STOP) == [{"content": "plain"}]
    assert deltas(Data(name="outputs", value="plain"), text("answer"), STOP) == [{"content": "answer"}]


def test_a_replacement_that_extends_what_was_sent_sends_the_rest() -> None:
    sent = deltas(text("Hel"), TextReplace(block="t1", text="Hello"), text("!"), STOP)
    assert [delta["content"] for delta in sent] == ["Hel", "lo", "!"]
    assert deltas(text("same"), TextReplace(block="t1", text="same"), STOP) == [{"content": "same"}]


def test_a_replacement_that_takes_text_back_ends_with_content_filter() -> None:
    encoded = told(OpenAIChat(options()), text("secret"), TextReplace(block="t1", text="***"), STOP)
    assert encoded.ends
    sent = chunks(options(), text("secret"), TextReplace(block="t1", text="***"), STOP)
    assert sent[-2]["choices"][0]["finish_reason"] == "content_filter"
    assert sent[-1] == "[DONE]"
    assert "***" not in json.dumps(sent)


def test_a_stopped_run_ends_with_stop() -> None:
    sent = chunks(options(), text("half"), RunStopped(by="client"))
    assert sent[-2]["choices"][0]["finish_reason"] == "stop"
    assert sent[-1] == "[DONE]"


def test_a_failure_before_anything_was_shown_is_told_for_a_real_status() -> None:
    failed = RunFailed(code="timeout", message="silent", retryable=True)
    encoded = told(OpenAIChat(options()), failed)
    assert encoded.failure == failed
    assert told(OpenAIChat(options()), text("x"), failed).failure is None
    error = json.loads(encoded.frames[-2][6:])
    assert error == {
        "error": {"message": "silent", "type": "upstream_error", "param": None, "code": "timeout"}
    }


def test_a_reset_is_an_error_and_the_end() -> None:
    encoded = OpenAIChat(options()).reset("attempt")
    assert encoded.ends
    assert json.loads(encoded.frames[0][6:])["error"]["code"] == "interrupted"
    assert encoded.frames[-1] == b"data: [DONE]\n\n"


def test_the_safe_profile_shows_a_failure_as_text_and_says_that_the_answer_is_not_whole() -> None:
    sent = chunks(options(safe=True), *FAILED)
    assert sent[-3]["choices"][0]["delta"] == {"content": "\n\n[upstream agent failed]"}
    assert sent[-2]["choices"][0]["finish_reason"] == "length"
    assert sent[-1] == "[DONE]"


def test_text_survives() -> None:
    odd = '0 \u2028\u0085\r\n\t"\\ 🌦' + "x" * 200_000
    assert deltas(text(odd), text(" "), text("0"), text(""), STOP) == [
        {"content": odd},
        {"content": " "},
        {"content": "0"},
    ]
    assert b"\r" not in body(OpenAIChat(options()), text(odd), STOP)


def test_the_whole_text_is_in_the_deltas() -> None:
    assert "".join(delta.get("content") or "" for delta in deltas(*ANSWER)) == WHOLE_TEXT
