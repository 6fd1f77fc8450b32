"""The log of every run: the only place that knows Redis Streams.

A stream holds one event an entry, with ids `<attempt>-<seq>` that are dense within an attempt.
Redis refuses an id that is not above the last, so ids are fencing tokens and idempotency keys at
once; the lease only tells that a worker lives. All writes are Lua scripts (`shared/lua/`), which
check first and then write, so that nothing is half done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple, Protocol

import msgspec
import orjson

from shared import cursor, keys
from shared.broker import Broker, ScriptCall, load_script, raised
from shared.cursor import Cursor
from shared.errors import BrokerError, WrongType
from shared.events import EVENT_TYPES, TERMINAL_TYPES, Event, RunStarted, dump, load


class Answer(StrEnum):
    """What a script says. Which ones a call can give stands at the call."""

    OK = "OK"
    CREATED = "CREATED"
    EXISTS = "EXISTS"
    CLAIMED = "CLAIMED"
    DUP = "DUP"
    """The newest entry is one this writer has sent already: go on after it."""
    REWIND = "REWIND"
    """Redis lost entries of this writer: send them again, same ids, same bytes."""
    FENCED = "FENCED"
    """A newer attempt writes: stop, close the agent, write nothing."""
    ENDED = "ENDED"
    """The run has its terminal event: stop, close the agent, write nothing."""
    GONE = "GONE"
    """There is no such stream."""
    HELD = "HELD"
    """A worker is on it."""
    WAIT = "WAIT"
    LATER = "LATER"
    SUSPECT = "SUSPECT"
    READY = "READY"
    EXPIRED = "EXPIRED"
    OVERDUE = "OVERDUE"
    USED_UP = "USED_UP"
    LOST = "LOST"


_ANSWERS = {answer.encode(): answer for answer in Answer}


class Entry:
    """One event in the log; `event` is decoded when first asked for."""

    __slots__ = ("_event", "cursor", "data", "type")

    def __init__(self, at: Cursor, event_type: str, data: bytes, event: Event | None = None) -> None:
        self.cursor = at
        self.type = event_type
        self.data = data
        self._event = event

    @property
    def event(self) -> Event | None:
        """The event, or None when this version does not know its type or the data does not fit it."""
        if self._event is None:
            with suppress(msgspec.DecodeError):
                self._event = load(self.type, self.data)
        return self._event

    @property
    def terminal(self) -> bool:
        """Whether it ends the stream."""
        return self.type in TERMINAL_TYPES

    @property
    def visible(self) -> bool:
        """Whether a person sees it."""
        known = EVENT_TYPES.get(self.type)
        return known is not None and known.visible

    @property
    def size(self) -> int:
        """Bytes it takes, about."""
        return len(self.data) + len(self.type) + 32

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Entry) and (self.cursor, self.type, self.data) == (
            other.cursor,
            other.type,
            other.data,
        )

    def __repr__(self) -> str:
        return f"Entry({self.cursor}, {self.type}, {self.data.decode()})"


@dataclass(frozen=True)
class NewRun:
    """Everything `create` stores. Durations in milliseconds, `meta` are further plain fields."""

    run: str
    tenant: str
    agent: str
    body_hash: str
    accepted: Event
    queued: Event | None
    request: bytes
    queue_ms: int
    run_ms: int
    retention_ms: int
    meta: Mapping[str, str]
    model: str | None = None


class Created(NamedTuple):
    """`new` is false when the run was there before; then `body_hash` is the stored one."""

    new: bool
    body_hash: str
    job: str = ""
    time_ms: int = 0
    end: str = ""


@dataclass(frozen=True)
class Claim:
    """An attempt that is ours: the entry that began it, the prompt, the run's meta.

    `head` are the entries before any attempt, `server_id` tells whether Redis is still the same:
    both are wanted when it loses its data.
    """

    run: str
    token: str
    attempt: int
    started: Entry
    request: bytes
    server_id: str
    meta: Mapping[str, str]
    head: tuple[Entry, ...]


class Reply(NamedTuple):
    """A script's answer, and the id that came with it; `job` is one that still stood for an ended run."""

    answer: Answer
    detail: str = ""
    job: str = ""

    @property
    def last(self) -> Cursor:
        """The newest id that came with the answer."""
        return cursor.parse(self.detail)


