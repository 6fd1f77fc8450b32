"""The native SSE format: every event with its id, as it stands in the log (`docs/protocol.md`)."""

from __future__ import annotations

from gateway.dialects.base import Encoded, FrontendDialect, ViewOptions
from shared.events import with_type
from shared.sse import comment
from shared.stream_log import Entry

_HEARTBEAT = comment()


class NativeSSE(FrontendDialect):
    """`id`, `event` unless the reader wants everything as `message`, and the stored JSON."""

    media_type = "text/event-stream"
    resumable = True
    takes_back = True
    obeys_retry = True
    holds_head = False
    opening = b""

    def __init__(self, options: ViewOptions) -> None:
        self._named = options.named

    def encode(self, entry: Entry) -> Encoded:
        data = with_type(entry.type, entry.data)
        event = b"\nevent: %b" % entry.type.encode() if self._named else b""
        frame = b"id: %d-%d%b\ndata: %b\n\n" % (*entry.cursor, event, data)
        return Encoded((frame,), ends=entry.terminal)

    def reset(self, reason: str) -> Encoded:
        event = b"event: reset\n" if self._named else b""
        data = b'data: {"type":"reset","reason":"%b"}\n\n' % reason.encode()
        return Encoded((event + data,))

    def heartbeat(self) -> bytes:
        return _HEARTBEAT
