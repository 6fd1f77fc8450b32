"""What Dify does beyond the recorded transcripts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.adapter import Replay
from shared.config import DifyAgent
from shared.errors import AgentError, AgentProtocolError, AgentRejected, AgentTruncated, AgentUnavailable
from shared.events import Audio, Data, Event, File, RunCompleted, RunFailed, RunStopped, Step, Usage, dump
from shared.requests import Message, RunRequest
from shared.sse import ServerSentEvent
from shared.summary import Summary
from workers.dialects import AGENT_DIALECTS
from workers.dialects.base import AgentDialect


def make(dialect: str = "dify-chat", **options: Any) -> AgentDialect:
    fields = {"dialect": dialect, "url": "http://dify/v1", "api_key": "app-canary", **options}
    return AGENT_DIALECTS[dialect](DifyAgent.model_validate(fields))


def frame(event: str, **fields: Any) -> ServerSentEvent:
    return ServerSentEvent(json.dumps({"event": event, **fields}).encode())


def play(
    *frames: ServerSentEvent, dialect: str = "dify-chat"
) -> tuple[list[Event], Summary, AgentError | None]:
    replay = Replay(make(dialect))
    events, total = list(replay.events(iter(frames))), Summary()
    for event in events:
        total.feed(event)
        dump(event)
    return events, total, replay.error


END = frame("message_end", metadata={})


def message(text: str | None) -> ServerSentEvent:
    return frame("message", answer=text)


def test_text_behind_the_end_is_ignored_and_audio_and_outputs_are_not() -> None:
    events, total, _ = play(
        message("a"),
        END,
        message("late"),
        frame("reasoning_chunk", data={"reasoning": "late"}),
        frame("tts_message", audio="AAAA"),
        frame("workflow_finished", data={"status": "succeeded", "outputs": {"x": 1}}),
    )
    assert (total.text, total.reasoning, total.outputs) == ("a", "", {"x": 1})
    assert any(isinstance(event, Audio) for event in events)
    assert isinstance(events[-1], RunCompleted)
    assert (events[-1].outputs, events[-1].finish_reason_raw) == ({"x": 1}, "succeeded")


def test_moderation_behind_the_end_still_takes_the_text_back() -> None:
    _, total, _ = play(message("secret"), END, frame("message_replace", answer="[removed]"))
    assert (total.text, total.before_replace) == ("[removed]", "secret")


def test_text_goes_on_behind_a_replacement() -> None:
    _, total, _ = play(message("bad"), frame("message_replace", answer="good"), message(" more"), END)
    assert total.text == "good more"


def test_text_replace_of_a_workflow_replaces() -> None:
    _, total, _ = play(
        frame("text_chunk", data={"text": "bad"}),
        frame("text_replace", data={"text": "good"}),
        frame("workflow_finished", data={"status": "succeeded", "outputs": {}}),
        dialect="dify-workflow",
    )
    assert (total.text, total.outputs) == ("good", {})


@pytest.mark.parametrize(
    ("closing", "text", "replaced"),
    [("Hello there", "Hello there", False), ("Hello there!", "Hello there!", False), ("Bye", "Bye", True)],
)
def test_the_closing_message_of_an_agent_is_the_whole_answer(closing: str, text: str, replaced: bool) -> None:
    parts = [frame("agent_message", answer=part) for part in ("Hello", " there")]
    events, total, _ = play(*parts, message(closing), END)
    assert total.text == text
    assert any(event.type == "text.replace" for event in events) is replaced


def test_an_empty_or_missing_answer_is_nothing() -> None:
    events, _, error = play(message(""), message(None), frame("message"), END)
    assert error is None
    assert [event.type for event in events] == ["run.completed"]


def test_pings_and_unknown_events_are_passed_over() -> None:
    events, _, error = play(frame("ping"), frame("something_new", data={"x": [1]}), ServerSentEvent(b""), END)
    assert ([event.type for event in events], error) == (["run.completed"], None)


def test_several_tools_of_one_thought_are_told_apart() -> None:
    state = {"id": "t1", "position": 1, "thought": "x", "tool": "a;b"}
    inputs = json.dumps({"a": {"x": 1}, "b": {"y": 2}})
    _, total, _ = play(
        frame("agent_thought", **state, tool_input="", observation=""),
        frame("agent_thought", **state, tool_input=inputs, observation=""),
        frame("agent_thought", **state, tool_input=inputs, observation=json.dumps({"a": "ra", "b": "rb"})),
        frame("agent_thought", **state, tool_input=inputs, observation=json.dumps({"a": "ra", "b": "rb"})),
        END,
    )
    assert [(call.name, call.arguments, call.result) for call in total.tools.values()] == [
        ("a", {"x": 1}, "ra"),
        ("b", {"y": 2}, "rb"),
    ]


def test_tool_texts_that_are_not_json_stay_text() -> None:
    state = {"id": "t1", "tool": "a", "tool_input": "not json", "observation": "plain"}
    _, total, _ = play(frame("agent_thought", **state), END)
    assert [(call.arguments, call.result) for call in total.tools.values()] == [("not json", "plain")]


def test_a_call_whose_arguments_never_came_is_not_complete() -> None:
    _, total, _ = play(frame("agent_thought", id="t1", tool="a", tool_input="", observation=""), END)
    assert [call.complete for call in total.tools.values()] == [False]


def test_steps_tell_the_progress_of_a_workflow() -> None:
    node = {"node_id": "n1", "title": "Fetch"}
    events, _, _ = play(
        frame("node_started", data=node),
        frame("node_retry", data={**node, "error": "502", "retry_index": 1, "status": "retry"}),
        frame("node_finished", data={**node, "status": "failed", "error": "at http://10.0.0.1/x"}),
        frame("loop_next", data={"node_id": "l", "title": "Loop", "index": 1}),
        frame("agent_log", data={"id": "g", "label": "Think", "status": "success"}),
        END,
    )
    assert [event for event in events if isinstance(event, Step)] == [
        Step("n1", "started", "Fetch"),
        Step("n1", "started", "Fetch", "retry 1: 502"),
        Step("n1", "failed", "Fetch", "at [address]"),
        Step("l", "started", "Loop", "round 2"),
        Step("g", "finished", "Think"),
    ]


def test_a_file_that_is_told_twice_is_given_once() -> None:
    file = {"id": "f1", "type": "image", "url": "http://files/1"}
    end = frame("message_end", metadata={}, files=[{**file, "related_id": "f1", "filename": "1.png"}])
    events, _, _ = play(frame("message_file", **file, belongs_to="assistant"), end)
    assert [event.id for event in events if isinstance(event, File)] == ["f1"]
    events, _, _ = play(frame("message_file", **file, belongs_to="user"), END)
    assert not any(isinstance(event, File) for event in events)


def test_total_tokens_of_a_workflow_do_not_overwrite_the_detailed_usage() -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    finished = frame("workflow_finished", data={"status": "succeeded", "outputs": None, "total_tokens": 3})
    for order in ([frame("message_end", metadata={"usage": usage}), finished],):
        _, total, _ = play(message("a"), *order)
        assert total.usage == Usage(1, 2, 3)
    _, total, _ = play(message("a"), finished, frame("message_end", metadata={"usage": usage}))
    assert total.usage == Usage(1, 2, 3)


def test_the_first_of_two_failures_counts() -> None:
    finished = frame(
        "workflow_finished", data={"status": "failed", "error": "division by zero", "total_tokens": 1}
    )
    events, _, error = play(
        finished, frame("error", code="internal_server_error", status=500, message="oops")
    )
    assert (str(error), error and error.agent_code) == ("division by zero", "workflow_failed")
    assert [event.type for event in events] == ["usage", "run.failed"]


def test_a_failed_status_behind_the_end_fails_the_run() -> None:
    events, _, _ = play(
        message("a"), END, frame("workflow_finished", data={"status": "failed", "error": "x"})
    )
    assert isinstance(events[-1], RunFailed)


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"status": 400, "code": "invalid_param", "message": "m"}, AgentRejected),
        ({"status": 429, "code": "too_many_requests", "message": "m"}, AgentUnavailable),
        ({"status": 429, "code": "rate_limit_error", "message": "m"}, AgentRejected),
        ({"status": 500, "code": "internal_server_error", "message": "m"}, AgentError),
        ({}, AgentError),
        ({"message": {"odd": 1}, "status": "x", "task_id": 7, "files": "x", "metadata": "y"}, AgentError),
    ],
)
def test_an_error_event_says_whether_it_may_be_repeated(
    fields: dict[str, Any], kind: type[AgentError]
) -> None:
    _, _, error = play(message("a"), frame("error", **fields))
    assert type(error) is kind


def test_a_stopped_workflow_is_stopped_by_the_agent() -> None:
    events, _, _ = play(frame("workflow_finished", data={"status": "stopped", "error": "aborted"}))
    assert events[-1] == RunStopped("agent", "aborted")


def test_no_end_is_truncation() -> None:
    assert isinstance(play(message("a"))[2], AgentTruncated)
    assert isinstance(
        play(frame("workflow_started", workflow_run_id="w"), dialect="dify-workflow")[2], AgentTruncated
    )


@pytest.mark.parametrize(
    "value",
    [
        [],
        "x",
        None,
        {"event": "message", "answer": {"a": 1}},
        {"event": "text_chunk", "data": "x"},
        {"event": "node_started", "data": None},
        {"event": "workflow_finished"},
        {"event": "message_end", "metadata": 3},
        {"event": "agent_thought"},
        {"event": "human_input_required", "data": []},
        {"event": 3},
        {"event": "message", "task_id": 3},
    ],
)
def test_a_malformed_frame_is_a_protocol_error(value: Any) -> None:
    with pytest.raises(AgentProtocolError):
        list(make().map(ServerSentEvent(json.dumps(value).encode())))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["data", "answer", "metadata", "usage", "files", "status", "outputs", "id", "tool", "thought"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)
EVENTS = st.sampled_from(
    [
        "message",
        "agent_message",
        "agent_thought",
        "message_end",
        "workflow_finished",
        "error",
        "text_chunk",
        "node_finished",
    ]
)


@given(st.lists(st.tuples(EVENTS, JSON), max_size=5))
def test_whatever_json_comes_is_events_or_an_agent_error(values: list[tuple[str, Any]]) -> None:
    dialect = make()
    for event, fields in values:
        body = {**fields, "event": event} if isinstance(fields, dict) else fields
        try:
            for made in dialect.map(ServerSentEvent(json.dumps(body).encode())):
                dump(made)
        except AgentError:
            return


# Requests


TURNS = (
    Message("system", "Be brief."),
    Message("user", "One?"),
    Message("assistant", "1"),
    Message("user", "Two?"),
)


def body_of(dialect: str, run: RunRequest, **options: Any) -> Any:
    return make(dialect, **options).request(run).body


def test_a_known_conversation_gets_the_last_message_only() -> None:
    run = RunRequest(TURNS, user="u1", metadata={"agent_conversation": "conv-1"})
    assert body_of("dify-chat", run) == {
        "query": "Be brief.\n\nTwo?",
        "inputs": {},
        "conversation_id": "conv-1",
        "response_mode": "streaming",
        "user": "u1",
    }


def test_without_one_earlier_turns_stand_in_front() -> None:
    body = body_of("dify-chat", RunRequest(TURNS))
    assert body["query"] == "Be brief.\n\nuser: One?\nassistant: 1\n\nTwo?"
    assert (body["conversation_id"], body["user"]) == ("", "streaming-bff")


def test_transcript_sends_every_turn_and_no_conversation() -> None:
    run = RunRequest(TURNS, metadata={"agent_conversation": "conv-1"})
    body = body_of("dify-chat", run, history="transcript")
    assert (body["conversation_id"], body["query"]) == ("", "Be brief.\n\nuser: One?\nassistant: 1\n\nTwo?")


def test_a_single_message_is_sent_as_it_is() -> None:
    assert body_of("dify-chat", RunRequest((Message("user", "Hi"),)))["query"] == "Hi"


def test_turns_behind_the_last_user_message_are_not_lost() -> None:
    run = RunRequest((Message("user", "Hi"), Message("tool", "42")))
    assert body_of("dify-chat", run)["query"] == "Hi\n\ntool: 42"


@pytest.mark.parametrize(
    ("dialect", "path"), [("dify-completion", "/completion-messages"), ("dify-workflow", "/workflows/run")]
)
def test_named_inputs_take_the_text(dialect: str, path: str) -> None:
    run = RunRequest((Message("user", "Hi"),), {"lang": "de"})
    request = make(dialect, input_name="text", body={"inputs": {"lang": "en", "tone": "dry"}}).request(run)
    assert request.url == "http://dify/v1" + path
    assert request.body["inputs"] == {"lang": "de", "tone": "dry", "text": "Hi"}
    assert body_of(dialect, RunRequest(inputs={"query": "given"}))["inputs"] == {"query": "given"}
    assert request.headers["Authorization"] == "Bearer app-canary"


def test_files_and_images_by_address_are_passed_on() -> None:
    part = {"type": "image_url", "image_url": {"url": "https://x/i.png"}}
    run = RunRequest(
        (Message("user", [{"type": "text", "text": "see"}, part]),), files=({"type": "document"},)
    )
    body = body_of("dify-chat", run)
    assert body["query"] == "see"
    assert body["files"] == [
        {"type": "document"},
        {"type": "image", "transfer_method": "remote_url", "url": "https://x/i.png"},
    ]


@pytest.mark.parametrize(
    ("dialect", "path"),
    [
        ("dify-completion", "/completion-messages/t1/stop"),
        ("dify-chat", "/chat-messages/t1/stop"),
        ("dify-workflow", "/workflows/tasks/t1/stop"),
    ],
)
def test_stop_goes_to_the_task_with_the_same_user(dialect: str, path: str) -> None:
    made = make(dialect)
    made.request(RunRequest((Message("user", "Hi"),), user="u9"))
    assert made.stop_request() is None
    list(made.map(frame("message", answer="a", task_id="t1")))
    with pytest.raises(AgentError):
        list(made.map(frame("error", message="no task id here")))
    request = made.stop_request()
    assert request is not None
    assert (request.url, request.body) == ("http://dify/v1" + path, {"user": "u9"})


def test_outputs_of_hundreds_of_kilobytes_pass_whole() -> None:
    outputs = {"text": "x" * 400_000}
    events, _, _ = play(frame("workflow_finished", data={"status": "succeeded", "outputs": outputs}))
    assert Data("outputs", outputs) in events
