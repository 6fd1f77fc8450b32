"""What every way to reach an agent is: an open stream of frames that can be told to stop."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import TracebackType
from typing import Protocol

from shared.sse import ServerSentEvent

Batch = list[ServerSentEvent]
"""Frames that arrived together."""


class AgentStream(Protocol):
    """One answer of one agent: `async with stream as batches: async for batch in batches`.

    Leaving it closes the connection, whatever state it is in. Iterating raises AgentError: for an
    agent that could not be asked before the first batch, for a body that broke off behind the last.
    """

    async def __aenter__(self) -> AsyncIterator[Batch]: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def stop(self) -> None:
        """Tell the agent that its work is no longer wanted, where it can be told.

        Works after the stream was left, too. Raises AgentError when the agent did not take it.
        """
        ...
