"""Finds runs that nobody holds, and ends those that are beyond help.

Runs in every worker and every gateway, so that runs end also when no worker is left; one process at
a time does the work, by a hint on which correctness does not depend: every decision is made by a
script on the run's own keys. A run is taken over only after two looks some time apart, so that a
pause of Redis does not make a whole fleet look dead.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import secrets
import time

from shared import keys
from shared.broker import Broker
from shared.endings import expired, interrupted, overdue, poisoned
from shared.errors import BrokerError, BrokerFull
from shared.index import RunIndex
from shared.jobs import Queue
from shared.stopping import Stopper
from shared.stream_log import Answer, Log, Look
from shared.telemetry import run_log

log = logging.getLogger(__name__)

LOOKS = 500
"""Most runs looked at in one sweep."""

KNOWN_RUNS = 100_000
"""Most open runs read from the index."""

JOB_LEFT_FOR = 1.0
"""Seconds for which a run's last job must have left the queue before there is another."""

INDEX_GRACE_MS = 60_000
"""An index entry without a stream is kept so long: its run may be being created."""

JOB_LIFETIME_MS = 24 * 3600 * 1000
"""Jobs outlive any run; the run's own deadlines decide."""

_AGAIN_SOON = 0.5


class Sweep:
    """Looks at open runs when it is worth it, and does what they need."""

    def __init__(
        self, log_: Log, index: RunIndex, queue: Queue, stopper: Stopper, broker: Broker, *, every: float
    ) -> None:
        """`every` in seconds."""
        self._log = log_
        self._index = index
        self._queue = queue
        self._stopper = stopper
        self._broker = broker
        self._every = every
        self._name = secrets.token_hex(8)
        self._due: dict[str, float] = {}
        """When each open run is to be looked at again, by this process' clock."""
        self._unqueued: dict[str, float] = {}
        """Since when the last job of a waiting run has been off the queue."""

    async def run(self) -> None:
        """Sweep until cancelled."""
        told = False
        while True:
            await asyncio.sleep(self._every)
            try:
                if await self._mine():
                    await self.sweep()
                else:
                    self._due.clear()
                    self._unqueued.clear()
                told = False
            except BrokerError as error:
                if not told:
                    log.warning("no sweep until Redis is back: %s", error)
                told = True

    async def sweep(self) -> None:
        """One round. Raises BrokerError."""
        open_runs = dict(await self._index.open_runs(KNOWN_RUNS))
        self._due = {run: due for run, due in self._due.items() if run in open_runs}
        self._unqueued = {run: since for run, since in self._unqueued.items() if run in open_runs}
        now = time.monotonic()
        due = heapq.nsmallest(
            LOOKS, (run for run in open_runs if self._due.get(run, 0) <= now), key=self._when
        )
        ready: list[tuple[str, Look]] = []
        for run, look in zip(due, await self._log.look(due), strict=True):
            self._due[run] = now + _AGAIN_SOON
            if isinstance(look, BrokerError):
                run_log(log, run).error("cannot be looked at: %s", look)
            elif look.answer is Answer.READY:
                ready.append((run, look))
            else:
                await self._act(run, look, open_runs[run])
        await self._queue_again(ready)

    def _when(self, run: str) -> float:
        return self._due.get(run, 0)

    async def _mine(self) -> bool:
        """Whether this process is the one that sweeps."""
        lifetime_ms = round(self._every * 4000)
        try:
            if await self._broker.call("SET", keys.SWEEP, self._name, "NX", "PX", lifetime_ms):
                return True
        except BrokerFull:
            return True  # several at a time do no harm, and runs have to end also without memory
        holder = await self._broker.call("GET", keys.SWEEP)
        if holder != self._name.encode():
            return False
        await self._broker.call("PEXPIRE", keys.SWEEP, lifetime_ms)
        return True

    async def _now_ms(self) -> int:
        seconds, micros = await self._broker.call("TIME")
        return int(seconds) * 1000 + int(micros) // 1000

    async def _act(self, run: str, look: Look, accepted_ms: int) -> None:
        match look.answer:
            case Answer.HELD | Answer.LATER:
                self._due[run] = time.monotonic() + look.wait_ms / 1000
            case Answer.ENDED:
                await self._index.close(run)
            case Answer.GONE:
                if await self._now_ms() - accepted_ms > INDEX_GRACE_MS:
                    await self._index.close(run)
            case Answer.EXPIRED:
                await self._stopper.end(run, expired(), unless_held=True)
            case Answer.OVERDUE:
                await self._stopper.end(run, overdue())
            case Answer.USED_UP:
                await self._stopper.end(run, poisoned(), unless_held=True)
            case Answer.LOST:
                await self._stopper.end(run, interrupted(), unless_held=True)
            case _:
                self._due[run] = time.monotonic()

    async def _queue_again(self, ready: list[tuple[str, Look]]) -> None:
        """Queue those whose last job has left the queue for some time, or that have none."""
        waiting = await self._queue.waiting([look.job for _, look in ready if look.job])
        queued = dict(zip((run for run, look in ready if look.job), waiting, strict=True))
        now = time.monotonic()
        for run, look in ready:
            if queued.get(run):
                self._unqueued.pop(run, None)
            elif not look.job or now - self._unqueued.setdefault(run, now) >= JOB_LEFT_FOR:
                try:
                    await self._put(run, look.started)
                except BrokerFull as error:
                    run_log(log, run).warning("cannot be queued: %s", error)

    async def _put(self, run: str, started: bool) -> None:
        job = await self._log.note_job(run)
        if job is None:
            return
        self._unqueued.pop(run, None)
        time_ms = int(job.rpartition(":")[2])
        await self._queue.put(run, job, time_ms, JOB_LIFETIME_MS, restarted=started)
        run_log(log, run).info("queued again")
