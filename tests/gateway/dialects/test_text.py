"""`text/plain`: the text, and an aborted connection for what it cannot say."""

from __future__ import annotations

from gateway.dialects.base import Encoded, ViewOptions
from gateway.dialects.text import PlainText
from shared.cursor import Cursor
from shared.events import (
    Data,
    Event,
    Json,
    ReasoningDelta,
    RunCompleted,
    RunFailed,
    RunStopped,
    TextDelta,
    TextReplace,
)
from shared.stream_log import Entry
from tests.gateway.dialects.log import body, told

DONE = RunCompleted(finish_reason="stop")
FAILED = RunFailed(code="interrupted", message="gone", retryable=True)


def text(value: str) -> TextDelta:
    return TextDelta(block="t", text=value)


def plain(*events: Event) -> Encoded:
    return told(PlainText(ViewOptions()), *events)


def test_only_text_is_sent() -> None:
    assert plain(ReasoningDelta(block="r", text="hm"), text("It is "), text("18 °C"), DONE) == Encoded(
        [b"It is ", "18 °C".encode()], ends=True
    )


def test_a_replacement_that_extends_what_was_sent_sends_the_rest() -> None:
    encoded = plain(text("Hello"), TextReplace(block="t", text="Hello, world"), text("!"), DONE)
    assert b"".join(encoded.frames) == b"Hello, world!"
    assert encoded.ends


def test_a_replacement_before_any_text_is_the_text() -> None:
    assert body(PlainText(ViewOptions()), TextReplace(block="t", text="new"), DONE) == b"new"


def test_a_replacement_that_takes_text_back_breaks_off() -> None:
    assert plain(text("secret"), TextReplace(block="t", text="***"), DONE).aborts


def test_a_failure_breaks_off_and_is_told_while_nothing_was_shown() -> None:
    assert plain(text("half"), FAILED) == Encoded([b"half"], aborts=True)
    assert plain(FAILED) == Encoded([], aborts=True, failure=FAILED)


def test_a_stopped_run_ends_in_order() -> None:
    assert plain(text("half"), RunStopped(by="client")) == Encoded([b"half"], ends=True)


def test_a_reset_breaks_off() -> None:
    assert PlainText(ViewOptions()).reset("attempt") == Encoded(aborts=True)


def test_unknown_events_are_passed_over() -> None:
    assert PlainText(ViewOptions()).encode(Entry(Cursor(7, 1), "novel.kind", b"{}")) == Encoded()


def test_a_run_without_text_is_shown_by_its_data() -> None:
    string = Data(name="outputs", value="only this")
    assert body(PlainText(ViewOptions()), string, DONE) == b"only this"
    value = Data(name="outputs", value={"result": 1, "ok": True})
    fenced = b'```json\n{\n  "result": 1,\n  "ok": true\n}\n```'
    assert body(PlainText(ViewOptions()), value, DONE) == fenced
    assert body(PlainText(ViewOptions()), value, RunStopped(by="client")) == fenced
    assert plain(value, FAILED).aborts


def test_several_values_are_shown_under_their_names() -> None:
    events = (Data(name="a", value=1), Data(name="b", value="x"), DONE)
    assert body(PlainText(ViewOptions()), *events) == b'```json\n{\n  "a": 1,\n  "b": "x"\n}\n```'


def test_the_outputs_of_the_end_stand_in_for_missing_data() -> None:
    end = RunCompleted(finish_reason="stop", outputs={"x": "a ``` b"})
    assert body(PlainText(ViewOptions()), end) == b'````json\n{\n  "x": "a ``` b"\n}\n````'


def test_data_is_not_shown_beside_text() -> None:
    assert body(PlainText(ViewOptions()), Data(name="o", value={"x": 1}), text("answer"), DONE) == b"answer"


def test_an_agent_may_name_the_field_that_holds_the_text() -> None:
    def summary(value: Json) -> Json:
        return value.get("summary")

    named = ViewOptions(text=summary)
    assert body(PlainText(named), Data(name="o", value={"summary": "short", "n": 2}), DONE) == b"short"
    assert body(PlainText(named), Data(name="o", value={"n": 2}), DONE) == b'```json\n{\n  "n": 2\n}\n```'
