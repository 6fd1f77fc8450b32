"""How much one tenant or one address may do at this gateway: requests in a minute, open streams."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from shared.errors import RequestError

_MOST_KEYS = 10_000
"""Addresses remembered; beyond it the one heard of longest ago is forgotten."""


class SlidingWindow:
    """Counts by key over the last `seconds`: this window's count and the fading rest of the one before."""

    def __init__(self, seconds: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._counts: OrderedDict[str, tuple[int, int, int]] = OrderedDict()

    def add(self, key: str) -> None:
        """Count one for `key`."""
        window, before, now, _ = self._look(key)
        self._counts[key] = (window, before, now + 1)
        self._counts.move_to_end(key)
        if len(self._counts) > _MOST_KEYS:
            self._counts.popitem(last=False)

    def wait(self, key: str, limit: int) -> float:
        """Seconds until `key` has room below `limit`; 0 when it has."""
        _, before, now, passed = self._look(key)
        if now + before * (1 - passed) < limit:
            return 0.0
        to_next = (1 - passed) * self._seconds
        if now < limit:
            return min(to_next, (1 - passed - (limit - now) / before) * self._seconds) or 1e-3
        return to_next + (1 - limit / now) * self._seconds

    def _look(self, key: str) -> tuple[int, int, int, float]:
        window, passed = divmod(self._clock() / self._seconds, 1)
        known, before, now = self._counts.get(key, (int(window), 0, 0))
        if known == int(window) - 1:
            before, now = now, 0
        elif known != int(window):
            before, now = 0, 0
        return int(window), before, now, passed


class Slots:
    """How many streams each tenant has open at this gateway."""

    def __init__(self) -> None:
        self._taken: Counter[str] = Counter()

    def check(self, tenant: str, limit: int) -> None:
        """Raise RequestError (429) when all slots are taken."""
        if self._taken[tenant] >= limit:
            raise RequestError(
                429,
                "too_many_streams",
                f"this client has {limit} streams open at this gateway, which is its limit; close one first",
                retry_after=1,
            )

    @contextmanager
    def hold(self, tenant: str, limit: int) -> Iterator[None]:
        """Take a slot for as long as the block runs. Raises RequestError (429) when all are taken."""
        self.check(tenant, limit)
        self._taken[tenant] += 1
        try:
            yield
        finally:
            self._taken[tenant] -= 1
            if not self._taken[tenant]:
                del self._taken[tenant]
