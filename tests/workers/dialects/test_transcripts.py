"""Every recorded answer becomes what its `expected.json` says, however its bytes were cut."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.adapter import Replay, summarised
from shared.config import DifyAgent, OpenAIChatAgent
from shared.events import Event, dump, load
from shared.sse import SSEDecoder
from shared.summary import Summary
from workers.dialects import AGENT_DIALECTS
from workers.dialects.base import AgentDialect

TRANSCRIPTS = Path(__file__).parents[2] / "transcripts"
SPOKEN_BY = {"dify-agent": "dify-chat", "dify-tts": "dify-chat"}
"""Folders that show an app of another dialect."""

CASES = sorted(str(path.relative_to(TRANSCRIPTS).with_suffix("")) for path in TRANSCRIPTS.glob("*/*.sse"))


def make_dialect(case: str, **options: Any) -> AgentDialect:
    name = case.partition("/")[0]
    name = "dify-workflow" if case == "dify-tts/workflow" else SPOKEN_BY.get(name, name)
    if name == "openai-chat":
        return AGENT_DIALECTS[name](
            OpenAIChatAgent(dialect="openai-chat", url="http://agent", model="m", **options)
        )
    return AGENT_DIALECTS[name](DifyAgent.model_validate({"dialect": name, "url": "http://agent/v1"}))


def replay(dialect: AgentDialect, pieces: Iterable[bytes]) -> tuple[list[Event], dict[str, Any]]:
    """The events of a body that arrives in `pieces`, and what they come to."""
    decoder = SSEDecoder()
    player = Replay(dialect)
    events = list(player.events(frame for piece in pieces for frame in decoder.feed(piece)))
    total = Summary()
    for event in events:
        total.feed(event)
    return events, summarised(total, dialect, player.error)


def body_of(case: str) -> bytes:
    return (TRANSCRIPTS / f"{case}.sse").read_bytes()


def expected_of(case: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((TRANSCRIPTS / f"{case}.expected.json").read_text("utf-8"))
    return loaded


def agrees(found: dict[str, Any], expected: dict[str, Any]) -> None:
    exact = ("text", "reasoning", "outputs", "usage", "finish_reason", "finish_reason_raw", "complete", "ids")
    for name in exact:
        assert found[name] == expected[name], name
    for name in ("refusal", "sources", "files", "audio", "human_input", "streamed_before_replace"):
        assert found.get(name) == expected.get(name), name
    assert [
        _call(call, wanted) for call, wanted in zip(found["tool_calls"], expected["tool_calls"], strict=True)
    ] == [_call(wanted, wanted) for wanted in expected["tool_calls"]]
    error, wanted = found["error"], expected["error"]
    assert (error is None) == (wanted is None)
    if wanted is not None:
        named = (
            ("code", "type", "status") if wanted.get("synthetic") else ("message", "code", "type", "status")
        )
        assert {name: error.get(name) for name in named} == {name: wanted.get(name) for name in named}


def _call(call: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """A call without what only the recording knows (Dify gives its calls no id)."""
    names = ("name", "arguments", "result") if wanted["id"] is None else ("id", "name", "arguments", "result")
    return {name: call.get(name) for name in names}


def cuts(body: bytes, seed: int) -> Iterator[bytes]:
    places = sorted(random.Random(seed).sample(range(1, len(body)), min(30, len(body) - 1)))
    return (body[start:end] for start, end in zip([0, *places], [*places, len(body)], strict=True))


def inside_characters(body: bytes) -> Iterator[bytes]:
    """The body cut before every continuation byte of a UTF-8 sequence."""
    places = [place for place, byte in enumerate(body) if byte & 0xC0 == 0x80]
    return (body[start:end] for start, end in zip([0, *places], [*places, len(body)], strict=True))


def test_there_are_transcripts_of_each_dialect() -> None:
    assert len(CASES) == 38


@pytest.mark.parametrize("case", CASES)
def test_a_transcript_becomes_what_is_expected(case: str) -> None:
    events, found = replay(make_dialect(case), [body_of(case)])
    agrees(found, expected_of(case))
    assert all(load(event.type, dump(event)) == event for event in events)


@pytest.mark.parametrize("case", CASES)
def test_a_transcript_cut_anywhere_becomes_the_same_events(case: str) -> None:
    body = body_of(case)
    whole, _ = replay(make_dialect(case), [body])
    assert replay(make_dialect(case), (body[at : at + 1] for at in range(len(body))))[0] == whole
    assert replay(make_dialect(case), inside_characters(body))[0] == whole
    for seed in range(20):
        assert replay(make_dialect(case), cuts(body, seed))[0] == whole


@pytest.mark.parametrize("ending", [b"\r\n", b"\r"])
@pytest.mark.parametrize("case", CASES)
def test_a_transcript_with_other_line_ends_becomes_the_same_events(case: str, ending: bytes) -> None:
    body = body_of(case)
    whole, _ = replay(make_dialect(case), [body])
    other = body.replace(b"\n", ending)
    assert replay(make_dialect(case), [b"\xef\xbb\xbf", other])[0] == whole
    assert replay(make_dialect(case), (other[at : at + 1] for at in range(len(other))))[0] == whole


@pytest.mark.parametrize("case", CASES)
def test_a_transcript_that_breaks_off_ends_in_exactly_one_terminal_event(case: str) -> None:
    """Cut behind any frame: one terminal event, last, and success only behind the end marker."""
    blocks = body_of(case).split(b"\n\n")
    for count in range(len(blocks)):
        dialect = make_dialect(case)
        events, _ = replay(dialect, [b"\n\n".join(blocks[:count]) + b"\n\n"])
        assert [event.type in ("run.completed", "run.failed", "run.stopped") for event in events] == [
            *[False] * (len(events) - 1),
            True,
        ]
        assert dialect.complete or events[-1].type == "run.failed"


@pytest.mark.parametrize("case", CASES)
def test_blocks_open_before_their_deltas_and_close_once(case: str) -> None:
    events, _ = replay(make_dialect(case), [body_of(case)])
    opened: set[str] = set()
    for event in events:
        kind, _, what = event.type.partition(".")
        if kind in ("text", "reasoning"):
            block = event.block  # type: ignore[union-attr]  # every event of these types has one
            if what == "start":
                assert block not in opened
                opened.add(block)
            else:
                assert block in opened
                opened -= {block} if what == "end" else set()
    assert opened == set()


def test_think_tags_are_split_when_the_agent_says_so() -> None:
    case = "openai-chat/think_tags"
    body = body_of(case)
    for pieces in ([body], [body[at : at + 1] for at in range(len(body))]):
        _, found = replay(make_dialect(case, split_think=True), pieces)
        assert {name: found[name] for name in ("text", "reasoning")} == expected_of(case)["if_think_split"]
