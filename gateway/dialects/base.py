"""What every front-end dialect is: a small state machine over values, made fresh for each view."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

from shared.events import Json, RunFailed
from shared.stream_log import Entry


class Encoded(NamedTuple):
    """What one entry becomes: whole frames, then perhaps the end of the connection.

    `ends` closes it in order; `aborts` breaks it off, for formats without a word for failure, so
    that the client knows that what it has is not whole. `failure` is set when the run failed before
    anything was shown: whoever has not sent the response's head yet can answer with a real status.
    """

    frames: Sequence[bytes] = ()
    ends: bool = False
    aborts: bool = False
    failure: RunFailed | None = None


@dataclass(frozen=True)
class ViewOptions:
    """How a front end wants to see a run; each dialect takes what it knows.

    `created` is the time of acceptance in Unix seconds, from the run's meta, so that every gateway
    says the same. `text` finds the text in structured output, for agents that name the field.
    """

    run: str = ""
    agent: str = ""
    created: int = 0
    named: bool = True
    """native SSE: send `event:` lines."""
    usage: bool = False
    """openai-chat: send the usage chunk."""
    reasoning: bool = True
    """openai-chat: send `reasoning_content`."""
    safe: bool = False
    """openai-chat: only what AutoDev, Shire and ClickPrompt all read."""
    text: Callable[[Json], Json] | None = None

    def key(self, dialect: str) -> tuple[str, ...]:
        """For a `View` of one run: equal keys see the same frames."""
        flags = (self.named, self.usage, self.reasoning, self.safe)
        return (dialect, self.agent, str(self.created), *map(str, flags))


class FrontendDialect(Protocol):
    """How a front end is spoken to. Fed every entry of one attempt in order; pure.

    Its frames are a function of the log alone, so that a resumed connection gets the same bytes.
    """

    media_type: ClassVar[str]
    resumable: ClassVar[bool]
    """Whether frames carry cursors, so that a client can come back to where it was."""
    takes_back: ClassVar[bool]
    """Whether text that was shown can be taken back; if not, its runs are never restarted after text."""
    obeys_retry: ClassVar[bool]
    """Whether its clients reconnect by themselves and read `retry:`."""
    holds_head: ClassVar[bool]
    """Whether the response's head waits, up to the first heartbeat, for something to show: a run
    that fails before gets a real status."""

    @property
    def opening(self) -> bytes:
        """The frame that stands before anything is known, b"" when there is none. Not worth a head."""
        ...

    def encode(self, entry: Entry) -> Encoded:
        """The frames of one entry. `ends` is set by the terminal entry, or when the dialect cannot
        go on (text taken back that an append-only format has already sent)."""
        ...

    def reset(self, reason: str) -> Encoded:
        """What a viewer that was sent visible content is told when that content is void."""
        ...

    def heartbeat(self) -> bytes:
        """What keeps an idle connection alive, b"" for nothing; never moves the cursor and does not
        depend on what was encoded."""
        ...
