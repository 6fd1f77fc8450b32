"""What look-alikes of Chat Completions do, beyond the recorded transcripts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from cli.adapter import Replay
from shared.config import OpenAIChatAgent
from shared.errors import (
    AgentError,
    AgentProtocolError,
    AgentRejected,
    AgentTruncated,
    AgentUnavailable,
)
from shared.events import (
    Event,
    RunCompleted,
    RunFailed,
    Source,
    TextDelta,
    ToolEnd,
    ToolStart,
    Usage,
    dump,
)
from shared.requests import Message, RunRequest
from shared.sse import ServerSentEvent
from shared.summary import Summary
from workers.dialects.openai_chat import OpenAIChat

DONE = ServerSentEvent(b"[DONE]")


def config(**options: Any) -> OpenAIChatAgent:
    return OpenAIChatAgent.model_validate(
        {"dialect": "openai-chat", "url": "http://agent/v1", "model": "m", **options}
    )


def chunk(delta: Any = None, finish: Any = None, **more: Any) -> ServerSentEvent:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return ServerSentEvent(json.dumps({"id": "c1", "model": "m1", "choices": [choice], **more}).encode())


def raw(**fields: Any) -> ServerSentEvent:
    return ServerSentEvent(json.dumps(fields).encode())


def play(*frames: ServerSentEvent, **options: Any) -> tuple[list[Event], Summary, AgentError | None]:
    replay = Replay(OpenAIChat(config(**options)))
    events, total = list(replay.events(iter(frames))), Summary()
    for event in events:
        total.feed(event)
        dump(event)
    return events, total, replay.error


def tool(**fragment: Any) -> ServerSentEvent:
    return chunk({"tool_calls": [fragment]})


@pytest.mark.parametrize("finish", ["", None])
def test_an_empty_finish_reason_is_none(finish: str | None) -> None:
    _, total, error = play(chunk({"content": "a"}, finish), chunk({"content": "b"}, "stop"), DONE)
    assert (total.text, error) == ("ab", None)


def test_text_counts_by_type_not_by_truth() -> None:
    _, total, _ = play(*(chunk({"content": text}) for text in ("0", "", "\n", " ", "\u2028", "\x85")), DONE)
    assert total.text == "0\n \u2028\x85"


def test_content_may_be_a_list_of_parts() -> None:
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
        {"type": "text", "text": "a"},
        {"type": "text", "text": "b"},
        {"type": "image_url", "image_url": {"url": "x"}},
    ]
    _, total, _ = play(chunk({"content": parts}), DONE)
    assert (total.text, total.reasoning) == ("ab", "hm")


def test_done_alone_completes_and_closes() -> None:
    dialect = OpenAIChat(config())
    assert list(dialect.map(chunk({"content": "a"})))
    assert list(dialect.map(DONE))
    assert (dialect.complete, dialect.closed) == (True, True)
    assert list(dialect.map(chunk({"content": "late"}))) == []


def test_a_finish_reason_alone_completes_but_does_not_close() -> None:
    dialect = OpenAIChat(config())
    list(dialect.map(chunk({"content": "a"}, "stop")))
    assert (dialect.complete, dialect.closed) == (True, False)


def test_text_behind_the_end_is_ignored_and_usage_is_not() -> None:
    late = chunk({"content": "late", "reasoning": "late", "tool_calls": [{"index": 0, "id": "x"}]}, "length")
    usage = raw(id="c1", choices=[], usage={"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3})
    events, total, _ = play(chunk({"content": "a"}, "stop"), late, usage, DONE)
    assert (total.text, total.reasoning, total.usage) == ("a", "", Usage(1, 2, 3))
    assert isinstance(events[-1], RunCompleted)
    assert events[-1].finish_reason == "stop"


@pytest.mark.parametrize(
    "frame",
    [
        chunk({}, "stop", usage={"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11}),
        chunk({}, "stop", x_groq={"usage": {"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11}}),
        raw(
            choices=[
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "usage": {"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11},
                }
            ]
        ),
    ],
)
def test_usage_is_found_in_every_place_and_told_once(frame: ServerSentEvent) -> None:
    events, _, _ = play(chunk({"content": "a"}), frame, frame, DONE)
    assert [event for event in events if isinstance(event, Usage)] == [Usage(5, 6, 11)]


def test_running_usage_is_told_once() -> None:
    frames = [chunk({"content": "a"}, usage={"completion_tokens": count}) for count in range(1, 5)]
    events, _, _ = play(*frames, DONE)
    assert [event for event in events if isinstance(event, Usage)] == [Usage(output_tokens=4)]


@pytest.mark.parametrize(
    "usage", [None, {}, "", [], {"prompt_tokens": None}, {"prompt_tokens": "7"}, {"prompt_tokens": -1}]
)
def test_usage_without_numbers_is_no_usage(usage: Any) -> None:
    events, _, error = play(chunk({"content": "a"}, "stop", usage=usage), DONE)
    assert error is None
    assert not any(isinstance(event, Usage) for event in events)


def test_usage_comes_before_an_error() -> None:
    events, total, error = play(
        chunk({"content": "a"}, usage={"total_tokens": 9}), raw(error={"message": "out", "code": "x"})
    )
    assert [event.type for event in events[-3:]] == ["text.end", "usage", "run.failed"]
    assert (total.text, error and error.agent_code) == ("a", "x")


@pytest.mark.parametrize(
    ("frame", "kind", "message"),
    [
        (raw(error={"message": "m", "code": 429}), AgentUnavailable, "m"),
        (raw(error={"message": "m", "type": "overloaded_error"}), AgentUnavailable, "m"),
        (raw(error="plain words"), AgentError, "plain words"),
        (raw(object="error", message="m", code=400), AgentRejected, "m"),
        (raw(error={"message": "m", "code": "insufficient_quota"}), AgentRejected, "m"),
        (raw(error={}, object="error"), AgentError, "the agent reported an error"),
        (ServerSentEvent(b'{"message": "m"}', "error"), AgentError, "m"),
        (chunk({}, "error"), AgentError, "the agent reported an error"),
    ],
)
def test_errors_within_the_stream(frame: ServerSentEvent, kind: type[AgentError], message: str) -> None:
    _, _, error = play(frame, DONE)
    assert (type(error), str(error)) == (kind, message)


def test_an_error_null_on_every_chunk_is_none() -> None:
    assert play(chunk({"content": "a"}, error=None), DONE)[2] is None


def test_an_error_behind_the_finish_reason_still_fails_the_run() -> None:
    events, _, _ = play(chunk({"content": "a"}, "stop"), raw(error={"message": "m"}))
    assert isinstance(events[-1], RunFailed)


def test_keys_addresses_and_length_are_cut_from_error_texts() -> None:
    said = "Incorrect sk-proj-abcdef123456 Bearer eyJhbGciOiJIUzI1NiJ9 at http://10.1.1.1/x \x00" + "y" * 9000
    _, _, error = play(raw(error={"message": said}))
    text = str(error)
    assert len(text) <= 500
    assert not any(secret in text for secret in ("abcdef", "eyJ", "10.1.1.1", "\x00"))


def test_no_end_marker_is_truncation() -> None:
    assert isinstance(play(chunk({"content": "a"}))[2], AgentTruncated)
    assert isinstance(play()[2], AgentTruncated)


def test_tool_calls_merge_by_index() -> None:
    _, total, _ = play(
        tool(index=1, id="b", function={"name": "g", "arguments": ""}),
        tool(index=0, id="a", function={"name": "f", "arguments": '{"x"'}),
        tool(index=0, function={"arguments": ":1}"}),
        chunk({}, "tool_calls"),
        DONE,
    )
    assert [(call.id, call.name, call.arguments) for call in total.tools.values()] == [
        ("b", "g", {}),
        ("a", "f", {"x": 1}),
    ]


def test_tool_calls_without_index_begin_with_an_id_or_a_name() -> None:
    _, total, _ = play(
        tool(id="a", function={"name": "f", "arguments": '{"x":'}),
        tool(id="a", function={"arguments": "1}"}),
        tool(function={"name": "g", "arguments": "{}"}),
        tool(function={"name": "h", "arguments": {"y": 2}}),
        chunk({}, "tool_calls"),
        DONE,
    )
    assert [(call.name, call.arguments) for call in total.tools.values()] == [
        ("f", {"x": 1}),
        ("g", {}),
        ("h", {"y": 2}),
    ]


def test_calls_that_are_all_numbered_0_are_told_apart_by_id() -> None:
    _, total, _ = play(
        tool(index=0, id="a", function={"name": "f", "arguments": "{}"}),
        tool(index=0, id="b", function={"name": "g", "arguments": "{}"}),
        chunk({}, "tool_calls"),
    )
    assert list(total.tools) == ["a", "b"]


def test_a_call_that_was_cut_off_is_never_complete() -> None:
    events, _, _ = play(
        tool(index=0, id="a", function={"name": "f", "arguments": '{"x'}), chunk({}, "length"), DONE
    )
    assert any(isinstance(event, ToolStart) for event in events)
    assert not any(isinstance(event, ToolEnd) for event in events)
    events, _, _ = play(tool(index=0, id="a", function={"name": "f", "arguments": "{}"}))
    assert not any(isinstance(event, ToolEnd) for event in events)


def test_the_old_function_call_is_a_tool_call() -> None:
    _, total, _ = play(
        chunk({"function_call": {"name": "f", "arguments": '{"a":'}}),
        chunk({"function_call": {"arguments": "1}"}}),
        chunk({}, "function_call"),
    )
    assert [call.arguments for call in total.tools.values()] == [{"a": 1}]
    assert isinstance(total.end, RunCompleted)
    assert total.end.finish_reason == "tool_calls"


def test_choices_are_told_apart_by_their_index() -> None:
    frame = raw(
        choices=[{"index": 1, "delta": {"content": "one"}}, {"index": 0, "delta": {"content": "zero"}}]
    )
    events, total, _ = play(frame, DONE)
    assert {(event.choice, event.text) for event in events if isinstance(event, TextDelta)} == {
        (0, "zero"),
        (1, "one"),
    }
    assert total.text == "zero"


def test_citations_of_pages_are_sources() -> None:
    cited = {"type": "url_citation", "url_citation": {"url": "https://a.example", "title": "A"}}
    events, _, _ = play(chunk({"annotations": [cited]}), DONE)
    assert Source(title="A", url="https://a.example") in events


def half(text: str) -> ServerSentEvent:
    return ServerSentEvent(b'{"choices":[{"index":0,"delta":{"content":"%s"}}]}' % text.encode())


def test_halves_of_a_pair_are_joined_over_deltas() -> None:
    _, total, _ = play(half(r"a\ud83d"), half(r"\udc4bb"), DONE)
    assert total.text == "a\N{WAVING HAND SIGN}b"


def test_lone_halves_become_replacement_characters() -> None:
    _, total, _ = play(half(r"a\udc4b"), half(r"b\ud83d"), half("c"), half(r"\ud83d"), DONE)
    assert total.text == "a\ufffdb\ufffdc\ufffd"
    _, total, _ = play(half(r"a\ud83d"), chunk({"reasoning": "r"}), DONE)
    assert total.text == "a\ufffd"


def test_half_a_pair_anywhere_else_cannot_break_the_stream() -> None:
    frame = ServerSentEvent(rb'{"id":"\ud83d","model":"\udc4b","choices":[{"finish_reason":"\ud83d"}]}')
    events, _, error = play(frame, DONE)
    assert error is None
    assert all(dump(event) for event in events)


def test_invalid_utf_8_is_replaced() -> None:
    _, total, _ = play(ServerSentEvent(b'{"choices":[{"delta":{"content":"a\xff\xc3"}}]}'), DONE)
    assert total.text == "a\ufffd\ufffd"


@pytest.mark.parametrize(
    "data",
    [
        b"not json",
        b"null",
        b"[]",
        b"3",
        b'{"choices": 3}',
        b'{"choices": [3]}',
        b'{"choices": [null]}',
        b'{"choices": [{"delta": []}]}',
        b'{"choices": [{"delta": {"content": 3}}]}',
        b'{"choices": [{"delta": {"tool_calls": {"a": 1}}}]}',
        b'{"choices": [{"delta": {"tool_calls": [{"function": 3}]}}]}',
        b'{"choices": [{"finish_reason": {}}]}',
        b'{"id": 3}',
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": 1e999}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 5_000 + b"1" + b"}" * 5_000,
        b'{"usage":' + b"[" * 70 + b"]" * 70 + b"}",
        b"",
    ],
)
def test_a_malformed_frame_is_a_protocol_error(data: bytes) -> None:
    dialect = OpenAIChat(config())
    if data == b"":
        assert list(dialect.map(ServerSentEvent(data))) == []
        return
    with pytest.raises(AgentProtocolError):
        list(dialect.map(ServerSentEvent(data)))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "choices",
                    "delta",
                    "content",
                    "index",
                    "usage",
                    "error",
                    "tool_calls",
                    "function",
                    "finish_reason",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(st.lists(JSON, max_size=4))
def test_whatever_json_comes_is_events_or_an_agent_error(values: list[Any]) -> None:
    dialect = OpenAIChat(config(split_think=True))
    for value in values:
        try:
            for event in dialect.map(ServerSentEvent(json.dumps(value).encode())):
                dump(event)
        except AgentError:
            return


@given(
    st.lists(
        st.sampled_from(["<", "think", ">", "/", "a", " ", "\n", "<think>", "</think>", "</th"]), max_size=12
    )
)
def test_splitting_thoughts_does_not_depend_on_the_pieces(pieces: list[str]) -> None:
    def total_of(texts: list[str]) -> tuple[str, str]:
        _, total, _ = play(*(chunk({"content": text}) for text in texts), DONE, split_think=True)
        return total.text, total.reasoning

    whole = "".join(pieces)
    assert total_of(pieces) == total_of([whole]) == total_of(list(whole))


def test_only_a_tag_at_the_start_is_a_thought() -> None:
    _, total, _ = play(chunk({"content": "say <think>x</think>"}), DONE, split_think=True)
    assert (total.text, total.reasoning) == ("say <think>x</think>", "")
    _, total, _ = play(chunk({"content": "<think>never closed"}), DONE, split_think=True)
    assert (total.text, total.reasoning) == ("", "never closed")


def test_the_request_has_messages_parameters_and_the_key() -> None:
    run = RunRequest(
        (Message("system", "s"), Message("user", [{"type": "text", "text": "u"}])),
        user="u1",
        params={"temperature": 0.5, "n": 3, "model": "evil", "stream": False},
    )
    request = OpenAIChat(
        config(api_key=SecretStr("sk-canary"), body={"top_p": 1, "temperature": 0.1})
    ).request(run)
    assert request.url == "http://agent/v1/chat/completions"
    assert request.headers["Authorization"] == "Bearer sk-canary"
    assert request.body == {
        "temperature": 0.1,
        "top_p": 1,
        "user": "u1",
        "model": "m",
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": [{"type": "text", "text": "u"}]},
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert "canary" not in repr(request)


def test_an_azure_address_keeps_its_version() -> None:
    url = "https://x.openai.azure.com/openai/deployments/d?api-version=2024"
    dialect = OpenAIChat(config(url=url, usage=False, api_key="k", api_key_header="api-key"))
    request = dialect.request(RunRequest((Message("user", "u"),)))
    assert request.url == "https://x.openai.azure.com/openai/deployments/d/chat/completions?api-version=2024"
    assert request.headers["api-key"] == "k"
    assert "stream_options" not in request.body
