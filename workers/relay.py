"""One run, told from start to end: the agent's frames become events, and events wait in the outbox."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from shared.config import Timeouts
from shared.errors import AgentError, AgentProtocolError, AgentRejected, AgentUnavailable, ConfigError
from shared.events import RunCompleted, RunFailed, RunIds, RunStopped, Terminal
from shared.sse import FrameTooLarge, ServerSentEvent
from workers.agents.base import AgentStream
from workers.dialects.base import AgentDialect
from workers.outbox import Outbox
from workers.watch import Watch

LONGEST_WAIT = 5.0
"""Seconds slept within an attempt; for a longer Retry-After the run is given back."""

TRIES = 5
"""Requests within one attempt while the agent cannot be reached."""


class GivenBack(Exception):
    """The run goes on in another attempt: the agent asks for a pause that is better spent outside of a
    slot, or has begun and must begin again. `delay` in seconds; `counts` when it is an attempt used up."""

    def __init__(self, delay: float, *, counts: bool) -> None:
        super().__init__(f"again in {delay:g} s")
        self.delay = delay
        self.counts = counts


@dataclass(frozen=True)
class Line:
    """How the agent of a run is reached and spoken to; both are made anew for each try."""

    dialect: Callable[[], AgentDialect]
    connect: Callable[[AgentDialect], AgentStream]
    timeouts: Timeouts
    repeatable: bool
    secrets: tuple[str, ...]
    """What an agent was given and might repeat in an error: it is taken out."""
    remember: Callable[[RunIds], None]
    """Told the agent's own ids."""
    aside: Callable[[Coroutine[Any, Any, None]], None]
    """Does what the end of the run does not wait for."""


class Relay:
    """Carries one attempt. `run_deadline` is a time of the event loop's clock."""

    def __init__(self, line: Line, outbox: Outbox, run_deadline: float) -> None:
        self._line = line
        self._outbox = outbox
        self._run_deadline = run_deadline
        self._reading: asyncio.Timeout | None = None
        self._stopped = asyncio.Event()

    async def carry(self) -> Terminal:
        """Put all events but the terminal one into the outbox, and give that one back.

        Raises GivenBack, and whatever the outbox was left with.
        """
        try:
            for attempt in range(TRIES):
                try:
                    return await self._converse()
                except AgentUnavailable as error:
                    await self._pause(error, attempt)
            raise AssertionError("the last try raises")
        except FrameTooLarge as error:
            return RunFailed(code="too_large", message=f"The agent's answer cannot be read: {error}.")
        except AgentError as error:
            message = self._without_secrets(str(error))
            code = None if error.agent_code is None else str(error.agent_code)
            return RunFailed(code=error.code, message=message, retryable=error.retryable, agent_code=code)
        except ConfigError as error:
            return RunFailed(code="config", message=str(error))

    def stop(self) -> None:
        """Leave the agent now; what was put in stays."""
        self._stopped.set()
        self._interrupt()

    async def _converse(self) -> Terminal:
        """Ask the agent once and carry its answer."""
        dialect = self._line.dialect()
        stream = self._line.connect(dialect)
        try:
            await self._read(stream, dialect)
        except (AgentUnavailable, AgentRejected):
            raise
        except Exception:
            self._line.aside(stream.stop())
            raise
        return self._close(dialect)

    async def _read(self, stream: AgentStream, dialect: AgentDialect) -> None:
        """Put in what the agent says. Raises AgentError, and whatever the outbox was left with."""
        watch = Watch(self._line.timeouts, self._run_deadline, self._interrupt)
        try:
            async with asyncio.timeout(None) as self._reading, stream as batches:
                async for batch in batches:
                    self._take(batch, dialect, watch)
                    if dialect.closed:
                        return
                    await self._outbox.room()
        except TimeoutError:
            self._outbox.check()
            if watch.expired is not None:
                raise watch.expired from None
        finally:
            watch.close()
            self._reading = None

    def _interrupt(self) -> None:
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.reschedule(0)

    def _without_secrets(self, message: str) -> str:
        for secret in self._line.secrets:
            message = message.replace(secret, "***")
        return message

    def _take(self, batch: list[ServerSentEvent], dialect: AgentDialect, watch: Watch) -> None:
        came = False
        for frame in batch:
            for event in dialect.map(frame):
                came = True
                if isinstance(event, RunIds):
                    self._line.remember(event)
                self._outbox.put(event)
        if came:
            watch.progress()
        if dialect.complete:
            watch.end_seen()

    def _close(self, dialect: AgentDialect) -> Terminal:
        """What the dialect still owes, and its terminal event."""
        for event in dialect.finish():
            if isinstance(event, RunCompleted | RunFailed | RunStopped):
                return event
            self._outbox.put(event)
        raise AgentProtocolError("The agent's answer has no end.")

    async def _pause(self, error: AgentUnavailable, tries: int) -> None:
        """Wait before the agent is asked again. Raises `error` when it must not be, or GivenBack."""
        self._outbox.check()
        last = tries + 1 == TRIES
        if last or self._outbox.visible or not self._line.repeatable or self._stopped.is_set():
            raise error
        pause = error.retry_after
        if pause is None:
            pause = 0.25 * 2**tries * random.uniform(0.5, 1.5)  # noqa: S311 - spreads load
        if asyncio.get_running_loop().time() + pause > self._run_deadline:
            raise error
        if not self._outbox.untouched:
            raise GivenBack(pause, counts=True)
        if pause > LONGEST_WAIT:
            raise GivenBack(pause, counts=False)
        try:
            async with asyncio.timeout(pause):
                await self._stopped.wait()
        except TimeoutError:
            return
        self._outbox.check()
