"""The running set: the runs this worker carries, from their claim to their end."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from shared.broker import patiently
from shared.conversations import Conversations
from shared.cursor import Cursor
from shared.endings import expired, interrupted, poisoned
from shared.errors import BffError, BrokerError, BrokerUnavailable
from shared.events import RunFailed, RunIds, RunStopped, Terminal
from shared.failpoints import failpoint
from shared.index import RunIndex
from shared.stopping import Stopper
from shared.stream_log import Answer, Claim, Log
from shared.telemetry import run_log
from workers.closing import Closing
from workers.outbox import Left, Outbox, StorageFull
from workers.relay import GivenBack, Line, Relay
from workers.slots import Slots
from workers.writer import Writer

log = logging.getLogger(__name__)

CLAIM_PATIENCE = 2.0
"""Seconds for which a claim without a reply is repeated; the same token gets the same claim."""

GIVE_BACK_PATIENCE = 2.0
"""Seconds for which handing a run back is repeated while Redis is out."""

VIEWERS_KNOWN_AFTER = 8.0
"""Seconds after an outage of Redis in which nothing is concluded from missing viewers: the gateways tell
about them every 5 s."""

SIDE_PATIENCE = 6.0
"""Seconds for which a worker that shuts down waits for calls on the side, such as an agent's stop."""

Aside = Callable[[Coroutine[Any, Any, None]], None]
Lines = Callable[[Claim, Callable[[RunIds], None], Aside], Line | None]
"""How the agent of a claimed run is reached; None when this worker does not know it."""


@dataclass
class _Running:
    claim: Claim
    outbox: Outbox
    relay: Relay | None = None
    task: asyncio.Task[None] | None = None


