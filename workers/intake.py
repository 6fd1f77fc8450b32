"""Takes runs off the queue: arq, as one task that is built again whenever it ends.

arq is the dispatcher and only that: its jobs claim a run and return. A slot is reserved before a
job leaves the queue. A wake-up list makes the start immediate; arq's own poll is the safety net.

What is used of arq beyond its documentation has a contract test each (`tests/workers/test_intake.py`):
`Worker.start_jobs`, `.tasks`, `._poll_iteration`, `.queue_read_limit`, `.allow_pick_jobs`,
`.in_progress_timeout_s`.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Any

from arq.connections import ArqRedis
from arq.worker import Worker, func

from shared import jobs, keys
from shared.broker import Broker
from shared.errors import BrokerError
from workers.slots import Slots

log = logging.getLogger(__name__)

Start = Callable[[str], Awaitable[bool]]
"""Claims a run and carries it; False when there is nothing to carry."""

CLAIM_TIMEOUT = 5.0
TAKEN_FOR = 4.0
"""Seconds after which a job that a lost worker took off the queue may be taken again."""

POLL_EVERY = 0.5
_WAKE_TIMEOUT = 1


class Intake:
    """Starts runs as long as slots are free."""

    def __init__(self, broker: Broker, slots: Slots, start: Start) -> None:
        self._broker = broker
        self._slots = slots
        self._start = start
        self._worker: _SlotWorker | None = None
        self._starting: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Take runs until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._poll())
                group.create_task(self._wake())
        finally:
            await self._started()

    async def _started(self) -> None:
        """Wait until what is being claimed is carried, so that a worker that shuts down knows of it."""
        if self._starting:
            await asyncio.wait(self._starting)
        if claims := [task for worker in self._workers for task in worker.tasks.values()]:
            await asyncio.wait(claims)

    async def _poll(self) -> None:
        """arq's own loop. It ends when Redis blinks; runs that are carried do not notice."""
        while True:
            self._worker = _SlotWorker(self._broker, self._slots, self._start)
            try:
                await self._worker.async_run()
            except asyncio.CancelledError:
                raise
            except Exception as error:  # whatever ends arq's loop, it is built again
                log.warning("the queue's loop ended (%s), building it again", type(error).__name__)
            finally:
                self._worker = None
            await asyncio.sleep(random.uniform(0.3, 0.7))  # noqa: S311 - spreads load, guards nothing

    async def _wake(self) -> None:
        """Start what the wake-up list names, at once; several at a time."""
        while True:
            await self._slots.until_free()
            if not self._slots.reserve():
                continue
            job = await self._next_wake()
            worker = self._worker
            if job is None or worker is None:
                self._slots.release()
                continue
            task = asyncio.create_task(worker.start_reserved(job))
            self._starting.add(task)
            task.add_done_callback(self._starting.discard)

    async def _next_wake(self) -> bytes | None:
        try:
            row = await self._broker.call("BLPOP", keys.READY, _WAKE_TIMEOUT)
        except BrokerError:
            await asyncio.sleep(random.uniform(0.1, 0.3))  # noqa: S311 - spreads load, guards nothing
            return None
        return None if row is None else row[1]


class _SlotWorker(Worker):
    """arq's worker, which takes a job only with a slot in hand."""

    def __init__(self, broker: Broker, slots: Slots, start: Start) -> None:
        async def claim_run(ctx: dict[str, Any], run: str) -> None:
            if await start(run):
                self._carried.add(ctx["job_id"])

        pool = ArqRedis(
            broker.client.connection_pool,
            job_serializer=jobs.dumps,
            job_deserializer=jobs.loads,
            default_queue_name=keys.QUEUE,
        )
        super().__init__(
            functions=[func(claim_run, name=jobs.FUNCTION)],
            queue_name=keys.QUEUE,
            redis_pool=pool,
            handle_signals=False,
            max_jobs=slots.limit,
            max_tries=1,
            retry_jobs=False,
            keep_result=0,
            job_timeout=CLAIM_TIMEOUT,
            poll_delay=POLL_EVERY,
            job_serializer=jobs.dumps,
            job_deserializer=jobs.loads,
            log_results=False,
        )
        self.in_progress_timeout_s = TAKEN_FOR
        self._slots = slots
        self._carried: set[str] = set()

    async def start_jobs(self, job_ids: list[bytes]) -> None:
        """Start those for which there is a slot."""
        for job_id in job_ids:
            if not self._slots.reserve():
                return
            await self.start_reserved(job_id)

    async def start_reserved(self, job_id: bytes) -> None:
        """Start one job on a slot that is reserved; a job that starts no run gives it back."""
        key = job_id.decode()
        before = self.tasks.get(key)
        try:
            await super().start_jobs([job_id])
        finally:
            task = self.tasks.get(key)
            if task is None or task is before:
                self._slots.release()
            else:
                task.add_done_callback(lambda _: self._settle(key))

    async def _poll_iteration(self) -> None:
        self.queue_read_limit = max(self._slots.free, 1)
        self.allow_pick_jobs = self._slots.free > 0
        await super()._poll_iteration()

    def _settle(self, job_id: str) -> None:
        if job_id in self._carried:
            self._carried.discard(job_id)
        else:
            self._slots.release()
