"""How many runs a worker takes on: a slot is reserved before a run leaves the queue."""

from __future__ import annotations

import asyncio


class Slots:
    """Counts places; `reserve` and `release` never wait."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._taken = 0
        self._freed = asyncio.Event()
        self._freed.set()

    @property
    def free(self) -> int:
        """How many runs could be taken on now."""
        return self.limit - self._taken

    def reserve(self) -> bool:
        """Take a place, if there is one."""
        if self.free <= 0:
            return False
        self._taken += 1
        if self.free <= 0:
            self._freed.clear()
        return True

    def release(self) -> None:
        """Give a place back."""
        self._taken -= 1
        self._freed.set()

    async def until_free(self) -> None:
        """Wait for a free place, which somebody else may take first."""
        await self._freed.wait()
