"""What a client wants, by its headers."""

from __future__ import annotations

import pytest

from gateway.negotiation import preferred, wait_seconds

OFFERS = ("application/json", "text/event-stream", "application/x-ndjson", "text/plain")


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("", "application/json"),
        ("*/*", "application/json"),
        ("text/event-stream", "text/event-stream"),
        ("TEXT/Event-Stream; charset=utf-8", "text/event-stream"),
        ("text/event-stream, */*", "text/event-stream"),
        ("*/*, text/event-stream", "text/event-stream"),
        ("application/json, text/plain, */*", "application/json"),
        ("text/plain, application/json", "text/plain"),
        ("text/plain;q=0.1, application/x-ndjson", "application/x-ndjson"),
        ("application/json;q=0, */*", "text/event-stream"),
        ("text/*", "text/event-stream"),
        ("text/event-stream;q=nonsense", "text/event-stream"),
        ("image/png", None),
        ("text/event-stream;q=0", None),
    ],
)
def test_the_best_of_what_we_have(accept: str, chosen: str | None) -> None:
    assert preferred(accept, OFFERS) == chosen


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [
        ("wait=10", 10),
        ('respond-async, wait="10"', 10),
        ("return=minimal; wait = 5", 5),
        ("", None),
        ("wait", None),
        ("wait=soon", None),
        ("dontwait=3", None),
    ],
)
def test_how_long_to_wait(prefer: str, seconds: int | None) -> None:
    assert wait_seconds(prefer) == seconds
