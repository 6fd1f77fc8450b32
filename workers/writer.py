"""Appends what all outboxes of this worker hold: one round trip at a time, for all runs together.

The next batch leaves when the last reply came back. Nothing waits for a timer, and the busier the
worker is, the more each round trip carries.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable

from shared.errors import BrokerError, BrokerFull, BrokerUnavailable
from shared.index import RunIndex
from shared.stream_log import Answer, Append, Log
from workers.outbox import Left, Outbox, StorageFull

log = logging.getLogger(__name__)

FULL_PATIENCE = 5.0
"""Seconds for which a Redis without memory is tried again."""

_LONGEST_PAUSE = 1.0


class Writer:
    """The one task of a worker that appends. `after_outage` is awaited before anything is written
    when Redis has been out: leases first."""

    def __init__(self, log_: Log, index: RunIndex, after_outage: Callable[[], Awaitable[None]]) -> None:
        self._log = log_
        self._index = index
        self._after_outage = after_outage
        self._dirty: dict[Outbox, None] = {}
        self._work = asyncio.Event()

    def wake(self, outbox: Outbox) -> None:
        """There is something to append in `outbox`."""
        self._dirty[outbox] = None
        self._work.set()

    async def run(self) -> None:
        """Append until cancelled."""
        pause = 0.02
        while True:
            await self._work.wait()
            self._work.clear()
            batch = [
                (outbox, append) for outbox in self._dirty if (append := outbox.next_append()) is not None
            ]
            self._dirty.clear()
            try:
                await self._append(batch)
                pause = 0.02
            except BrokerUnavailable as error:
                log.warning("Redis is out, %d runs wait to be written: %s", len(batch), error)
                for outbox, _ in batch:
                    self.wake(outbox)
                await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - spreads load
                pause = min(pause * 2, _LONGEST_PAUSE)
                await self._lead_back()

    async def _lead_back(self) -> None:
        try:
            await self._after_outage()
        except BrokerError:
            log.debug("still out")

    async def _append(self, batch: list[tuple[Outbox, Append]]) -> None:
        if not batch:
            return
        replies = await self._log.append([append for _, append in batch])
        crowded = False
        for (outbox, append), reply in zip(batch, replies, strict=True):
            if isinstance(reply, BrokerUnavailable):
                self.wake(outbox)
                crowded = True
            elif isinstance(reply, BrokerFull):
                self._wait_for_memory(outbox)
                crowded = True
            elif isinstance(reply, BrokerError):
                log.error("an append to %s failed: %s", append.run, reply)
                outbox.leave(reply)
            elif reply.answer is Answer.GONE:
                crowded |= not await self._restored(outbox)
            else:
                outbox.settle(append, reply)
                if not outbox.idle:
                    self.wake(outbox)
        if crowded:
            await asyncio.sleep(0.05)

    async def _restored(self, outbox: Outbox) -> bool:
        """Restore what is gone; False when it has to be tried again."""
        try:
            await self.restore(outbox)
        except BrokerFull:
            self._wait_for_memory(outbox)
            return False
        except BrokerUnavailable:
            self.wake(outbox)
            return False
        except BrokerError as error:
            log.error("the stream of %s cannot be restored: %s", outbox.claim.run, error)
            outbox.leave(error)
        return True

    def _wait_for_memory(self, outbox: Outbox) -> None:
        now = time.monotonic()
        outbox.full_since = outbox.full_since or now
        if now - outbox.full_since > FULL_PATIENCE:
            outbox.leave(StorageFull())
        else:
            self.wake(outbox)

    async def restore(self, outbox: Outbox) -> None:
        """The stream is not there: write it again if Redis lost its data, leave it if somebody deleted it.

        Raises BrokerError.
        """
        claim = outbox.claim
        lifetime_ms = int(claim.meta["run_ms"]) + int(claim.meta["retention_ms"])
        entries = list(outbox.entries)
        answer = await self._log.restore(claim, entries, lifetime_ms)
        log.warning("the stream of %s was gone: %s", claim.run, answer.value)
        if answer is Answer.OK:
            await self._index.reopen(claim.run, int(claim.meta["accepted"]))
            outbox.restored(entries[-1].cursor)
        elif answer is not Answer.EXISTS:
            outbox.leave(Left(answer))
        if not outbox.idle:
            self.wake(outbox)
