"""What every agent dialect is: a small state machine over values, made fresh for each attempt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, Protocol

import msgspec

from shared.events import Event, Json
from shared.requests import RunRequest
from shared.sse import ServerSentEvent


class AgentRequest(msgspec.Struct, frozen=True):
    """One HTTP request to an agent, complete but for the connection. `body` is sent as JSON."""

    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
    url: str
    headers: Mapping[str, str]
    body: Json = None

    def __repr__(self) -> str:
        """Without headers, which hold keys, and without query and body, which hold the prompt."""
        return f"AgentRequest({self.method} {self.url.partition('?')[0]})"


class AgentDialect(Protocol):
    """How an agent speaks. Pure: no I/O, no await.

    `complete` becomes true when the agent's own end marker was seen: reading goes on to the end of
    the body, for a short while. `closed` becomes true when nothing more is wanted (`[DONE]`).
    `ended_as` is the agent's own word for how it ended.
    """

    framing: str
    complete: bool
    closed: bool
    ended_as: str | None

    def request(self, run: RunRequest) -> AgentRequest:
        """The request that starts the run."""
        ...

    def map(self, frame: ServerSentEvent) -> Iterable[Event]:
        """The events in one frame, lazily: what is owed before an error comes before it is raised.

        Raises AgentError for an error the agent reports, and AgentProtocolError for a frame it
        cannot mean.
        """
        ...

    def finish(self) -> Iterable[Event]:
        """The body has ended: what is still owed, and a terminal event last.

        Raises AgentTruncated, after what is owed, when the agent's end marker is missing.
        """
        ...

    def stop_request(self) -> AgentRequest | None:
        """The call that stops the agent's work, where it has one and its ids are known."""
        ...