class RunningSet:
    """Claims runs, keeps their leases, hears their ends, and finishes or hands them back."""

    def __init__(
        self,
        log_: Log,
        index: RunIndex,
        stopper: Stopper,
        conversations: Conversations,
        lines: Lines,
        slots: Slots,
        *,
        renew_every: float,
        max_stream_bytes: int,
    ) -> None:
        self._log = log_
        self._index = index
        self._stopper = stopper
        self._conversations = conversations
        self._lines = lines
        self._slots = slots
        self._renew_every = renew_every
        self._max_stream_bytes = max_stream_bytes
        self._writer = Writer(log_, index, self._renew)
        self._running: dict[str, _Running] = {}
        self._closing = Closing(log_, index, self._writer)
        self._steady_since = -VIEWERS_KNOWN_AFTER
        self._side_tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._running)

    async def run(self) -> None:
        """Append, renew and look after what has ended, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._writer.run())
            group.create_task(self._renew_for_ever())
            group.create_task(self._closing.guard())

    async def start(self, run: str) -> bool:
        """Claim the run and carry it; its slot is released at its end.

        False when there is nothing to carry. Raises BrokerError.
        """
        token = secrets.token_hex(8)
        until = time.monotonic() + CLAIM_PATIENCE
        claim = await patiently(lambda: self._log.claim(run, token), until)
        if isinstance(claim, Answer):
            await self._refused(run, claim)
            return False
        failpoint("after_claim")
        outbox = Outbox(claim, self._writer.wake, limit_bytes=self._max_stream_bytes)
        running = _Running(claim, outbox)
        if (lost := self._running.get(run)) is not None:
            self._leave(lost, Left(Answer.FENCED))  # this process was frozen, and is its own successor
        self._running[run] = running
        running.task = asyncio.create_task(self._carry(running), name=f"run {run}")
        return True

    def hear_end(self, run: str) -> None:
        """Somebody else ended the run: stop its agent."""
        if running := self._running.get(run):
            self._leave(running, Left(Answer.ENDED))

    async def drain(self, grace: float) -> None:
        """Finish what runs; after `grace` seconds hand back what is left, by its policy."""
        tasks = [running.task for running in self._running.values() if running.task]
        if tasks:
            await asyncio.wait(tasks, timeout=grace)
        left = list(self._running.values())
        for running in left:
            self._leave(running, _Draining())
        if left:
            log.info("%d runs are handed back", len(left))
            await asyncio.wait([running.task for running in left if running.task], timeout=10)
        if self._side_tasks:
            await asyncio.wait(self._side_tasks, timeout=SIDE_PATIENCE)

    async def _carry(self, running: _Running) -> None:
        """One attempt. Never raises: whatever goes wrong becomes the run's end, and a line in the log."""
        run = running.claim.run
        tell = run_log(log, run)
        tell.info("attempt %d for agent %s", running.claim.attempt, running.claim.meta.get("agent"))
        try:
            terminal = await self._attempt(running)
            if terminal is not None:
                await self._closing.end(running.outbox, terminal, self._deadline(running.claim))
                tell.info("%s", terminal.type)
        except Left as left:
            tell.info("left: %s", left.answer.value)
        except _Draining:
            await self._hand_over(running)
        except BrokerError as error:
            tell.error("given up, Redis is out for too long: %s", error)
        except Exception:
            tell.exception("internal error")
            await self._finish_badly(running)
        finally:
            if self._running.get(run) is running:
                del self._running[run]
            self._slots.release()

    async def _attempt(self, running: _Running) -> Terminal | None:
        """The terminal event of this attempt, or None when the run was given back."""
        claim = running.claim
        if not claim.request:
            return RunFailed(code="interrupted", message="The request of this run was lost.", retryable=True)
        line = self._lines(claim, lambda ids: self._remember(claim, ids), self._aside)
        if line is None:
            return await self._unknown_agent(claim)
        running.relay = Relay(line, running.outbox, self._deadline(claim))
        try:
            return await running.relay.carry()
        except GivenBack as back:
            await self._give_back(claim, back.delay, counts=back.counts)
            return None
        except StorageFull:
            return RunFailed(code="storage_full", message="There is no memory left for this answer.")

    async def _unknown_agent(self, claim: Claim) -> Terminal | None:
        """Perhaps a worker with a newer configuration knows it: one more try, then the end."""
        if int(claim.meta["attempts"]) < 2:
            await self._give_back(claim, 0.5, counts=True)
            return None
        return RunFailed(code="config", message="No worker knows this agent.")

    async def _give_back(self, claim: Claim, delay: float, *, counts: bool) -> None:
        delay_ms = round(delay * 1000)
        await patiently(
            lambda: self._log.give_back(claim.run, claim.token, claim.attempt, delay_ms, counts),
            time.monotonic() + GIVE_BACK_PATIENCE,
        )

    async def _finish_badly(self, running: _Running) -> None:
        event = RunFailed(code="internal", message="Something went wrong inside the service.", retryable=True)
        try:
            await self._stopper.end(running.claim.run, event)
        except BrokerError:
            run_log(log, running.claim.run).error("its end could not be written; the sweep will")

    async def _hand_over(self, running: _Running) -> None:
        """This worker shuts down: another one takes the run, unless its policy says that it ends."""
        claim, outbox = running.claim, running.outbox
        restartable = claim.meta.get("repeatable") != "0" and (
            not outbox.visible or claim.meta.get("on_interrupt") == "restart"
        )
        try:
            if restartable:
                await self._give_back(claim, 0, counts=False)
            else:
                await self._stopper.end(claim.run, interrupted())
        except BrokerError as error:
            run_log(log, claim.run).warning("could not be handed back: %s", error)

    async def _refused(self, run: str, answer: Answer) -> None:
        match answer:
            case Answer.EXPIRED:
                await self._stopper.end(run, expired())
            case Answer.USED_UP:
                await self._stopper.end(run, poisoned())
            case _:
                run_log(log, run).info("not claimed: %s", answer.value)

    def _leave(self, running: _Running, reason: Exception) -> None:
        running.outbox.leave(reason)
        if running.relay is not None:
            running.relay.stop()

    def _remember(self, claim: Claim, ids: RunIds) -> None:
        conversation = claim.meta.get("conversation")
        if conversation and ids.conversation_id:
            meta = claim.meta
            self._aside(
                self._conversations.remember(meta["tenant"], meta["agent"], conversation, ids.conversation_id)
            )

    def _aside(self, work: Coroutine[Any, Any, None]) -> None:
        async def quietly() -> None:
            try:
                await work
            except BffError as error:
                log.warning("on the side: %s", error)

        task = asyncio.create_task(quietly())
        self._side_tasks.add(task)
        task.add_done_callback(self._side_tasks.discard)

    @staticmethod
    def _deadline(claim: Claim) -> float:
        """The run's deadline on the event loop's clock: attempts are numbered by Redis' time."""
        remaining_ms = int(claim.meta["run_by"]) - claim.attempt
        return asyncio.get_running_loop().time() + remaining_ms / 1000

    async def _renew_for_ever(self) -> None:
        while True:
            try:
                await self._renew()
                await asyncio.sleep(self._renew_every)
            except BrokerError as error:
                log.warning("leases could not be renewed: %s", error)
                self._steady_since = time.monotonic()
                await asyncio.sleep(0.2)

    async def _renew(self) -> None:
        """Renew all leases, and act on what the log says of each run."""
        running = [one for one in self._running.values() if not one.outbox.sealed]
        owners = [(one.claim.run, one.claim.token, one.claim.attempt) for one in running]
        for one, renewal in zip(running, await self._log.renew(owners), strict=True):
            if isinstance(renewal, BrokerUnavailable):
                raise renewal
            if isinstance(renewal, BrokerError):
                log.error("a lease could not be renewed: %s", renewal)
            elif renewal.answer is Answer.OK:
                self._check_last(one, renewal.last)
                await self._check_viewers(one, renewal.idle_ms)
            elif renewal.answer is Answer.GONE:
                self._steady_since = time.monotonic()
                await self._writer.restore(one.outbox)
            else:
                self._leave(one, Left(renewal.answer))

    def _check_last(self, running: _Running, last: Cursor) -> None:
        """Redis may have lost entries while the agent keeps silent."""
        if last < running.outbox.expected and running.outbox.idle:
            running.outbox.go_to(last)

    async def _check_viewers(self, running: _Running, idle_ms: int) -> None:
        meta = running.claim.meta
        if time.monotonic() - self._steady_since < VIEWERS_KNOWN_AFTER:
            return
        if meta.get("on_disconnect") in ("cancel", "linger") and idle_ms > int(meta.get("linger_ms", "0")):
            event = RunStopped(by="policy", reason="Nobody watches this run any more.")
            await self._stopper.end(running.claim.run, event)
            self.hear_end(running.claim.run)


class _Draining(Exception):
    """This worker shuts down."""
