"""The strict client lets through what is allowed, and nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.support.sse_client import Frame, ProtocolBreach, StrictParser, Viewer


def frame(id: str | None, event: str = "text.delta", **data: Any) -> Frame:
    fields = {"text": "x"} if event == "text.delta" else {}
    return Frame(event, {"type": event, **fields, **data}, id)


RESET = frame(None, "reset", reason="attempt")
FIRST = [frame("0-1", "run.accepted"), frame("5-0", "run.started"), frame("5-1"), frame("5-2")]


def seen(*frames: Frame) -> Viewer:
    viewer = Viewer()
    for one in frames:
        viewer.see(one)
    return viewer


def test_a_whole_run_is_collected() -> None:
    viewer = seen(*FIRST, frame("5-3", "data", name="out", value=1), frame("5-4", "run.completed"))
    assert (viewer.text, viewer.cursor, viewer.data) == ("xx", "5-4", {"out": 1})
    assert viewer.terminal is not None


def test_a_new_attempt_after_content_needs_a_reset_and_voids_the_text() -> None:
    viewer = seen(*FIRST, RESET, frame("9-0", "run.started"), frame("9-1", text="new"))
    assert (viewer.text, viewer.resets) == ("new", ["attempt"])


def test_a_new_attempt_before_content_needs_none() -> None:
    assert seen(*FIRST[:2], frame("9-0", "run.started")).resets == []


@pytest.mark.parametrize(
    "frames",
    [
        [frame("5-0", "run.started")],
        [*FIRST, frame("5-2")],
        [*FIRST, frame("5-4")],
        [*FIRST, frame("5-1")],
        [*FIRST, frame("9-0", "run.started")],
        [*FIRST, frame("4-0", "run.started")],
        [*FIRST, RESET, frame("5-3")],
        [*FIRST, frame(None)],
        [*FIRST, frame("05-3")],
        [*FIRST, frame("5-3", "run.failed"), frame("5-4", "run.completed")],
        [*FIRST, frame("5-3", "run.failed"), RESET],
        [frame("3-3", "reset", reason="lost")],
    ],
    ids=[
        "late",
        "doubled",
        "hole",
        "back",
        "unreset",
        "old",
        "mid",
        "no id",
        "zero",
        "two",
        "after",
        "reset id",
    ],
)
def test_breaches_are_found(frames: list[Frame]) -> None:
    with pytest.raises(ProtocolBreach):
        seen(*frames)


def test_frames_are_parsed_over_any_cut() -> None:
    body = b': hi\n\nretry: 1000\n\nid: 0-1\nevent: run.accepted\ndata: {"type":"run.accepted"}\n\n'
    parser = StrictParser()
    frames = [found for at in range(len(body)) for found in parser.feed(body[at : at + 1])]
    assert frames == [Frame("run.accepted", {"type": "run.accepted"}, "0-1")]
    assert (parser.comments, parser.retry) == (1, 1000)


@pytest.mark.parametrize(
    "block",
    [
        b"data:{}",
        b"foo: 1",
        b"id: 1-1\nid: 1-2\ndata: {}",
        b'data: {"type":"a"}\r',
        b'event: b\ndata: {"type":"a"}',
    ],
)
def test_frames_that_we_never_write_are_breaches(block: bytes) -> None:
    with pytest.raises(ProtocolBreach):
        StrictParser().feed(block + b"\n\n")


async def test_a_viewer_resumes_until_the_terminal_event() -> None:
    """Each connection says where the last one was left, and gets the rest."""
    frames = [b'id: 0-1\ndata: {"type":"run.accepted"}\n\n', b'id: 5-0\ndata: {"type":"run.started"}\n\n']
    frames += [b'id: 5-%d\ndata: {"type":"text.delta","text":"%d"}\n\n' % (n, n) for n in range(1, 5)]
    frames += [b": beat\n\n", b'id: 5-5\ndata: {"type":"run.completed"}\n\n']
    asked: list[str | None] = []

    async def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.headers.get("last-event-id"))
        seen = [b"", *frames].index(next((one for one in frames if _has_id(one, asked[-1])), b""))
        return httpx.Response(200, content=_one_by_one(frames[seen:]))

    viewer = Viewer()
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://gateway") as client:
        await viewer.watch(client, "/events", until="run.started")
        await viewer.watch_to_end(client, "/events", stop_after=len(frames[2]) + 3)
    assert (viewer.text, viewer.comments, viewer.types[-1]) == ("1234", 1, "run.completed")
    assert asked == [None, "5-0", "5-1", "5-2", "5-3", "5-4"]


async def _one_by_one(pieces: list[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def _has_id(block: bytes, cursor: str | None) -> bool:
    return cursor is not None and block.startswith(f"id: {cursor}\n".encode())