class Renewal(NamedTuple):
    """`idle_ms`: since the last viewer left, -1 while somebody watches."""

    answer: Answer
    last: Cursor = cursor.START
    idle_ms: int = -1


class Look(NamedTuple):
    """What the sweep sees. `wait_ms` until it is worth looking again; `job` the run's last job."""

    answer: Answer
    wait_ms: int = 0
    job: str = ""
    started: bool = False


@dataclass(frozen=True)
class Append:
    """Entries of one attempt, to stand right behind `expected`; `visible` when the log has to learn that
    something was shown."""

    run: str
    token: str
    attempt: int
    expected: Cursor
    entries: Sequence[Entry]
    visible: bool


@dataclass(frozen=True)
class Finish:
    """The terminal event. A relay names its attempt and the id it expects; everybody else does not.

    `token` makes a repetition harmless. With `unless_held` a run that has a living worker is left alone.
    """

    run: str
    token: str
    event: Event
    attempt: int | None = None
    expected: Cursor | None = None
    unless_held: bool = False


class Log(Protocol):
    """What the log can do, whatever it is made of. Every call may raise BrokerError."""

    async def create(self, new: NewRun) -> Created:
        """Begin a run, or find that it was begun before."""
        ...

    async def claim(self, run: str, token: str) -> Claim | Answer:
        """Begin an attempt.

        Refusals: ENDED, HELD, WAIT, EXPIRED, USED_UP, GONE. The same token again gets the same claim.
        """
        ...

    async def append(self, appends: Sequence[Append]) -> list[Reply | BrokerError]:
        """Add entries to several streams: OK, DUP, REWIND, FENCED, ENDED or GONE, each on its own."""
        ...

    async def renew(self, owners: Sequence[tuple[str, str, int]]) -> list[Renewal | BrokerError]:
        """Say that (run, token, attempt) live: OK, FENCED, ENDED or GONE."""
        ...

    async def finish(self, finish: Finish) -> Reply:
        """End a run: OK with the terminal id, DUP, REWIND, FENCED, ENDED, HELD or GONE."""
        ...

    async def give_back(self, run: str, token: str, attempt: int, delay_ms: int, counts: bool) -> Answer:
        """Let another worker have the run, in `delay_ms` at the earliest: OK, FENCED, ENDED or GONE."""
        ...

    async def restore(self, claim: Claim, entries: Sequence[Entry], lifetime_ms: int) -> Answer:
        """Write a stream again that Redis lost with its data, from the claim's head and the attempt's
        entries: OK, EXISTS, ENDED or GONE."""
        ...

    async def erase(self, run: str, tombstone_ms: int) -> Answer:
        """Delete a run but for a tombstone: OK or GONE."""
        ...

    async def look(self, runs: Sequence[str]) -> list[Look | BrokerError]:
        """See what open runs need; marks those without a worker as suspect."""
        ...

    async def note_job(self, run: str) -> str | None:
        """The id for a new job of a run that waits for a worker, or None if it does not."""
        ...

    async def watch(self, runs: Sequence[str], gateway: str) -> None:
        """Say that `gateway` has viewers of these runs."""
        ...

    async def leave(self, run: str, gateway: str) -> None:
        """Say that the last viewer of the run at `gateway` has gone."""
        ...

    async def read(self, run: str, after: Cursor, count: int) -> list[Entry]:
        """At most `count` entries behind `after`, in order."""
        ...

    async def last(self, runs: Sequence[str]) -> list[Entry | None]:
        """The newest entry of each run, None where there is no stream."""
        ...

    async def meta(self, runs: Sequence[str]) -> list[dict[str, str]]:
        """The stored fields of each run, empty where there are none."""
        ...


