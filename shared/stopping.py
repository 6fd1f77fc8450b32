"""End a run from anywhere, and hear that it was ended.

Stop is a write, not a message: `finish` puts the terminal event into the stream, so that viewers
have it even when the worker is frozen. The word on the channel only spares the worker the wait
until its next append or renewal, which would say ENDED.
"""

from __future__ import annotations

import secrets

from shared import keys
from shared.broker import Broker
from shared.events import Terminal
from shared.index import RunIndex
from shared.jobs import Queue
from shared.stream_log import Answer, Finish, Log, Reply


class Stopper:
    """Writes the end of runs on behalf of clients, policies and the sweep."""

    def __init__(self, log: Log, index: RunIndex, queue: Queue, broker: Broker) -> None:
        self._log = log
        self._index = index
        self._queue = queue
        self._broker = broker

    async def end(self, run: str, event: Terminal, *, unless_held: bool = False) -> Reply:
        """End the run unless it has ended: OK, ENDED with the terminal id, HELD or GONE."""
        reply = await self._log.finish(Finish(run, secrets.token_hex(8), event, unless_held=unless_held))
        if reply.answer in (Answer.OK, Answer.ENDED):
            await self._index.close(run)
        if reply.answer is Answer.OK:
            await self._broker.call("PUBLISH", keys.STOPS, run)
        if reply.job:
            await self._queue.take_off(reply.job.encode())
        return reply
