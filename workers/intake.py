"""Takes runs off the queue: arq, as one task that is built again whenever it ends.

arq is the dispatcher and only that: its jobs claim a run and return. A slot is reserved before a
job leaves the queue. A wake-up list makes the start immediate; arq's own poll is the safety net.

What is used of arq beyond its documentation has a contract test each (`tests/workers/test_intake.py`):
`Worker.start_jobs`, `.tasks`, `._poll_iteration`, `.queue_read_limit`, `.allow_pick_jobs`,
`.in_progress_timeout_s`.
"""

from __future__ import annotations

import asyncio
import contextlib
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
POLL_TIMEOUT = 10.0
"""Seconds for one look at the queue; arq itself waits for ever on a Redis that does not answer."""

TAKEN_FOR = 4.0
"""Seconds after which a job that a lost worker took off the queue may be taken again."""

POLL_EVERY = 0.5
_WAKE_TIMEOUT = 1


class Intake:
    """Starts runs as long as slots are free."""

    def __init__(self, broker: Broker, slots: Slots, start: Start) -> None:
        self._broker = broker
        self._queue = jobs.Queue(broker)
        self._slots = slots
        self._start = start
        self._under_way: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Take runs until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._poll())
                group.create_task(self._wake())
        finally:
            await self._settled()

    async def _settled(self) -> None:
        """Wait for what is being claimed, so that a drain sees everything there is to carry."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLAIM_TIMEOUT):
                while self._under_way:
                    await asyncio.wait(self._under_way)

    async def _poll(self) -> None:
        """arq's own loop. It ends when Redis blinks; runs that are carried do not notice."""
        while True:
            worker = _SlotWorker(self._broker, self._slots, self._start, self._under_way)
            try:
                await worker.async_run()
            except asyncio.CancelledError:
                raise
            except Exception as error:  # whatever ends arq's loop, it is built again
                log.warning("the queue's loop ended (%s), building it again", type(error).__name__)
            await asyncio.sleep(random.uniform(0.3, 0.7))  # noqa: S311 - spreads load, guards nothing

    async def _wake(self) -> None:
        """Start what the wake-up list names, at once; several at a time."""
        while True:
            await self._slots.until_free()
            job = await self._next_wake()
            if job is None:
                continue
            if not self._slots.reserve():
                await self._hand_on(job)
                continue
            task = asyncio.create_task(self._start_woken(job))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)

    async def _start_woken(self, job: bytes) -> None:
        """Claim the run first, for that is what counts, and take its job off the queue behind it."""
        carried = False
        try:
            carried = await self._start(jobs.run_of(job))
            await self._queue.take_off(job)
        except BrokerError as error:
            log.warning("a job could not be taken: %s", error)
        finally:
            if not carried:
                self._slots.release()

    async def _next_wake(self) -> bytes | None:
        try:
            return await self._broker.pop(keys.READY, _WAKE_TIMEOUT)
        except BrokerError:
            await asyncio.sleep(random.uniform(0.1, 0.3))  # noqa: S311 - spreads load, guards nothing
            return None

    async def _hand_on(self, job: bytes) -> None:
        """The poll took the last slot meanwhile: let another worker have the hint."""
        try:
            await self._broker.calls([("LPUSH", keys.READY, job), ("EXPIRE", keys.READY, keys.READY_SECONDS)])
        except BrokerError as error:
            log.debug("a hint is lost: %s", error)


class _SlotWorker(Worker):
    """arq's worker, which takes a job only with a slot in hand."""

    def __init__(
        self, broker: Broker, slots: Slots, start: Start, under_way: set[asyncio.Task[None]]
    ) -> None:
        """`under_way` holds the tasks that claim."""

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
        self._under_way = under_way
        self._carried: set[str] = set()
        self._broken: Exception | None = None

    async def start_jobs(self, job_ids: list[bytes]) -> None:
        """Start those for which there is a slot."""
        for job_id in job_ids:
            if not self._slots.reserve():
                return
            await self.start_reserved(job_id)

    async def start_reserved(self, job_id: bytes) -> None:
        """Start one job on a slot that is reserved; a job that starts no run gives it back.

        When this fails, arq has counted a job that it does not run: its loop ends at the next poll.
        """
        key = job_id.decode(errors="replace")
        before = self.tasks.get(key)
        try:
            async with asyncio.timeout(CLAIM_TIMEOUT):
                await super().start_jobs([job_id])
        except Exception as error:
            self._broken = error
            raise
        finally:
            task = self.tasks.get(key)
            if task is None or task is before:
                self._slots.release()
            else:
                self._under_way.add(task)
                task.add_done_callback(lambda task: self._settle(key, task))

    async def _poll_iteration(self) -> None:
        if self._broken is not None:
            raise self._broken
        self.queue_read_limit = max(self._slots.free, 1)
        self.allow_pick_jobs = self._slots.free > 0
        async with asyncio.timeout(POLL_TIMEOUT):
            await super()._poll_iteration()

    def _settle(self, job_id: str, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if job_id in self._carried:
            self._carried.discard(job_id)
        else:
            self._slots.release()
