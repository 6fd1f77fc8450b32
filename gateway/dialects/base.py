"""What every front-end dialect is: a small state machine over values, made fresh for each view."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple, Protocol

from shared.stream_log import Entry


class Encoded(NamedTuple):
    """What one entry becomes: whole frames, then perhaps the end of the connection.

    `ends` closes it in order; `aborts` breaks it off, for formats without a word for failure, so
    that the client knows that what it has is not whole.
    """

    frames: Sequence[bytes] = ()
    ends: bool = False
    aborts: bool = False


class FrontendDialect(Protocol):
    """How a front end is spoken to. Fed every entry of one attempt in order; pure.

    Its frames are a function of the log alone, so that a resumed connection gets the same bytes.
    """

    media_type: ClassVar[str]
    resumable: ClassVar[bool]
    """Whether frames carry cursors, so that a client can come back to where it was."""
    takes_back: ClassVar[bool]
    """Whether text that was shown can be taken back; if not, its runs are never restarted after text."""

    def encode(self, entry: Entry) -> Encoded:
        """The frames of one entry. `ends` is set by the terminal entry, or when the dialect cannot
        go on (text taken back that an append-only format has already sent)."""
        ...

    def reset(self, reason: str) -> Encoded:
        """What a viewer that was sent visible content is told when that content is void."""
        ...

    def heartbeat(self) -> bytes:
        """What keeps an idle connection alive; never moves the cursor."""
        ...
