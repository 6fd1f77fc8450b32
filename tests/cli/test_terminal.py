"""What a person sees of a run: the answer on standard output, the rest beside it."""

from __future__ import annotations

import io
import json
from typing import Any

from cli.client import NativeEvent
from cli.terminal import JsonLines, Screen

COMPLETED = ("run.completed", {"finish_reason": "stop"})


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(*events: tuple[str, dict[str, Any]], tty: bool = False) -> tuple[str, str, int]:
    out, err = (Terminal(), Terminal()) if tty else (io.StringIO(), io.StringIO())
    screen = Screen(out, err)
    for number, (kind, data) in enumerate(events):
        screen.show(NativeEvent(f"5-{number}", kind, data))
    return out.getvalue(), err.getvalue(), screen.exit_code


def test_text_alone_is_on_standard_output() -> None:
    out, err, code = shown(
        ("reasoning.delta", {"block": "r", "text": "hm"}),
        ("step", {"name": "search", "status": "started"}),
        ("text.delta", {"block": "t", "text": "Hello "}),
        ("text.delta", {"block": "t", "text": "you"}),
        ("run.completed", {"finish_reason": "stop", "usage": {"input_tokens": 3, "output_tokens": 2}}),
    )
    assert out == "Hello you\n"
    assert err == "hm\nstarted: search\nstop, 3 input tokens, 2 output tokens\n"
    assert code == 0


def test_run_without_text_shows_its_data() -> None:
    out, _, _ = shown(("data", {"name": "outputs", "value": {"title": "Ship it"}}), COMPLETED)
    assert json.loads(out) == {"title": "Ship it"}


def test_data_beside_text_goes_beside_it() -> None:
    out, err, _ = shown(
        ("text.delta", {"block": "t", "text": "Done"}), ("data", {"name": "hits", "value": [1]}), COMPLETED
    )
    assert (out, err) == ("Done\n", "hits: [1]\nstop\n")


def test_failure_is_told_with_its_code_and_exits_1() -> None:
    out, err, code = shown(
        ("text.delta", {"block": "t", "text": "Hal"}),
        ("run.failed", {"code": "timeout", "message": "too slow"}),
    )
    assert (out, err, code) == ("Hal\n", "failed (timeout): too slow\n", 1)


def test_stopped_run_exits_1() -> None:
    assert shown(("run.stopped", {"by": "client"}))[1:] == ("stopped by client\n", 1)


def test_reset_says_that_what_was_shown_is_void() -> None:
    _, err, _ = shown(("text.delta", {"block": "t", "text": "old"}), ("reset", {"reason": "attempt"}))
    assert "void" in err


def test_reasoning_is_dimmed_on_a_terminal() -> None:
    _, err, _ = shown(("reasoning.delta", {"block": "r", "text": "hm"}), tty=True)
    assert err == "\x1b[2mhm\x1b[0m"


def test_agent_cannot_steer_the_terminal() -> None:
    out, _, _ = shown(("text.delta", {"block": "t", "text": "a\x1b[2Jb\x9bc\r\n"}), tty=True)
    assert out == "a\ufffd[2Jb\ufffdc\ufffd\n"


def test_events_it_does_not_know_are_passed_over() -> None:
    assert shown(("something.new", {"x": 1}), COMPLETED)[2] == 0


def test_json_lines_are_the_events_with_their_ids() -> None:
    out = io.StringIO()
    lines = JsonLines(out, io.StringIO())
    lines.show(NativeEvent("5-1", "text.delta", {"block": "t", "text": "a"}))
    lines.show(NativeEvent(None, "reset", {"reason": "attempt"}))
    lines.show(NativeEvent("6-1", "run.completed", {"finish_reason": "stop"}))
    assert [json.loads(line) for line in out.getvalue().splitlines()] == [
        {"type": "text.delta", "block": "t", "text": "a", "id": "5-1"},
        {"type": "reset", "reason": "attempt"},
        {"type": "run.completed", "finish_reason": "stop", "id": "6-1"},
    ]
    assert lines.exit_code == 0
