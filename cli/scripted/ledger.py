"""What was asked of the scripted agent server, and how each call ended."""

from __future__ import annotations

import time
from collections import Counter, deque
from typing import Any, Literal

import msgspec

from cli.scripted.http import Connection
from cli.scripted.vendor import Question

_KEPT_CALLS = 20_000

Ending = Literal["agent", "client", "stopped", "fault", "refused"]


class Call(msgspec.Struct):
    """One call. Times are Unix seconds; `ended_by` says who ended it."""

    number: int
    script: str
    route: str
    began: float
    prompt: str = ""
    user: str = ""
    task: str = ""
    ended: float | None = None
    ended_by: Ending | None = None
    bytes_sent: int = 0

    def ask(self, question: Question) -> None:
        """Note what the call asks."""
        self.prompt, self.user, self.task = question.prompt, question.user, question.task


class Ledger:
    """Counts of calls (all, by script) and of connections that carry them."""

    def __init__(self) -> None:
        self._calls: deque[Call] = deque(maxlen=_KEPT_CALLS)
        self._callers: set[Connection] = set()
        self._total: Counter[str] = Counter()
        self._open: Counter[str] = Counter()
        self._max_open: Counter[str] = Counter()
        self._max_all = 0
        self._max_connections = 0
        self.stops = 0

    def begin(self, script: str, route: str, connection: Connection) -> Call:
        """Open a call."""
        call = Call(self._total.total() + 1, script, route, time.time())
        self._calls.append(call)
        self._total[script] += 1
        self._open[script] += 1
        self._max_open[script] = max(self._max_open[script], self._open[script])
        self._max_all = max(self._max_all, self._open.total())
        self._callers.add(connection)
        self._max_connections = max(self._max_connections, self._connections())
        return call

    def end(self, call: Call, by: Ending) -> None:
        """Close a call."""
        call.ended, call.ended_by = time.time(), by
        self._open[call.script] -= 1

    def stats(self) -> dict[str, Any]:
        """The counts and the calls, as plain values."""
        scripts = {
            name: {"open": self._open[name], "max_open": self._max_open[name], "calls": total}
            for name, total in self._total.items()
        }
        return {
            "open": self._open.total(),
            "max_open": self._max_all,
            "connections": self._connections(),
            "max_connections": self._max_connections,
            "total": self._total.total(),
            "stops": self.stops,
            "scripts": scripts,
            "calls": [msgspec.to_builtins(call) for call in self._calls],
        }

    def _connections(self) -> int:
        self._callers = {connection for connection in self._callers if connection.is_open}
        return len(self._callers)
