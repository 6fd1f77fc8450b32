"""The native format as lines of JSON (https://github.com/ndjson/ndjson-spec): `"id"` stands in the object."""

from __future__ import annotations

from gateway.dialects.base import Encoded, FrontendDialect, ViewOptions
from shared.events import with_type
from shared.stream_log import Entry


class NDJSON(FrontendDialect):
    """A line an event; a blank line, which the format lets a reader ignore, is the heartbeat."""

    media_type = "application/x-ndjson"
    resumable = True
    takes_back = True
    obeys_retry = False
    holds_head = False
    opening = b""

    def __init__(self, options: ViewOptions) -> None:
        """Nothing can be chosen."""

    def encode(self, entry: Entry) -> Encoded:
        data = with_type(entry.type, entry.data)
        return Encoded((b'{"id":"%d-%d",%b\n' % (*entry.cursor, data[1:]),), ends=entry.terminal)

    def reset(self, reason: str) -> Encoded:
        return Encoded((b'{"type":"reset","reason":"%b"}\n' % reason.encode(),))

    def heartbeat(self) -> bytes:
        return b"\n"
