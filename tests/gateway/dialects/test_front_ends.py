"""AutoDev, Shire and ClickPrompt read the safe profile; the ports of their parsers are strict."""

from __future__ import annotations

import pytest

from gateway.dialects.openai_chat import OpenAIChat
from shared.events import Data, Event, RunCompleted
from tests.gateway.dialects.conversations import ANSWER, FAILED, TOOL, WHOLE_TEXT, options
from tests.gateway.dialects.front_ends import (
    ClickPrompt,
    ReaderFailed,
    autodev_by_path,
    autodev_strict,
    shire,
)
from tests.gateway.dialects.log import body, told

WORKFLOW: tuple[Event, ...] = (
    Data(name="outputs", value={"n": 1}),
    RunCompleted(finish_reason="stop"),
)
SHOWN = {
    "answer": (ANSWER, WHOLE_TEXT),
    "workflow": (WORKFLOW, '```json\n{\n  "n": 1\n}\n```'),
    "failure": (FAILED, "It is\n\n[upstream agent failed]"),
}
CASES = pytest.mark.parametrize("case", SHOWN)


def safe(events: tuple[Event, ...]) -> bytes:
    """The body in the safe profile, with a heartbeat before the end."""
    dialect = OpenAIChat(options(safe=True, usage=True))
    frames = told(dialect, *events).frames
    return b"".join([*frames[:-1], dialect.heartbeat(), frames[-1]])


@CASES
def test_autodev_reads_the_safe_profile_in_both_of_its_ways(case: str) -> None:
    events, text = SHOWN[case]
    assert autodev_by_path(safe(events)) == text
    assert autodev_strict(safe(events)) == text


@CASES
def test_shire_reads_the_safe_profile(case: str) -> None:
    events, text = SHOWN[case]
    assert shire(safe(events)) == text


@CASES
def test_clickprompt_reads_the_safe_profile_frame_by_frame(case: str) -> None:
    events, text = SHOWN[case]
    page = ClickPrompt()
    dialect = OpenAIChat(options(safe=True))
    for frame in told(dialect, *events).frames:
        page.read(frame)
    page.read(dialect.heartbeat())
    assert page.bubbles == ["the user's question", text]
    assert page.done


def test_clickprompt_reads_several_frames_at_once() -> None:
    page = ClickPrompt()
    page.read(safe(ANSWER))
    assert page.bubbles[-1] == WHOLE_TEXT


def test_tool_calls_do_not_break_the_safe_profile() -> None:
    assert autodev_strict(safe(TOOL)) == ""
    ClickPrompt().read(safe(TOOL))


def test_autodev_by_path_reads_the_full_profile_too() -> None:
    assert autodev_by_path(body(OpenAIChat(options(usage=True)), *ANSWER)) == WHOLE_TEXT
    assert autodev_by_path(body(OpenAIChat(options()), *FAILED)) == "It is"


def test_the_full_profile_is_what_strict_readers_fail_on() -> None:
    """So the safe one is needed, and these ports are as strict as the tools."""
    with pytest.raises(ReaderFailed, match="reasoning_content"):
        autodev_strict(body(OpenAIChat(options()), *ANSWER))
    with pytest.raises(ReaderFailed):
        ClickPrompt().read(body(OpenAIChat(options(usage=True)), *ANSWER))
    with pytest.raises(ReaderFailed, match="id: 1"):
        shire(b'id: 1\ndata: {"choices":[]}\n\n')
