"""How a connection is told the end of a run that its log does not hold."""

from __future__ import annotations

from gateway.dialects.base import Encoded, FrontendDialect
from shared import cursor
from shared.events import RunFailed, dump
from shared.stream_log import Entry


def gone_entry() -> Entry:
    """The end of a run whose stream is gone."""
    return _end("gone", "The stream of this run is no longer there.")


def internal_entry() -> Entry:
    """The end of a run that cannot be told; why is in the gateway's log."""
    return _end("internal", "The stream of this run cannot be shown.")


def last_words(dialect: FrontendDialect, end: Entry) -> Encoded:
    """What was shown is void, and `end`, in the words of a dialect."""
    encoded = dialect.reset("lost")
    if encoded.ends or encoded.aborts:
        return encoded
    last = dialect.encode(end)
    return last._replace(frames=(*encoded.frames, *last.frames))


def _end(code: str, message: str) -> Entry:
    """At the cursor that every run answers with 204, so that nobody comes back for it."""
    event = RunFailed(code=code, message=message)
    return Entry(cursor.GONE, event.type, dump(event), event)
