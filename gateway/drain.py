"""The gateway is shutting down: said once, heard by every connection."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Drain(asyncio.Event):
    """An event that also calls whoever watches, so that an idle connection needs no task for it."""

    def __init__(self) -> None:
        super().__init__()
        self._began = 0.0
        self._watchers: set[Callable[[], None]] = set()

    def set(self) -> None:
        """Begin to drain."""
        if not self.is_set():
            self._began = time.monotonic()
        super().set()
        for watcher in list(self._watchers):
            watcher()

    def seconds_left(self, of: float) -> float | None:
        """What is left of a time that began with draining, None before it has begun."""
        return self._began + of - time.monotonic() if self.is_set() else None

    @contextmanager
    def watched(self, watcher: Callable[[], None]) -> Iterator[None]:
        """Call `watcher` when draining begins, unless this has been left before."""
        self._watchers.add(watcher)
        try:
            yield
        finally:
            self._watchers.discard(watcher)
