"""The end of a run: its terminal event, written behind everything else and looked after until it is safe."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass

from shared.broker import patiently
from shared.errors import BrokerError
from shared.events import RunFailed, Terminal
from shared.failpoints import failpoint
from shared.index import RunIndex
from shared.stream_log import Answer, Entry, Finish, Log
from shared.telemetry import run_log
from workers.outbox import Left, Outbox, StorageFull
from workers.writer import Writer

log = logging.getLogger(__name__)

KEPT = 5.0
"""Seconds for which an ended run is kept, in case Redis loses its end."""

OUTAGE_PATIENCE = 60.0
"""Seconds beyond a run's deadline for which its end waits for Redis."""

_LOOK_EVERY = 1.0


@dataclass(frozen=True)
class _Ended:
    outbox: Outbox
    terminal: Terminal
    at: float


class Closing:
    """Ends runs, and writes an end again that Redis lost soon after."""

    def __init__(self, log_: Log, index: RunIndex, writer: Writer) -> None:
        self._log = log_
        self._index = index
        self._writer = writer
        self._ended: dict[str, _Ended] = {}

    async def end(self, outbox: Outbox, terminal: Terminal, deadline: float) -> None:
        """Write the terminal event behind everything else; it is repeated until it is there.

        `deadline` is the run's, on the event loop's clock. Raises Left when the run is not ours any
        more, BrokerError when Redis is out for too long.
        """
        remaining = max(deadline - asyncio.get_running_loop().time(), 0)
        await self._write(outbox, terminal, time.monotonic() + remaining + OUTAGE_PATIENCE)
        self._ended[outbox.claim.run] = _Ended(outbox, terminal, time.monotonic())
        await self._index.close(outbox.claim.run)

    async def guard(self) -> None:
        """Look whether the ends of the last seconds are still there, until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            kept = list(self._ended.values())
            try:
                newest = await self._log.last([one.outbox.claim.run for one in kept])
                for one, entry in zip(kept, newest, strict=True):
                    await self._check(one, entry)
            except BrokerError as error:
                log.info("ended runs could not be looked at: %s", error)

    async def _check(self, one: _Ended, newest: Entry | None) -> None:
        run = one.outbox.claim.run
        if newest is not None and newest.cursor >= one.outbox.expected:
            if time.monotonic() - one.at > KEPT:
                del self._ended[run]
            return
        one.outbox.go_to(newest.cursor if newest else one.outbox.entries[-1].cursor)
        try:
            await self._write(one.outbox, one.terminal, time.monotonic() + KEPT)
            run_log(log, run).warning("Redis had lost its end; it is there again")
        except (Left, StorageFull) as left:
            run_log(log, run).info("its end is left as it is: %s", left)
            del self._ended[run]

    async def _write(self, outbox: Outbox, terminal: Terminal, until: float) -> None:
        claim = outbox.claim
        out_of_memory = isinstance(terminal, RunFailed) and terminal.code == "storage_full"
        while True:
            if not out_of_memory:
                await outbox.flushed()
            failpoint("before_finish")
            finish = Finish(claim.run, claim.token, terminal, claim.attempt, outbox.expected)
            reply = await patiently(lambda finish=finish: self._log.finish(finish), until)  # type: ignore[misc]  # mypy cannot infer a lambda with a default
            match reply.answer:
                case Answer.OK:
                    break
                case Answer.DUP | Answer.REWIND:
                    outbox.go_to(reply.last)
                case Answer.GONE:
                    await self._writer.restore(outbox)
                    outbox.check()
                case _:
                    raise Left(reply.answer)
        failpoint("after_finish")
        outbox.seal(reply.last)
