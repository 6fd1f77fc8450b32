"""The deadlines of one attempt: a single timer that tells the agent's stream to end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from shared.config import Timeouts
from shared.errors import AgentTimeout

AFTER_END = 10.0
"""Seconds for which a body is read on after the agent's own end marker."""


class Watch:
    """Runs out when an event is overdue, or the run as a whole. Only events count, pings do not.

    `stop` is called once, from the event loop. The timer looks at the clock again when it fires, so
    that an event costs no more than an assignment.
    """

    def __init__(self, timeouts: Timeouts, run_deadline: float, stop: Callable[[], None]) -> None:
        """`run_deadline` is a time of the event loop's clock."""
        self._timeouts = timeouts
        self._loop = asyncio.get_running_loop()
        self._stop = stop
        self._run_deadline = run_deadline
        self._due = self._loop.time() + timeouts.first_event
        self._begun = False
        self._ended = False
        self._timer = self._loop.call_at(self._next(), self._fire)
        self.expired: AgentTimeout | None = None
        """Why the attempt has to end, if it has."""

    def progress(self) -> None:
        """An event came."""
        if self._ended:
            return
        self._due = self._loop.time() + self._timeouts.progress
        if not self._begun:
            self._begun = True
            self._set_timer()  # the time between events may be shorter than that to the first one

    def end_seen(self) -> None:
        """The agent's end marker came: what follows is waited for only a short while."""
        if not self._ended:
            self._ended = True
            self._due = self._loop.time() + AFTER_END
            self._set_timer()

    def close(self) -> None:
        """The attempt is over."""
        self._timer.cancel()

    def _set_timer(self) -> None:
        self._timer.cancel()
        self._timer = self._loop.call_at(self._next(), self._fire)

    def _next(self) -> float:
        return min(self._due, self._run_deadline)

    def _fire(self) -> None:
        now = self._loop.time()
        if now < self._next():
            self._timer = self._loop.call_at(self._next(), self._fire)
            return
        if not self._ended:
            self.expired = AgentTimeout(self._reason(now))
        self._stop()

    def _reason(self, now: float) -> str:
        if now >= self._run_deadline:
            return "The run was not finished by its deadline."
        if not self._begun:
            return f"The agent sent nothing for {self._timeouts.first_event:g} s."
        return f"The agent sent nothing more for {self._timeouts.progress:g} s."
