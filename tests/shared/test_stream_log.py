"""The rules of the log, over a real server, a fake one, and the one in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from fakeredis import FakeAsyncRedis, FakeServer

from shared import keys
from shared.broker import Broker
from shared.cursor import START, Cursor
from shared.events import RunAccepted, RunCompleted, RunFailed, RunQueued, RunStarted, RunStopped
from shared.memory_log import MemoryLog
from shared.stream_log import (
    Answer,
    Append,
    Claim,
    Entry,
    Finish,
    Log,
    Look,
    NewRun,
    Renewal,
    Reply,
    StreamLog,
    parse_published,
)
from tests.support.redis_server import RedisServer
from tests.support.wait import eventually

LEASE = 0.5
SUSPECT = 0.2


@pytest.fixture(params=["redis", "fakeredis", "memory"])
async def log(request: pytest.FixtureRequest) -> AsyncIterator[Log]:
    if request.param == "memory":
        yield MemoryLog(lease_ms=round(LEASE * 1000), suspect_ms=round(SUSPECT * 1000))
        return
    if request.param == "fakeredis":
        broker = Broker(FakeAsyncRedis(server=FakeServer()))
    else:
        server: RedisServer = request.getfixturevalue("redis_server")
        broker = Broker.open(server.url)
    flags = request.param == "redis"
    yield StreamLog(broker, lease=LEASE, suspect_for=SUSPECT, script_flags=flags)
    await broker.close()


def new_run(run: str = "r", **meta: str) -> NewRun:
    return NewRun(
        run=run,
        tenant="t",
        agent="writer",
        body_hash="hash",
        accepted=RunAccepted(run=run, agent="writer"),
        queued=None,
        request=b'{"a":1}',
        queue_ms=60_000,
        run_ms=60_000,
        retention_ms=60_000,
        meta={"on_interrupt": "fail", "repeatable": "1", **meta},
        model="m",
    )


async def claimed(log: Log, run: str = "r", token: str = "owner") -> Claim:
    claim = await log.claim(run, token)
    assert isinstance(claim, Claim)
    return claim


def texts(claim: Claim, *texts: str, first: int = 1) -> list[Entry]:
    return [
        Entry(Cursor(claim.attempt, first + i), "text.delta", f'{{"block":"t","text":"{text}"}}'.encode())
        for i, text in enumerate(texts)
    ]


def append_of(claim: Claim, entries: list[Entry], expected: Cursor | None = None) -> Append:
    return Append(
        claim.run, claim.token, claim.attempt, expected or claim.started.cursor, entries, visible=True
    )


async def answer_to(log: Log, append: Append) -> Reply:
    reply = (await log.append([append]))[0]
    assert isinstance(reply, Reply)
    return reply


async def look_at(log: Log, run: str = "r") -> Look:
    look = (await log.look([run]))[0]
    assert isinstance(look, Look)
    return look


async def lapsed(log: Log) -> None:
    """Wait until the lease of the run has ended."""

    async def is_free() -> bool:
        return (await look_at(log)).answer is not Answer.HELD

    await eventually(is_free, 5, "the lease lapses")


async def after_two_looks(log: Log) -> Look:
    """What the sweep sees when it has looked for long enough."""
    await lapsed(log)
    found = await look_at(log)

    async def decided() -> bool:
        nonlocal found
        found = await look_at(log)
        return found.answer is not Answer.SUSPECT

    await eventually(decided, 5, "the sweep decides")
    return found


async def test_create_writes_the_first_events(log: Log) -> None:
    await log.create(replace(new_run(), queued=RunQueued(position=3)))
    entries = await log.read("r", START, 10)
    assert [str(entry.cursor) for entry in entries] == ["0-1", "0-2"]
    assert entries[0].event == RunAccepted(run="r", agent="writer")
    assert entries[1].event == RunQueued(position=3)


async def test_create_finds_a_run_that_is_there(log: Log) -> None:
    first = await log.create(new_run())
    again = await log.create(replace(new_run(), body_hash="other"))
    assert first.new
    assert first.job.startswith("r:")
    assert (again.new, again.body_hash) == (False, "hash")
    assert len(await log.read("r", START, 10)) == 1


async def test_a_claim_begins_an_attempt_numbered_by_time(log: Log) -> None:
    created = await log.create(new_run())
    claim = await claimed(log)
    assert claim.attempt >= created.time_ms
    started = claim.started.event
    assert started == RunStarted(attempt=claim.attempt, prev="0-1", agent="writer", model="m")
    assert claim.request == b'{"a":1}'
    assert [entry.type for entry in claim.head] == ["run.accepted"]
    assert (await log.read("r", START, 10))[-1] == claim.started


async def test_the_same_token_gets_the_same_claim(log: Log) -> None:
    """A claim whose reply was lost is repeated without a second attempt."""
    await log.create(new_run())
    first = await claimed(log)
    again = await claimed(log)
    assert (again.attempt, again.started) == (first.attempt, first.started)
    assert len(await log.read("r", START, 10)) == 2


async def test_a_held_run_is_not_claimed(log: Log) -> None:
    await log.create(new_run())
    await claimed(log)
    assert await log.claim("r", "another") is Answer.HELD


async def test_a_run_whose_lease_lapsed_is_only_claimed_when_the_sweep_says_so(log: Log) -> None:
    await log.create(new_run())
    await claimed(log)
    await lapsed(log)
    assert await log.claim("r", "another") is Answer.HELD


async def test_an_unknown_run_is_gone(log: Log) -> None:
    assert await log.claim("nothing", "owner") is Answer.GONE
    assert (await log.renew([("nothing", "owner", 1)]))[0] == Renewal(Answer.GONE)
    assert (await log.finish(Finish("nothing", "x", RunStopped(by="client")))).answer is Answer.GONE
    assert (await look_at(log, "nothing")).answer is Answer.GONE
    assert await log.last(["nothing"]) == [None]
    assert await log.meta(["nothing"]) == [{}]


async def test_appends_stand_in_order_without_holes(log: Log) -> None:
    await log.create(new_run())
    claim = await claimed(log)
    first, second = texts(claim, "a", "b"), texts(claim, "c", first=3)
    assert (await answer_to(log, append_of(claim, first))).answer is Answer.OK
    assert (await answer_to(log, append_of(claim, second, first[-1].cursor))).answer is Answer.OK
    assert (await log.read("r", claim.started.cursor, 10)) == first + second
    assert (await log.last(["r"]))[0] == second[0]


async def test_an_append_whose_reply_was_lost_is_a_duplicate(log: Log) -> None:
    await log.create(new_run())
    claim = await claimed(log)
    entries = texts(claim, "a", "b")
    await answer_to(log, append_of(claim, entries))
    again = await answer_to(log, append_of(claim, entries))
    assert (again.answer, again.last) == (Answer.DUP, entries[-1].cursor)
    assert len(await log.read("r", START, 10)) == 4


async def test_entries_that_were_lost_are_asked_for_again(log: Log) -> None:
    await log.create(new_run())
    claim = await claimed(log)
    entries = texts(claim, "a", "b", "c")
    await answer_to(log, append_of(claim, entries[:1]))
    reply = await answer_to(log, append_of(claim, entries[2:], entries[1].cursor))
    assert (reply.answer, reply.last) == (Answer.REWIND, entries[0].cursor)
    assert (await answer_to(log, append_of(claim, entries[1:], reply.last))).answer is Answer.OK
    assert (await log.read("r", claim.started.cursor, 10)) == entries


async def test_a_lost_claim_is_written_again_from_its_first_entry(log: Log) -> None:
    """Redis rolled back to before the claim: the writer is told where the stream ends and goes on there."""
    await log.create(new_run())
    attempt = 2_000_000_000_000
    started = Entry(Cursor(attempt, 0), "run.started", b'{"attempt":1,"prev":"0-1","agent":"writer"}')
    entries = [started, Entry(Cursor(attempt, 1), "text.delta", b'{"block":"t","text":"a"}')]
    reply = await answer_to(log, Append("r", "o", attempt, entries[0].cursor, entries[1:], True))
    assert (reply.answer, reply.detail) == (Answer.REWIND, "0-1")
    assert (await answer_to(log, Append("r", "o", attempt, reply.last, entries, True))).answer is Answer.OK
    assert await log.claim("r", "another") is Answer.HELD


async def test_an_older_attempt_is_fenced(log: Log) -> None:
    """Nothing of an attempt comes after the first entry of a later one."""
    await log.create(new_run(on_interrupt="restart"))
    old = await claimed(log, token="old")
    await answer_to(log, append_of(old, texts(old, "a")))
    assert (await after_two_looks(log)).answer is Answer.READY
    new = await claimed(log, token="new")
    assert new.attempt > old.attempt
    late = texts(old, "b", first=2)
    assert (await answer_to(log, append_of(old, late, Cursor(old.attempt, 1)))).answer is Answer.FENCED
    assert (await log.renew([("r", "old", old.attempt)]))[0] == Renewal(Answer.FENCED)
    assert await log.give_back("r", "old", old.attempt, 0, True) is Answer.FENCED
    finish = Finish("r", "old", RunCompleted(finish_reason="stop"), old.attempt, Cursor(old.attempt, 1))
    assert (await log.finish(finish)).answer is Answer.FENCED
    assert (await log.last(["r"]))[0] == new.started


async def test_a_writer_that_wakes_up_in_time_keeps_its_run(log: Log) -> None:
    """An append after the lease lapsed is good as long as no other attempt has begun."""
    await log.create(new_run(on_interrupt="restart"))
    claim = await claimed(log)
    assert (await after_two_looks(log)).answer is Answer.READY
    assert (await answer_to(log, append_of(claim, texts(claim, "a")))).answer is Answer.OK
    assert await log.claim("r", "another") is Answer.HELD
    assert (await look_at(log)).answer is Answer.HELD


async def test_a_renewal_clears_the_suspicion(log: Log) -> None:
    await log.create(new_run())
    claim = await claimed(log)
    await lapsed(log)
    assert (await look_at(log)).answer is Answer.SUSPECT
    renewal = (await log.renew([("r", claim.token, claim.attempt)]))[0]
    assert isinstance(renewal, Renewal)
    assert (renewal.answer, renewal.last) == (Answer.OK, claim.started.cursor)
    assert "suspect" not in (await log.meta(["r"]))[0]


async def test_nothing_is_written_after_the_end(log: Log) -> None:
    await log.create(new_run())
    claim = await claimed(log)
    stopped = await log.finish(Finish("r", "gateway", RunStopped(by="client")))
    assert (stopped.answer, stopped.detail) == (Answer.OK, f"{claim.attempt}-1")
    assert (await answer_to(log, append_of(claim, texts(claim, "a")))).answer is Answer.ENDED
    assert (await log.renew([("r", claim.token, claim.attempt)]))[0] == Renewal(Answer.ENDED)
    late = Finish("r", claim.token, RunCompleted(finish_reason="stop"), claim.attempt, claim.started.cursor)
    assert await log.finish(late) == Reply(Answer.ENDED, f"{claim.attempt}-1")
    assert await log.claim("r", "another") is Answer.ENDED
    assert await log.give_back("r", claim.token, claim.attempt, 0, True) is Answer.ENDED
    assert await log.note_job("r") is None
    assert (await look_at(log)).answer is Answer.ENDED
    assert [entry.type for entry in await log.read("r", START, 10)] == [
        "run.accepted",
        "run.started",
        "run.stopped",
    ]


async def test_finish_can_be_repeated(log: Log) -> None:
    await log.create(new_run())
    claim = await claimed(log)
    finish = Finish("r", claim.token, RunCompleted(finish_reason="stop"), claim.attempt, claim.started.cursor)
    first = await log.finish(finish)
    assert first.answer is Answer.OK
    assert await log.finish(finish) == first


async def test_finish_of_a_relay_names_what_it_expects(log: Log) -> None:
    await log.create(new_run())
    claim = await claimed(log)
    ahead = Finish(
        "r", claim.token, RunCompleted(finish_reason="stop"), claim.attempt, Cursor(claim.attempt, 4)
    )
    reply = await log.finish(ahead)
    assert (reply.answer, reply.last) == (Answer.REWIND, claim.started.cursor)


async def test_a_run_that_never_started_ends_in_attempt_zero(log: Log) -> None:
    await log.create(new_run())
    reply = await log.finish(Finish("r", "gateway", RunStopped(by="client")))
    assert (reply.answer, reply.detail) == (Answer.OK, "0-2")


async def test_the_request_is_gone_with_the_end(log: Log) -> None:
    await log.create(new_run())
    claim = await claimed(log)
    assert claim.request
    await log.finish(Finish("r", "x", RunStopped(by="client")))
    if isinstance(log, MemoryLog):
        assert log.runs["r"].request is None
    else:
        assert isinstance(log, StreamLog)
        assert await log._broker.call("EXISTS", "bff:{r}:r", "bff:{r}:l") == 0


async def test_a_held_run_is_left_alone_by_who_asks_for_it(log: Log) -> None:
    await log.create(new_run())
    await claimed(log)
    finish = Finish("r", "sweep", RunFailed(code="interrupted", message=""), unless_held=True)
    assert (await log.finish(finish)).answer is Answer.HELD
    await lapsed(log)
    assert (await log.finish(finish)).answer is Answer.OK


async def test_a_lost_run_is_restarted_silently_before_anything_was_shown(log: Log) -> None:
    await log.create(new_run())
    old = await claimed(log)
    look = await after_two_looks(log)
    assert (look.answer, look.started, look.job) == (Answer.READY, True, "")
    new = await claimed(log, token="new")
    assert isinstance(new.started.event, RunStarted)
    assert new.started.event.prev == str(old.started.cursor)


@pytest.mark.parametrize(
    ("meta", "visible", "expected"),
    [
        ({"on_interrupt": "fail"}, True, Answer.LOST),
        ({"on_interrupt": "restart"}, True, Answer.READY),
        ({"on_interrupt": "fail"}, False, Answer.READY),
        ({"on_interrupt": "restart", "repeatable": "0"}, False, Answer.LOST),
    ],
)
async def test_a_lost_run_goes_by_its_policy(
    log: Log, meta: dict[str, str], visible: bool, expected: Answer
) -> None:
    await log.create(new_run(**meta))
    claim = await claimed(log)
    await log.append([replace(append_of(claim, texts(claim, "a")), visible=visible)])
    assert (await after_two_looks(log)).answer is expected


async def test_attempts_are_limited(log: Log) -> None:
    await log.create(new_run())
    for attempt in range(3):
        await claimed(log, token=f"worker {attempt}")
        look = await after_two_looks(log)
    assert look.answer is Answer.USED_UP


async def test_a_run_that_is_given_back_waits_and_does_not_count(log: Log) -> None:
    await log.create(new_run())
    claim = await claimed(log)
    assert await log.give_back("r", claim.token, claim.attempt, 60_000, False) is Answer.OK
    assert await log.claim("r", "another") is Answer.WAIT
    look = await look_at(log)
    assert look.answer is Answer.LATER
    assert 0 < look.wait_ms <= 60_000
    assert (await log.meta(["r"]))[0]["attempts"] == "0"


async def test_a_run_that_waits_too_long_has_expired(log: Log) -> None:
    await log.create(replace(new_run(), queue_ms=1))

    async def expired() -> bool:
        return (await look_at(log)).answer is Answer.EXPIRED

    await eventually(expired, 5, "the queue deadline passes")
    assert await log.claim("r", "worker") is Answer.EXPIRED


async def test_a_run_beyond_its_deadline_is_overdue_even_when_held(log: Log) -> None:
    await log.create(replace(new_run(), run_ms=1))
    claim = await claimed(log)

    async def overdue() -> bool:
        await log.renew([("r", claim.token, claim.attempt)])
        return (await look_at(log)).answer is Answer.OVERDUE

    await eventually(overdue, 5, "the run deadline passes")


async def test_a_new_job_is_noted_only_for_a_run_that_waits(log: Log) -> None:
    created = await log.create(new_run())
    assert (await look_at(log)).job == created.job
    job = await log.note_job("r")
    assert job is not None
    assert (await look_at(log)).job == job
    await claimed(log)
    assert await log.note_job("r") is None


async def test_idle_time_counts_from_the_last_viewer(log: Log) -> None:
    await log.create(new_run())
    claim = await claimed(log)

    async def renewal() -> Renewal:
        found = (await log.renew([("r", claim.token, claim.attempt)]))[0]
        assert isinstance(found, Renewal)
        return found

    assert (await renewal()).idle_ms >= 0
    await log.watch(["r"], "gateway-1")
    await log.watch(["r"], "gateway-2")
    assert (await renewal()).idle_ms == -1
    await log.leave("r", "gateway-1")
    assert (await renewal()).idle_ms == -1
    await log.leave("r", "gateway-2")
    assert 0 <= (await renewal()).idle_ms < 10_000


async def test_viewers_of_an_unknown_run_leave_no_key(log: Log) -> None:
    await log.watch(["nothing"], "gateway")
    await log.leave("nothing", "gateway")
    assert await log.meta(["nothing"]) == [{}]


async def test_a_deleted_stream_is_not_written_again(log: Log) -> None:
    """The same server lost nothing, somebody deleted it."""
    await log.create(new_run())
    claim = await claimed(log)
    if isinstance(log, MemoryLog):
        log.runs["r"].stream.clear()
    else:
        assert isinstance(log, StreamLog)
        await log._broker.call("DEL", "bff:{r}:s")
    assert (await answer_to(log, append_of(claim, texts(claim, "a")))).answer is Answer.GONE
    if isinstance(log, MemoryLog) or log._scripts["restore"].source.startswith("#!lua"):
        assert await log.restore(claim, [claim.started], 60_000) is Answer.GONE
        assert await log.last(["r"]) == [None]


async def test_a_stream_that_redis_lost_is_written_again(log: Log) -> None:
    await log.create(new_run())
    claim = await claimed(log)
    entries = texts(claim, "a", "b")
    await answer_to(log, append_of(claim, entries))
    if isinstance(log, MemoryLog):
        log.runs.clear()
    else:
        assert isinstance(log, StreamLog)
        await log._broker.call("FLUSHDB")
    before = replace(claim, server_id="another server")
    assert await log.restore(before, [claim.started, *entries], 60_000) is Answer.OK
    assert [entry.type for entry in await log.read("r", START, 10)] == [
        "run.accepted",
        "run.started",
        "text.delta",
        "text.delta",
    ]
    more = append_of(claim, texts(claim, "c", first=3), entries[-1].cursor)
    assert (await answer_to(log, more)).answer is Answer.OK
    assert await log.restore(before, [], 60_000) is Answer.EXISTS


async def test_an_erased_run_leaves_a_tombstone(log: Log) -> None:
    await log.create(new_run())
    assert await log.erase("r", 60_000) is Answer.OK
    assert await log.last(["r"]) == [None]
    assert (await log.meta(["r"]))[0] == {"tenant": "t", "end": "deleted"}
    again = await log.create(new_run())
    assert (again.new, again.end) == (False, "deleted")
    assert await log.erase("nothing", 60_000) is Answer.GONE


@pytest.mark.usefixtures("no_lasting_keys")
async def test_what_is_written_is_published_in_the_same_call(redis_server: RedisServer) -> None:
    broker = Broker.open(redis_server.url)
    log = StreamLog(broker)
    await log.create(new_run())
    connection: Any = broker.connection()
    await connection.connect()
    await connection.send_command("SSUBSCRIBE", "bff:{r}:c")
    await connection.read_response()
    claim = await claimed(log)
    entries = texts(claim, "a", "b")
    await answer_to(log, append_of(claim, entries))
    await log.finish(Finish("r", "x", RunStopped(by="client")))
    published: list[Entry] = []
    while not published or not published[-1].terminal:
        published += parse_published((await connection.read_response(disable_decoding=True))[2])
    assert published == await log.read("r", Cursor(0, 1), 10)
    await connection.disconnect()
    await broker.close()


async def test_what_is_not_a_stream_is_as_good_as_gone(redis_server: RedisServer) -> None:
    """Somebody put a value of another type in its place; other runs are read all the same."""
    broker = Broker.open(redis_server.url)
    log = StreamLog(broker)
    for run in ("r", "other"):
        await log.create(new_run(run))
    claim = await claimed(log)
    await broker.call("SET", keys.stream("r"), "text", "PX", 60_000)
    assert await log.read("r", START, 10) == []
    lost, other = await log.last(["r", "other"])
    assert lost is None
    assert other is not None
    assert (await answer_to(log, append_of(claim, texts(claim, "a")))).answer is Answer.GONE
    assert (await log.renew([("r", claim.token, claim.attempt)]))[0] == Renewal(Answer.GONE)
    assert await log.restore(claim, texts(claim, "a"), 60_000) is Answer.GONE
    assert (await log.finish(Finish("r", "x", RunStopped(by="client")))).answer is Answer.GONE
    assert (await look_at(log)).answer is Answer.GONE
    await broker.close()


async def test_a_renewal_behind_a_give_back_takes_nothing_back(log: Log) -> None:
    await log.create(new_run())
    claim = await claimed(log)
    await log.give_back("r", claim.token, claim.attempt, 60_000, False)
    assert (await log.renew([("r", claim.token, claim.attempt)]))[0] == Renewal(Answer.FENCED)
    assert (await answer_to(log, append_of(claim, texts(claim, "a")))).answer is Answer.FENCED
    assert (await look_at(log)).answer is Answer.LATER


async def test_the_end_of_a_run_that_waits_names_its_job(log: Log) -> None:
    created = await log.create(new_run())
    ended = await log.finish(Finish("r", "gateway", RunStopped(by="client")))
    assert ended.job == created.job
    assert (await log.finish(Finish("r", "gateway", RunStopped(by="client")))).job == ""


async def test_what_was_shown_is_known_after_a_restore(log: Log) -> None:
    await log.create(new_run())
    claim = await claimed(log)
    if isinstance(log, MemoryLog):
        log.runs.clear()
    else:
        assert isinstance(log, StreamLog)
        await log._broker.call("FLUSHDB")
    await log.restore(replace(claim, server_id="another"), [claim.started, *texts(claim, "a")], 60_000)
    assert (await log.meta(["r"]))[0]["visible"] == "1"
