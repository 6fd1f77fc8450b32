"""The log in this process' memory: an ordinary implementation, for tests and for understanding.

It keeps the same rules as the scripts in `shared/lua/`; one suite runs over both
(`tests/shared/test_stream_log.py`). `clock` gives milliseconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from shared.cursor import Cursor
from shared.errors import BrokerError
from shared.events import RunAccepted, dump
from shared.stream_log import (
    Answer,
    Append,
    Claim,
    Created,
    Entry,
    Finish,
    Look,
    NewRun,
    Renewal,
    Reply,
    opening,
    started_event,
)


@dataclass
class _Run:
    """One run's keys."""

    stream: list[Entry] = field(default_factory=list)
    meta: dict[str, str] = field(default_factory=dict)
    request: bytes | None = None
    lease: tuple[str, int] | None = None
    """The owner's token, and until when it holds."""
    viewers: dict[str, int] = field(default_factory=dict)

    @property
    def last(self) -> Cursor:
        return self.stream[-1].cursor


class MemoryLog:
    """Implements `shared.stream_log.Log`."""

    def __init__(
        self,
        clock: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        *,
        lease_ms: int = 5000,
        suspect_ms: int = 1500,
        viewer_ms: int = 15_000,
        max_attempts: int = 3,
    ) -> None:
        self._clock = clock
        self._lease_ms = lease_ms
        self._suspect_ms = suspect_ms
        self._viewer_ms = viewer_ms
        self._max_attempts = max_attempts
        self.server_id = "memory"
        self.runs: dict[str, _Run] = {}

    async def create(self, new: NewRun) -> Created:
        known = self.runs.get(new.run)
        if known is not None:
            return Created(False, known.meta.get("body", ""), end=known.meta.get("end", ""))
        now = self._clock()
        job = f"{new.run}:{now}"
        run = self.runs[new.run] = _Run(request=new.request)
        run.stream.append(Entry(Cursor(0, 1), RunAccepted.type, dump(new.accepted)))
        if new.queued is not None:
            run.stream.append(Entry(Cursor(0, 2), new.queued.type, dump(new.queued)))
        run.meta = {
            **new.meta,
            "body": new.body_hash,
            "accepted": str(now),
            "due": str(now),
            "job": job,
            "queue_by": str(now + new.queue_ms),
            "run_by": str(now + new.queue_ms + new.run_ms),
            "run_ms": str(new.run_ms),
            "tenant": new.tenant,
            "agent": new.agent,
            "retention_ms": str(new.retention_ms),
            "opening": opening(new),
        }
        return Created(True, new.body_hash, job, now)

    async def claim(self, run: str, token: str) -> Claim | Answer:
        found = self.runs.get(run)
        if found is None or ("end" not in found.meta and not found.stream):
            return Answer.GONE
        meta, now = found.meta, self._clock()
        if "end" in meta:
            return Answer.ENDED
        owner = self._owner(found)
        if owner is not None and (owner != token or meta.get("token") != token):
            return Answer.HELD
        if owner is None:
            if "due" not in meta:
                return Answer.HELD
            if int(meta["due"]) > now:
                return Answer.WAIT
            if "started" not in meta and now > int(meta["queue_by"]):
                return Answer.EXPIRED
            if int(meta.get("attempts", "0")) >= self._max_attempts:
                return Answer.USED_UP
            self._begin_attempt(found, token, now)
        attempt = int(meta["attempt"])
        return Claim(
            run=run,
            token=token,
            attempt=attempt,
            started=next(entry for entry in found.stream if entry.cursor == Cursor(attempt, 0)),
            request=found.request or b"",
            server_id=self.server_id,
            meta=dict(meta),
            head=tuple(entry for entry in found.stream if entry.cursor.attempt == 0),
        )

    async def append(self, appends: Sequence[Append]) -> list[Reply | BrokerError]:
        return [self._append(append) for append in appends]

    async def renew(self, owners: Sequence[tuple[str, str, int]]) -> list[Renewal | BrokerError]:
        return [self._renew(*owner) for owner in owners]

    async def finish(self, finish: Finish) -> Reply:
        run = self.runs.get(finish.run)
        if run is None:
            return Reply(Answer.GONE)
        if end := run.meta.get("end"):
            mine = run.meta.get("ended_by") == finish.token
            return Reply(Answer.OK if mine else Answer.ENDED, end)
        if not run.stream:
            return Reply(Answer.GONE)
        if finish.unless_held and self._owner(run) is not None:
            return Reply(Answer.HELD)
        if finish.expected is not None and run.last != finish.expected:
            assert finish.attempt is not None
            return _misplaced(run.last, finish.attempt, finish.expected)
        at = run.last.next()
        run.stream.append(Entry(at, finish.event.type, dump(finish.event)))
        job = run.meta.get("job", "")
        run.meta |= {"end": str(at), "end_type": finish.event.type, "ended_by": finish.token}
        self._forget(run, "due", "suspect", "job")
        run.lease = run.request = None
        return Reply(Answer.OK, str(at), job)

    async def give_back(self, run: str, token: str, attempt: int, delay_ms: int, counts: bool) -> Answer:
        found = self.runs.get(run)
        if found is None or ("end" not in found.meta and "attempt" not in found.meta):
            return Answer.GONE
        meta = found.meta
        if "end" in meta:
            return Answer.ENDED
        if (meta.get("token"), meta["attempt"]) != (token, str(attempt)):
            return Answer.FENCED
        found.lease = None
        meta["due"] = str(self._clock() + delay_ms)
        self._forget(found, "suspect", "job", "token")
        if not counts:
            meta["attempts"] = str(int(meta["attempts"]) - 1)
        return Answer.OK

    async def restore(self, claim: Claim, entries: Sequence[Entry], lifetime_ms: int) -> Answer:
        known = self.runs.get(claim.run)
        if known is not None and known.stream:
            return Answer.EXISTS
        if known is not None and "end" in known.meta:
            return Answer.ENDED
        if self.server_id == claim.server_id:
            return Answer.GONE
        run = self.runs[claim.run] = _Run([*claim.head, *entries], dict(claim.meta), claim.request)
        if any(entry.visible for entry in entries):
            run.meta["visible"] = "1"
        self._forget(run, "due", "suspect", "job")
        run.lease = (claim.token, self._clock() + self._lease_ms)
        return Answer.OK

    async def erase(self, run: str, tombstone_ms: int) -> Answer:
        found = self.runs.get(run)
        if found is None:
            return Answer.GONE
        self.runs[run] = _Run(meta={"tenant": found.meta["tenant"], "end": "deleted"})
        return Answer.OK

    async def look(self, runs: Sequence[str]) -> list[Look | BrokerError]:
        return [self._look(run) for run in runs]

    async def note_job(self, run: str) -> str | None:
        found = self.runs.get(run)
        if found is None or "end" in found.meta or "due" not in found.meta:
            return None
        found.meta["job"] = f"{run}:{self._clock()}"
        return found.meta["job"]

    async def watch(self, runs: Sequence[str], gateway: str) -> None:
        for name in runs:
            run = self.runs.get(name)
            if run is not None and "end" not in run.meta:
                run.viewers[gateway] = self._clock()

    async def leave(self, run: str, gateway: str) -> None:
        found = self.runs.get(run)
        if found is not None and "end" not in found.meta:
            found.viewers.pop(gateway, None)
            found.meta["left"] = str(self._clock())

    async def read(self, run: str, after: Cursor, count: int) -> list[Entry]:
        found = self.runs.get(run)
        return [entry for entry in found.stream if entry.cursor > after][:count] if found else []

    async def last(self, runs: Sequence[str]) -> list[Entry | None]:
        found = (self.runs.get(run) for run in runs)
        return [run.stream[-1] if run and run.stream else None for run in found]

    async def meta(self, runs: Sequence[str]) -> list[dict[str, str]]:
        return [dict(self.runs[run].meta) if run in self.runs else {} for run in runs]

    def _begin_attempt(self, run: _Run, token: str, now: int) -> None:
        meta = run.meta
        attempt = max(int(meta.get("attempt", "0")) + 1, run.last.attempt + 1, now)
        event = started_event(attempt, run.last, meta["opening"])
        run.stream.append(Entry(Cursor(attempt, 0), "run.started", event.encode()))
        run.lease = (token, now + self._lease_ms)
        meta |= {
            "attempt": str(attempt),
            "attempts": str(int(meta.get("attempts", "0")) + 1),
            "token": token,
            "opening_event": event,
        }
        if "started" not in meta:
            meta |= {"started": str(now), "run_by": str(now + int(meta["run_ms"]))}
        self._forget(run, "due", "suspect", "job")

    def _append(self, append: Append) -> Reply:
        run = self.runs.get(append.run)
        if run is not None and "end" in run.meta:
            return Reply(Answer.ENDED, run.meta["end"])
        if run is None or not run.stream:
            return Reply(Answer.GONE)
        if _given_back(run, append.attempt, append.token):
            return Reply(Answer.FENCED, str(run.last))
        if run.last != append.expected:
            return _misplaced(run.last, append.attempt, append.expected)
        run.stream.extend(append.entries)
        run.lease = (append.token, self._clock() + self._lease_ms)
        if run.meta.get("attempt") != str(append.attempt):
            attempts = str(int(run.meta.get("attempts", "0")) + 1)
            run.meta |= {"attempt": str(append.attempt), "token": append.token, "attempts": attempts}
            run.meta.setdefault("started", str(self._clock()))
        self._forget(run, "suspect", "due")
        if append.visible:
            run.meta["visible"] = "1"
        return Reply(Answer.OK)

    def _renew(self, name: str, token: str, attempt: int) -> Renewal:
        run = self.runs.get(name)
        if run is not None and "end" in run.meta:
            return Renewal(Answer.ENDED)
        if run is None or not run.stream:
            return Renewal(Answer.GONE)
        if run.last.attempt > attempt or _given_back(run, attempt, token):
            return Renewal(Answer.FENCED)
        now = self._clock()
        run.lease = (token, now + self._lease_ms)
        self._forget(run, "suspect", "due")
        youngest = max(run.viewers.values(), default=0)
        if now - youngest < self._viewer_ms:
            return Renewal(Answer.OK, run.last, -1)
        since = max(youngest, int(run.meta.get("left", "0")), int(run.meta["accepted"]))
        return Renewal(Answer.OK, run.last, now - since)

    def _look(self, name: str) -> Look:
        run = self.runs.get(name)
        if run is not None and "end" in run.meta:
            return Look(Answer.ENDED)
        if run is None or not run.stream:
            return Look(Answer.GONE)
        meta, now = run.meta, self._clock()
        started = "started" in meta
        if started and now > int(meta["run_by"]) + self._lease_ms:
            return Look(Answer.OVERDUE)
        if self._owner(run) is not None:
            assert run.lease is not None
            return Look(Answer.HELD, wait_ms=run.lease[1] - now)
        if "due" in meta:
            if not started and now > int(meta["queue_by"]):
                return Look(Answer.EXPIRED)
            if int(meta["due"]) > now:
                return Look(Answer.LATER, wait_ms=int(meta["due"]) - now)
            return Look(Answer.READY, job=meta.get("job", ""), started=started)
        return self._suspect(run, now)

    def _suspect(self, run: _Run, now: int) -> Look:
        """An attempt is under way and nobody holds it."""
        meta = run.meta
        suspect = meta.setdefault("suspect", str(now))
        if now - int(suspect) < self._suspect_ms:
            return Look(Answer.SUSPECT)
        if int(meta.get("attempts", "0")) >= self._max_attempts:
            return Look(Answer.USED_UP)
        shown = "visible" in meta and meta.get("on_interrupt") != "restart"
        if shown or meta.get("repeatable") == "0" or run.request is None:
            return Look(Answer.LOST)
        meta["due"] = str(now)
        self._forget(run, "suspect", "job")
        return Look(Answer.READY, started=True)

    def _owner(self, run: _Run) -> str | None:
        if run.lease is not None and run.lease[1] <= self._clock():
            run.lease = None
        return run.lease[0] if run.lease else None

    @staticmethod
    def _forget(run: _Run, *names: str) -> None:
        for name in names:
            run.meta.pop(name, None)


def _given_back(run: _Run, attempt: int, token: str) -> bool:
    """Whether the attempt is the newest one, but its owner has let it go."""
    return run.meta.get("attempt") == str(attempt) and run.meta.get("token") != token


def _misplaced(last: Cursor, attempt: int, expected: Cursor) -> Reply:
    """What a writer that expects another newest id is told."""
    if last.attempt > attempt:
        return Reply(Answer.FENCED, str(last))
    if last.attempt < attempt:
        return Reply(Answer.REWIND, str(last))
    ahead = expected.attempt != attempt or last.seq > expected.seq
    return Reply(Answer.DUP if ahead else Answer.REWIND, str(last))