class StreamLog:
    """The log on a Redis server."""

    def __init__(
        self,
        broker: Broker,
        *,
        lease: float = 5.0,
        suspect_for: float = 1.5,
        max_attempts: int = 3,
        viewer_counts: float = 15.0,
        script_flags: bool = True,
    ) -> None:
        """Durations in seconds. `script_flags` is off for the in-process fake, which cannot read them."""
        self._broker = broker
        self._lease_ms = round(lease * 1000)
        self._suspect_ms = round(suspect_for * 1000)
        self._viewer_ms = round(viewer_counts * 1000)
        self._max_attempts = max_attempts
        full = ("renew", "finish", "look", "give_back", "erase", "note_job", "watch")
        names = (*full, "create", "claim", "append", "restore")
        self._scripts = {
            name: load_script(name, allow_oom=name in full, with_flags=script_flags) for name in names
        }

    def _call(self, name: str, run: str, *args: str | bytes | int) -> ScriptCall:
        return ScriptCall(self._scripts[name], keys.of_run(run), (keys.channel(run), *args))

    async def _run(self, name: str, run: str, *args: str | bytes | int) -> list[Any]:
        reply: list[Any] = await self._broker.run(self._call(name, run, *args))
        return reply

    async def create(self, new: NewRun) -> Created:
        meta = {
            **new.meta,
            "tenant": new.tenant,
            "agent": new.agent,
            "retention_ms": str(new.retention_ms),
            "opening": opening(new),
        }
        lifetime = new.queue_ms + new.run_ms + new.retention_ms
        reply = await self._run(
            "create",
            new.run,
            new.run,
            new.body_hash,
            dump(new.accepted),
            dump(new.queued) if new.queued else b"",
            new.request,
            lifetime,
            new.queue_ms,
            new.run_ms,
            *(part for pair in meta.items() for part in pair),
        )
        if reply[0] == b"EXISTS":
            return Created(False, reply[1].decode(), end=reply[2].decode())
        return Created(True, new.body_hash, reply[2].decode(), int(reply[1]))

    async def claim(self, run: str, token: str) -> Claim | Answer:
        reply = await self._run("claim", run, token, self._lease_ms, self._max_attempts)
        if reply[0] != b"CLAIMED":
            return _ANSWERS[reply[0]]
        attempt, started, request, server_id, meta, head = reply[1:]
        return Claim(
            run=run,
            token=token,
            attempt=int(attempt),
            started=Entry(Cursor(int(attempt), 0), RunStarted.type, started),
            request=request,
            server_id=server_id.decode(),
            meta=_pairs(meta),
            head=tuple(_entry(row) for row in head),
        )

    async def append(self, appends: Sequence[Append]) -> list[Reply | BrokerError]:
        calls = [
            self._call(
                "append",
                append.run,
                append.token,
                append.attempt,
                str(append.expected),
                self._lease_ms,
                "1" if append.visible else "",
                *_flat(append.entries),
            )
            for append in appends
        ]
        return [_reply(reply) for reply in await self._broker.run_all(calls)]

    async def renew(self, owners: Sequence[tuple[str, str, int]]) -> list[Renewal | BrokerError]:
        calls = [
            self._call("renew", run, token, attempt, self._lease_ms, self._viewer_ms)
            for run, token, attempt in owners
        ]
        return [_renewal(reply) for reply in await self._broker.run_all(calls)]

    async def finish(self, finish: Finish) -> Reply:
        reply = await self._run(
            "finish",
            finish.run,
            finish.token,
            "" if finish.attempt is None else finish.attempt,
            "" if finish.expected is None else str(finish.expected),
            finish.event.type,
            dump(finish.event),
            "1" if finish.unless_held else "",
        )
        return raised(_reply(reply))  # type: ignore[no-any-return]  # raised() gives back what it got

    async def give_back(self, run: str, token: str, attempt: int, delay_ms: int, counts: bool) -> Answer:
        reply = await self._run("give_back", run, token, attempt, delay_ms, "1" if counts else "")
        return _ANSWERS[reply[0]]

    async def restore(self, claim: Claim, entries: Sequence[Entry], lifetime_ms: int) -> Answer:
        shown = {"visible": "1"} if any(entry.visible for entry in entries) else {}
        meta = [part for pair in {**claim.meta, **shown}.items() for part in pair]
        reply = await self._run(
            "restore",
            claim.run,
            claim.token,
            self._lease_ms,
            claim.server_id,
            lifetime_ms,
            claim.request,
            len(meta),
            *meta,
            *_flat((*claim.head, *entries)),
        )
        return _ANSWERS[reply[0]]

    async def erase(self, run: str, tombstone_ms: int) -> Answer:
        return _ANSWERS[(await self._run("erase", run, tombstone_ms))[0]]

    async def look(self, runs: Sequence[str]) -> list[Look | BrokerError]:
        margin = self._lease_ms
        calls = [self._call("look", run, self._suspect_ms, self._max_attempts, margin) for run in runs]
        return [_look(reply) for reply in await self._broker.run_all(calls)]

    async def note_job(self, run: str) -> str | None:
        reply = await self._run("note_job", run, run)
        return reply[1].decode() if reply[0] == b"OK" else None

    async def watch(self, runs: Sequence[str], gateway: str) -> None:
        for reply in await self._broker.run_all([self._call("watch", run, gateway, "1") for run in runs]):
            raised(reply)

    async def leave(self, run: str, gateway: str) -> None:
        await self._run("watch", run, gateway, "")

    async def read(self, run: str, after: Cursor, count: int) -> list[Entry]:
        try:
            rows = await self._broker.call("XRANGE", keys.stream(run), f"({after}", "+", "COUNT", count)
        except WrongType:
            return []
        return [_entry(row) for row in rows]

    async def last(self, runs: Sequence[str]) -> list[Entry | None]:
        replies = await self._broker.replies(
            [("XREVRANGE", keys.stream(run), "+", "-", "COUNT", 1) for run in runs]
        )
        pages = [[] if isinstance(reply, WrongType) else raised(reply) for reply in replies]
        return [_entry(page[0]) if page else None for page in pages]

    async def meta(self, runs: Sequence[str]) -> list[dict[str, str]]:
        replies = await self._broker.calls([("HGETALL", keys.meta(run)) for run in runs])
        return [_text_keys(reply) for reply in replies]


