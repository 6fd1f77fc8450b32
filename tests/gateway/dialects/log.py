"""A run's log for tests: events in, entries with dense ids out."""

from __future__ import annotations

from gateway.dialects.base import Encoded, FrontendDialect
from shared.cursor import Cursor
from shared.events import Event, RunAccepted, RunStarted, dump
from shared.stream_log import Entry

ATTEMPT = 1795360000123
RUN = "run_01KAQ7"
AGENT = "weather-agent"


def entries(*events: Event, attempt: int = ATTEMPT) -> list[Entry]:
    """The whole log of a run of one attempt: accepted, started, then `events`."""
    accepted = RunAccepted(run=RUN, agent=AGENT, schema=1)
    started = RunStarted(attempt=attempt, prev="0-1", agent=AGENT)
    told = [entry(Cursor(0, 1), accepted), entry(Cursor(attempt, 0), started)]
    return told + [entry(Cursor(attempt, seq), event) for seq, event in enumerate(events, 1)]


def entry(at: Cursor, event: Event) -> Entry:
    """One event as it is read back from the log."""
    return Entry(at, event.type, dump(event))


def told(dialect: FrontendDialect, *events: Event) -> Encoded:
    """All that a viewer of the run is sent, as one."""
    frames: list[bytes] = []
    for one in entries(*events):
        encoded = dialect.encode(one)
        frames += encoded.frames
        if encoded.ends or encoded.aborts:
            return encoded._replace(frames=frames)
    return Encoded(frames)


def body(dialect: FrontendDialect, *events: Event) -> bytes:
    """The same as the bytes of the body."""
    return b"".join(told(dialect, *events).frames)
