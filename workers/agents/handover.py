"""From the task or thread that reads an agent to the one that relays: bounded, in order, ended once."""

from __future__ import annotations

import asyncio

from shared.errors import AgentError
from shared.sse import ServerSentEvent
from workers.agents.base import Batch

LIMIT_BYTES = 256 << 10
"""Data that may wait before the reader has to: what one append takes (`workers/outbox.py`)."""

FRAME_COST = 64
"""Counted for each frame besides its data, so that empty frames are bounded too."""


class Handover:
    """One writer, one reader. Iterate it to get what has arrived since the last time."""

    def __init__(self) -> None:
        self._frames: Batch = []
        self._size = 0
        self._ready = asyncio.Event()
        self._room = asyncio.Event()
        self._ended = False
        self._error: AgentError | None = None
        self.left = False

    async def put(self, frames: list[ServerSentEvent]) -> bool:
        """Hand over, waiting while too much waits already. False when nobody reads any more."""
        while self._size >= LIMIT_BYTES and not self.left:
            self._room.clear()
            await self._room.wait()
        if not self.left:
            self._frames.extend(frames)
            self._size += sum(len(frame.data) + FRAME_COST for frame in frames)
            self._ready.set()
        return not self.left

    def end(self, error: AgentError | None = None) -> None:
        """Nothing more comes; `error` is raised behind what was handed over."""
        if not self._ended:
            self._ended, self._error = True, error
            self._ready.set()

    def leave(self) -> None:
        """The reader has gone: the writer must not wait for it."""
        self.left = True
        self._room.set()

    def __aiter__(self) -> Handover:
        return self

    async def __anext__(self) -> Batch:
        while not self._frames:
            if self._ended:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            self._ready.clear()
            await self._ready.wait()
        batch, self._frames, self._size = self._frames, [], 0
        self._room.set()
        return batch
