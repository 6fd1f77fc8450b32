"""Frames: what goes out comes in again, and hostile bytes neither break nor bend the reader."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.sse import (
    BodyDecoder,
    FrameDecoder,
    FrameTooLarge,
    LineDecoder,
    ServerSentEvent,
    SSEDecoder,
    comment,
    to_bytes,
)


def read(decoder: FrameDecoder, *chunks: bytes) -> list[ServerSentEvent]:
    frames = [frame for chunk in chunks for frame in decoder.feed(chunk)]
    return frames + decoder.end()


def sse(*chunks: bytes) -> list[ServerSentEvent]:
    return read(SSEDecoder(), *chunks)


def by_byte(body: bytes) -> list[bytes]:
    return [body[at : at + 1] for at in range(len(body))]


WORD = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\r\n\0"), max_size=8)
DATA = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\r"), max_size=20)
FRAMES = st.builds(
    ServerSentEvent,
    DATA.map(str.encode),
    WORD.filter(lambda word: not word.startswith(" ")),
    st.none() | WORD.filter(lambda word: not word.startswith(" ")),
    st.none() | st.integers(0, 999_999_999),
)


@given(st.lists(FRAMES, max_size=5), st.data())
def test_frames_survive_the_round_trip_however_they_are_cut(
    frames: list[ServerSentEvent], data: st.DataObject
) -> None:
    body = b"".join(comment("ping") + to_bytes(frame) for frame in frames)
    places = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=6)))
    cuts = [body[start:end] for start, end in zip([0, *places], [*places, len(body)], strict=True)]
    assert sse(*cuts) == frames


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=6))
def test_any_bytes_give_the_same_frames_however_they_are_cut(body: bytes, places: list[int]) -> None:
    edges = [0, *sorted(min(place, len(body)) for place in places), len(body)]
    whole = sse(body)
    assert sse(*(body[start:end] for start, end in pairwise(edges))) == whole
    assert sse(*by_byte(body)) == whole


@given(
    st.lists(
        st.sampled_from(
            [b"data", b":", b" ", b"\n", b"\r", b"\r\n", b"a", b"id", b"event", b"\xef\xbb\xbf", b"\n\n"]
        ),
        max_size=30,
    )
)
def test_line_ends_are_the_same_cut_or_whole(parts: list[bytes]) -> None:
    body = b"".join(parts)
    unix = body.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    assert sse(body) == sse(unix) == sse(*by_byte(body)) == sse(*parts)


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_every_line_end_of_the_specification_counts(end: bytes) -> None:
    body = end.join([b"event: e", b"data: a", b"data: b", b"", b"data: c", b"", b""])
    expected = [ServerSentEvent(b"a\nb", "e"), ServerSentEvent(b"c")]
    assert sse(body) == sse(*by_byte(body)) == expected


def test_a_crlf_cut_in_two_is_one_line_end() -> None:
    assert sse(b"data: a\r", b"\ndata: b\r", b"\n\r", b"\n") == [ServerSentEvent(b"a\nb")]


def test_nothing_else_ends_a_line() -> None:
    text = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg"
    assert sse(f"data: {text}\n\n".encode()) == [ServerSentEvent(text.encode())]


def test_a_byte_order_mark_is_skipped_at_the_beginning_only() -> None:
    assert sse(b"\xef", b"\xbb", b"\xbfdata: a\n\n") == [ServerSentEvent(b"a")]
    assert sse(b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\n") == []
    assert sse(b"data: a\n\n\xef\xbb\xbfdata: b\n\n") == [ServerSentEvent(b"a")]


def test_fields_are_read_as_the_specification_says() -> None:
    assert sse(b"data:a\n\n") == [ServerSentEvent(b"a")]
    assert sse(b"data:  a\n\n") == [ServerSentEvent(b" a")]
    assert sse(b"data\n\n") == sse(b"data:\n\n") == sse(b"data: \n\n") == [ServerSentEvent(b"")]
    assert sse(b"data\ndata\n\n") == [ServerSentEvent(b"\n")]
    assert sse(b"Data: a\n data: b\nmessage: c\n\n") == []
    assert sse(b"id: 1\0\ndata: a\n\n") == [ServerSentEvent(b"a")]
    assert sse(b"retry: 1x\ndata: a\n\n") == [ServerSentEvent(b"a")]
    assert sse(b"retry: \xd9\xa3\ndata: a\n\n") == [ServerSentEvent(b"a")]
    assert sse(b"data: a: b\n\n") == [ServerSentEvent(b"a: b")]


def test_comments_and_events_without_data_are_no_frames() -> None:
    assert sse(b": hi\n\n:\n\nevent: ping\n\n\n\n\n") == []
    assert sse(comment(), comment("x"), b"data: a\n\n") == [ServerSentEvent(b"a")]


def test_an_unfinished_frame_is_dropped() -> None:
    assert sse(b"data: a\n\ndata: b\n") == [ServerSentEvent(b"a")]
    assert sse(b"data: a") == []


def test_nul_and_invalid_utf_8_pass_as_bytes() -> None:
    assert sse(b"data: \0\xff\xc3\n\nevent: \xff\ndata: x\n\n") == [
        ServerSentEvent(b"\0\xff\xc3"),
        ServerSentEvent(b"x", "\ufffd"),
    ]


@pytest.mark.parametrize("decoder", [SSEDecoder(100), LineDecoder(100), BodyDecoder(100)])
def test_what_does_not_end_within_the_limit_is_refused(decoder: FrameDecoder) -> None:
    for _ in range(100):
        decoder.feed(b"x")
    with pytest.raises(FrameTooLarge):
        decoder.feed(b"x")


def test_a_frame_of_many_lines_is_limited_as_a_whole() -> None:
    decoder = SSEDecoder(100)
    for _ in range(12):
        decoder.feed(b"data: x\n")
    with pytest.raises(FrameTooLarge):
        decoder.feed(b"data: x\n")
    with pytest.raises(FrameTooLarge):
        SSEDecoder(100).feed(b"data: " + b"x" * 200 + b"\n\n")


def test_many_small_frames_are_not_limited_together() -> None:
    assert len(read(SSEDecoder(100), b"data: x\n\n" * 1000)) == 1000
    assert len(read(LineDecoder(100), b"{}\n" * 1000)) == 1000


def test_a_frame_of_many_lines_costs_no_more_than_its_size() -> None:
    """Lines that arrive one by one must not be copied again for each."""
    decoder = SSEDecoder(1 << 20)
    begun = time.process_time()
    for _ in range(100_000):
        decoder.feed(b"data: x\n")
    assert len(decoder.feed(b"\n")) == 1
    assert time.process_time() - begun < 2.0


def test_lines_are_frames_and_the_last_needs_no_end() -> None:
    body = b'{"a":1}\r\n\n  \n{"b":"\xe2\x80\xa8"}\n{"c":3}'
    expected = [ServerSentEvent(line) for line in (b'{"a":1}', b'{"b":"\xe2\x80\xa8"}', b'{"c":3}')]
    assert read(LineDecoder(), body) == read(LineDecoder(), *by_byte(body)) == expected


def test_a_body_is_one_frame() -> None:
    assert read(BodyDecoder(), b" {\n\n", b"} ") == [ServerSentEvent(b"{\n\n}")]
    assert read(BodyDecoder(), b"  ") == read(BodyDecoder()) == []
