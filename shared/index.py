"""Which runs there are: all that are open, and each tenant's. Hints that the sweep repairs."""

from __future__ import annotations

from typing import NamedTuple

from shared import keys
from shared.broker import Broker


class Added(NamedTuple):
    """What entering a run did: `others` of its tenant are open, it was new among the `opened` ones and
    among those `listed` for its tenant."""

    others: int
    opened: bool
    listed: bool


class RunIndex:
    """Sorted sets of run ids by the time of their acceptance, in milliseconds."""

    def __init__(self, broker: Broker, retention_ms: int) -> None:
        self._broker = broker
        self._retention_ms = retention_ms

    async def add(self, run: str, tenant: str, now_ms: int) -> Added:
        """Enter a run before it is created, so that nothing created is ever unknown to the sweep."""
        mine = keys.runs_of(tenant)
        replies = await self._broker.calls(
            [
                ("ZINTERCARD", 2, keys.OPEN, mine),
                ("ZADD", keys.OPEN, "NX", now_ms, run),
                ("ZADD", mine, "NX", now_ms, run),
                ("ZREMRANGEBYSCORE", mine, "-inf", now_ms - 2 * self._retention_ms),
                ("PEXPIRE", mine, 2 * self._retention_ms),
            ]
        )
        open_before, opened, listed = map(int, replies[:3])
        counted = not (opened or listed)
        return Added(open_before - counted, bool(opened), bool(listed))

    async def reopen(self, run: str, now_ms: int) -> None:
        """Enter a run again that Redis forgot."""
        await self._broker.call("ZADD", keys.OPEN, "NX", now_ms, run)

    async def close(self, *runs: str) -> None:
        """Take ended runs out of the open ones."""
        if runs:
            await self._broker.call("ZREM", keys.OPEN, *runs)

    async def open_runs(self, count: int) -> list[tuple[str, int]]:
        """The oldest open runs with the time of their acceptance."""
        rows = await self._broker.call("ZRANGE", keys.OPEN, 0, count - 1, "WITHSCORES")
        pairs = (
            rows
            if rows and isinstance(rows[0], list | tuple)
            else list(zip(rows[::2], rows[1::2], strict=True))
        )
        return [(run.decode(), int(float(score))) for run, score in pairs]

    async def of_tenant(self, tenant: str, count: int) -> list[str]:
        """A tenant's newest runs, newest first."""
        rows = await self._broker.call("ZREVRANGE", keys.runs_of(tenant), 0, count - 1)
        return [run.decode() for run in rows]

    async def forget(self, run: str, tenant: str) -> None:
        """Take an erased run out of everything."""
        await self.take_back(run, tenant, Added(0, opened=True, listed=True))

    async def take_back(self, run: str, tenant: str, added: Added) -> None:
        """Undo what `add` did, and leave what had been there before."""
        commands = []
        if added.opened:
            commands.append(("ZREM", keys.OPEN, run))
        if added.listed:
            commands.append(("ZREM", keys.runs_of(tenant), run))
        await self._broker.calls(commands)
