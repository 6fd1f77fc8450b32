"""(being written by the lead; the interface is as here)"""
from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from gateway.dialects.base import Encoded, FrontendDialect
from shared.cursor import Cursor


@dataclass(frozen=True)
class View:
    """One way to see a run: the dialect with its options. Equal keys share frames."""

    key: tuple[str, ...]
    make: Callable[[], FrontendDialect]


@dataclass(frozen=True)
class Position:
    """Where a client is: behind `cursor`, or behind frame `frame` of the event at `cursor`.

    `valid` is false when it sent something that is no cursor (R2).
    """

    cursor: Cursor
    frame: int | None = None
    valid: bool = True


class Subscriber:
    """One connection watching a run."""

    resumed_from: str
    """For `Stream-Resumed-From`: the id before the first entry sent, or `earliest`."""
    ended_before: bool
    """The position is at the terminal event: nothing is left to send (204)."""

    async def next(self) -> Encoded:
        """What is new, at least one frame or an end; waits for it. Safe to cancel, nothing is lost."""
        raise NotImplementedError


class Hub:
    """The fan-out inside one gateway process."""

    async def __aenter__(self) -> Hub:
        raise NotImplementedError

    async def __aexit__(self, *exc: object) -> None: ...

    @asynccontextmanager
    async def subscribe(self, run: str, view: View, position: Position | None) -> AsyncIterator[Subscriber]:
        """Watch a run from `position` (None: from its start). Raises StreamGone when there is none."""
        raise NotImplementedError
        yield

    def viewers(self, run: str) -> int:
        """How many connections of this process watch the run."""
        raise NotImplementedError
