"""A run's events come to its text, outputs, usage and end."""

from __future__ import annotations

from shared.events import (
    Audio,
    Data,
    ReasoningDelta,
    RunCompleted,
    RunIds,
    RunStarted,
    TextDelta,
    TextReplace,
    ToolEnd,
    ToolResult,
    ToolStart,
    Usage,
)
from shared.summary import Summary


def summed(*events: object) -> Summary:
    total = Summary()
    for event in events:
        total.feed(event)  # type: ignore[arg-type]  # events of every class
    return total


def test_text_grows_and_may_be_asked_for_at_any_time() -> None:
    total = summed(TextDelta("t0", "a"), ReasoningDelta("r1", "r"), TextDelta("t2", "b"))
    assert (total.text, total.reasoning, total.end) == ("ab", "r", None)


def test_a_replacement_takes_all_text_back() -> None:
    total = summed(TextDelta("t0", "a"), TextReplace("t0", "x"), TextDelta("t0", "y"), TextReplace("t0", "z"))
    assert (total.text, total.before_replace) == ("z", "a")


def test_other_choices_and_refusals_are_not_the_text() -> None:
    total = summed(TextDelta("t0", "a"), TextDelta("t1", "b", choice=1), TextDelta("t2", "no", refusal=True))
    assert (total.text, total.refusal) == ("a", "no")


def test_a_new_attempt_starts_afresh() -> None:
    total = summed(
        TextDelta("t0", "old"), ToolStart("c", "f"), RunStarted(2, "1-5", "a"), TextDelta("t0", "new")
    )
    assert (total.text, total.tools) == ("new", {})


def test_tools_ids_usage_and_outputs_are_kept() -> None:
    total = summed(
        RunIds(conversation_id="c"),
        RunIds(message_id="m"),
        ToolStart("1", "f"),
        ToolEnd("1", "f", {"a": 1}),
        ToolResult("1", "r"),
        ToolStart("2", "g"),
        Data("outputs", {"x": 1}),
        Data("other", 2),
        Usage(1, 2, 3),
        RunCompleted("stop"),
    )
    assert total.ids == RunIds(conversation_id="c", message_id="m")
    assert (total.tools["1"].arguments, total.tools["1"].result) == ({"a": 1}, "r")
    assert not total.tools["2"].complete
    assert (total.outputs, total.usage, total.end) == ({"x": 1}, Usage(1, 2, 3), RunCompleted("stop"))


def test_audio_is_counted_and_hashed_not_kept() -> None:
    total = summed(
        Audio("audio/mpeg", "YWI="), Audio("audio/mpeg", "Yw=="), Audio("audio/mpeg", "not base64")
    )
    assert total.audio_chunks == 3
    assert total.audio_sha256.startswith("ba7816bf8f01cfea")  # of "abc"
