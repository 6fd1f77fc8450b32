"""What is stored about a run beside its events, and whose it is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from gateway.auth import Caller
from shared.errors import RequestError
from shared.stream_log import Log

STATES = ("queued", "running", "completed", "failed", "stopped")

_RUN = re.compile(r"[0-9a-f]{32}", re.ASCII)


@dataclass(frozen=True)
class RunRecord:
    """A run's fields. Times in milliseconds since 1970; `end` is the id of the terminal event."""

    run: str
    tenant: str
    agent: str
    state: str
    accepted_ms: int
    started_ms: int | None = None
    ended_ms: int | None = None
    conversation: str | None = None
    end: str | None = None
    attempts: int = 0

    @property
    def ended(self) -> bool:
        return self.end is not None

    def to_json(self) -> dict[str, object]:
        """What a list of runs says of it."""
        return {
            "id": self.run,
            "agent": self.agent,
            "status": self.state,
            "conversation": self.conversation,
            "attempts": self.attempts,
            "accepted_at": _time(self.accepted_ms),
            "started_at": _time(self.started_ms),
            "ended_at": _time(self.ended_ms),
            "events_url": events_url(self.run),
        }


class Records:
    """Finds the records of runs for those who may see them."""

    def __init__(self, log: Log) -> None:
        self._log = log

    async def one(self, caller: Caller, run: str) -> RunRecord:
        """The caller's own run. Raises RequestError: 404 alike for unknown and foreign, 410 when erased."""
        fields = (await self._log.meta([run]))[0] if _RUN.fullmatch(run) else {}
        if fields.get("tenant") != caller.tenant or (caller.run is not None and caller.run != run):
            raise unknown_run()
        if fields.get("end") == "deleted":
            raise RequestError(410, "erased", "this run was erased")
        return record(run, fields)

    async def some(self, caller: Caller, runs: Sequence[str]) -> list[RunRecord]:
        """Those of `runs` that are the caller's and still there, in order."""
        metas = await self._log.meta(runs)
        return [
            record(run, fields)
            for run, fields in zip(runs, metas, strict=True)
            if fields.get("tenant") == caller.tenant and fields.get("end") != "deleted"
        ]


def record(run: str, fields: Mapping[str, str]) -> RunRecord:
    """Read the stored fields."""
    ended, started = fields.get("end"), fields.get("started")
    state = fields.get("end_type", "").removeprefix("run.") if ended else "running" if started else "queued"
    return RunRecord(
        run=run,
        tenant=fields["tenant"],
        agent=fields["agent"],
        state=state,
        accepted_ms=int(fields.get("accepted", 0)),
        started_ms=int(started) if started else None,
        ended_ms=int(fields["ended"]) if "ended" in fields else None,
        conversation=fields.get("conversation"),
        end=ended,
        attempts=int(fields.get("attempts", 0)),
    )


def events_url(run: str) -> str:
    """Where a run's events are."""
    return f"/v1/runs/{run}/events"


def unknown_run() -> RequestError:
    """The one answer for a run that is not there and for one that is somebody else's."""
    return RequestError(404, "unknown_run", "there is no such run; it may have expired")


def _time(ms: int | None) -> str | None:
    return None if ms is None else datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")
