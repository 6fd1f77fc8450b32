"""Native SSE and NDJSON: events in, exact bytes out."""

from __future__ import annotations

import json

import pytest

from gateway.dialects import FRONTEND_DIALECTS
from gateway.dialects.base import Encoded, ViewOptions
from gateway.dialects.native import NativeSSE
from gateway.dialects.ndjson import NDJSON
from shared.cursor import Cursor
from shared.events import RunCompleted, RunFailed, RunStopped, TextDelta, TextEnd, TextStart
from shared.sse import LineDecoder, SSEDecoder
from shared.stream_log import Entry
from tests.gateway.dialects.log import ATTEMPT, body, entries, entry

ANSWER = (
    TextStart(block="t1"),
    TextDelta(block="t1", text="It is 18 °C\n\u2028. 🌦"),
    TextEnd(block="t1"),
    RunCompleted(finish_reason="stop"),
)


def test_a_native_frame_is_id_event_and_the_stored_json_with_its_type_first() -> None:
    frame = NativeSSE(ViewOptions()).encode(entry(Cursor(ATTEMPT, 2), ANSWER[1])).frames[0]
    assert frame == (
        b"id: 1795360000123-2\nevent: text.delta\n"
        b'data: {"type":"text.delta","block":"t1",'
        b'"text":"It is 18 \xc2\xb0C\\n\xe2\x80\xa8. \xf0\x9f\x8c\xa6"}\n\n'
    )


def test_without_names_every_frame_is_a_message() -> None:
    frames = SSEDecoder().feed(body(NativeSSE(ViewOptions(named=False)), *ANSWER))
    assert {frame.event for frame in frames} == {""}
    assert [json.loads(frame.data)["type"] for frame in frames][-1] == "run.completed"


def test_every_event_is_one_frame_with_the_id_of_the_log() -> None:
    frames = SSEDecoder().feed(body(NativeSSE(ViewOptions()), *ANSWER))
    assert [frame.id for frame in frames] == [str(one.cursor) for one in entries(*ANSWER)]
    assert [frame.event for frame in frames] == [one.type for one in entries(*ANSWER)]


def test_an_ndjson_line_is_the_native_object_with_its_id() -> None:
    native = SSEDecoder().feed(body(NativeSSE(ViewOptions()), *ANSWER))
    lines = LineDecoder().feed(body(NDJSON(ViewOptions()), *ANSWER))
    assert [json.loads(line.data) for line in lines] == [
        {"id": frame.id, **json.loads(frame.data)} for frame in native
    ]
    assert list(json.loads(lines[0].data))[:2] == ["id", "type"]


@pytest.mark.parametrize("dialect", [NativeSSE(ViewOptions()), NDJSON(ViewOptions())])
def test_events_of_a_newer_version_are_passed_on_undecoded(dialect: NativeSSE | NDJSON) -> None:
    encoded = dialect.encode(Entry(Cursor(7, 3), "novel.kind", b'{"x":1}'))
    assert b'"type":"novel.kind","x":1}' in encoded.frames[0]
    assert not encoded.ends


@pytest.mark.parametrize("dialect", [NativeSSE(ViewOptions()), NDJSON(ViewOptions())])
@pytest.mark.parametrize(
    "terminal",
    [
        RunCompleted(finish_reason="stop"),
        RunFailed(code="timeout", message="silent"),
        RunStopped(by="client"),
    ],
)
def test_every_terminal_event_is_sent_and_ends(
    dialect: NativeSSE | NDJSON, terminal: RunCompleted | RunFailed | RunStopped
) -> None:
    encoded = dialect.encode(entry(Cursor(7, 3), terminal))
    assert encoded.ends
    assert len(encoded.frames) == 1


def test_a_reset_has_no_id_and_so_does_not_move_the_cursor() -> None:
    assert NativeSSE(ViewOptions()).reset("attempt") == Encoded(
        (b'event: reset\ndata: {"type":"reset","reason":"attempt"}\n\n',)
    )
    assert NativeSSE(ViewOptions(named=False)).reset("lost") == Encoded(
        (b'data: {"type":"reset","reason":"lost"}\n\n',)
    )
    assert NDJSON(ViewOptions()).reset("cursor") == Encoded((b'{"type":"reset","reason":"cursor"}\n',))


def test_a_heartbeat_is_nothing_to_a_reader() -> None:
    assert SSEDecoder().feed(NativeSSE(ViewOptions()).heartbeat()) == []
    assert LineDecoder().feed(NDJSON(ViewOptions()).heartbeat()) == []


def test_only_dialects_with_ids_can_be_resumed_and_take_text_back() -> None:
    made = {name: make(ViewOptions()) for name, make in FRONTEND_DIALECTS.items()}
    assert {name for name, one in made.items() if one.resumable} == {"sse", "ndjson"}
    assert {name for name, one in made.items() if one.takes_back} == {"sse", "ndjson"}