def opening(new: NewRun) -> str:
    """The end of `run.started`'s JSON; its beginning, attempt and prev, only the claim knows."""
    fields = {"agent": new.agent} if new.model is None else {"agent": new.agent, "model": new.model}
    return "," + orjson.dumps(fields)[1:].decode()


def started_event(attempt: int, prev: Cursor, rest: str) -> str:
    """The JSON of `run.started`, as the claim's script writes it."""
    return f'{{"attempt":{attempt},"prev":"{prev}"{rest}'


def parse_published(payload: bytes) -> list[Entry]:
    """The entries in a channel's payload: id, type and data of each, on a line each."""
    parts = payload.split(b"\n")
    return [
        Entry(cursor.trusted(parts[i]), parts[i + 1].decode(), parts[i + 2])
        for i in range(0, len(parts) - 2, 3)
    ]


def _flat(entries: Sequence[Entry]) -> list[str | bytes]:
    flat: list[str | bytes] = []
    for entry in entries:
        flat += (str(entry.cursor), entry.type, entry.data)
    return flat


def _entry(row: Any) -> Entry:
    entry_id, fields = row
    if isinstance(fields, dict):
        event_type, data = fields[b"t"], fields[b"d"]
    else:
        event_type, data = fields[1], fields[3]
    return Entry(cursor.trusted(entry_id), event_type.decode(), data)


def _reply(reply: Any) -> Reply | BrokerError:
    if isinstance(reply, BrokerError):
        return reply
    answer = _ANSWERS[reply[0]]
    return Reply(answer, *(part.decode() for part in reply[1:]))


def _renewal(reply: Any) -> Renewal | BrokerError:
    if isinstance(reply, BrokerError):
        return reply
    answer = _ANSWERS[reply[0]]
    if answer is not Answer.OK:
        return Renewal(answer)
    return Renewal(answer, cursor.parse(reply[1].decode()), int(reply[2]))


def _look(reply: Any) -> Look | BrokerError:
    if isinstance(reply, BrokerError):
        return reply
    answer = _ANSWERS[reply[0]]
    if answer in (Answer.HELD, Answer.LATER):
        return Look(answer, wait_ms=int(reply[1]))
    if answer is Answer.READY:
        return Look(answer, job=reply[1].decode(), started=reply[2] == b"1")
    return Look(answer)


def _pairs(flat: Sequence[bytes]) -> dict[str, str]:
    return {flat[i].decode(): flat[i + 1].decode() for i in range(0, len(flat), 2)}


def _text_keys(reply: Any) -> dict[str, str]:
    if isinstance(reply, dict):
        return {key.decode(): value.decode() for key, value in reply.items()}
    return _pairs(reply)
