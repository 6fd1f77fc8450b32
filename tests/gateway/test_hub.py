"""The fan-out of one gateway process, over a real Redis server."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import ClassVar

import pytest

from gateway.dialects.base import Encoded, ViewOptions
from gateway.dialects.native import NativeSSE
from gateway.dialects.openai_chat import OpenAIChat
from gateway.hub import Hub, Position, StreamGone, Subscriber, View
from shared import cursor, keys
from shared.broker import Broker
from shared.cursor import Cursor
from shared.errors import BrokerUnavailable, RequestError
from shared.events import RunAccepted, RunCompleted, RunFailed, RunStopped
from shared.sse import ServerSentEvent, SSEDecoder
from shared.stream_log import Append, Claim, Entry, Finish, NewRun, StreamLog
from tests.support.redis_server import RedisServer
from tests.support.wait import eventually

NATIVE = View(("sse",), lambda: NativeSSE(ViewOptions(run="r")))


class Writer:
    """Writes a run as a worker would, one entry an append unless told otherwise."""

    def __init__(self, log: StreamLog, run: str) -> None:
        self.log = log
        self.run = run
        self.claim: Claim | None = None
        self.last = cursor.START

    async def begin(self) -> Writer:
        accepted = RunAccepted(run=self.run, agent="a")
        meta = {"on_interrupt": "restart", "repeatable": "1"}
        await self.log.create(
            NewRun(self.run, "t", "a", "h", accepted, None, b"{}", 60_000, 60_000, 60_000, meta)
        )
        return await self.attempt()

    async def attempt(self) -> Writer:
        claim = await self.log.claim(self.run, secrets.token_hex(4))
        assert isinstance(claim, Claim)
        self.claim, self.last = claim, claim.started.cursor
        return self

    async def hand_back(self) -> Writer:
        assert self.claim is not None
        await self.log.give_back(self.run, self.claim.token, self.claim.attempt, 0, False)
        return await self.attempt()

    async def say(self, *texts: str) -> None:
        assert self.claim is not None
        entries: list[Entry] = []
        for text in texts:
            data = json.dumps({"block": "t", "text": text}).encode()
            entries.append(
                Entry(Cursor(self.claim.attempt, self.last.seq + 1 + len(entries)), "text.delta", data)
            )
        append = Append(self.run, self.claim.token, self.claim.attempt, self.last, entries, True)
        await self.log.append([append])
        self.last = entries[-1].cursor

    async def say_raw(self, event_type: str, data: bytes) -> None:
        assert self.claim is not None
        entry = Entry(self.last.next(), event_type, data)
        await self.log.append(
            [Append(self.run, self.claim.token, self.claim.attempt, self.last, [entry], True)]
        )
        self.last = entry.cursor

    async def end(self) -> None:
        assert self.claim is not None
        done = RunCompleted(finish_reason="stop")
        await self.log.finish(Finish(self.run, self.claim.token, done, self.claim.attempt, self.last))


class Setting:
    def __init__(self, broker: Broker, log: StreamLog, hub: Hub) -> None:
        self.broker, self.log, self.hub = broker, log, hub

    async def writer(self, run: str = "r") -> Writer:
        return await Writer(self.log, run).begin()


@asynccontextmanager
async def setting_on(
    url: str, log_type: type[StreamLog] = StreamLog, *, window_bytes: int = 1 << 20, **limits: int
) -> AsyncIterator[Setting]:
    broker = Broker.open(url)
    log = log_type(broker)
    async with Hub(log, broker, "gw", window_bytes=window_bytes, redis_timeout=3, **limits) as hub:
        yield Setting(broker, log, hub)
    await broker.close()


@pytest.fixture
async def setting(redis_server: RedisServer) -> AsyncIterator[Setting]:
    async with setting_on(redis_server.url) as found:
        yield found


async def rest_of(subscriber: Subscriber, upto: int = 1_000_000) -> list[ServerSentEvent]:
    """The frames until the end, or until `upto` of them have come."""
    decoder, frames = SSEDecoder(), list[ServerSentEvent]()
    while len(frames) < upto:
        encoded = await asyncio.wait_for(subscriber.next(), 10)
        for frame in encoded.frames:
            frames += decoder.feed(frame)
        if encoded.ends or encoded.aborts:
            break
    return frames


async def watch(hub: Hub, run: str = "r", at: Position | None = None) -> list[ServerSentEvent]:
    async with hub.subscribe(run, NATIVE, at) as subscriber:
        return await rest_of(subscriber)


def text_of(frames: list[ServerSentEvent]) -> str:
    """What a client holds at the end: everything since the last reset."""
    text = ""
    for frame in frames:
        if frame.event == "reset":
            text = ""
        elif frame.event == "text.delta":
            text += json.loads(frame.data)["text"]
    return text


async def test_a_viewer_gets_every_event_once_and_in_order(setting: Setting) -> None:
    writer = await setting.writer()
    watching = asyncio.create_task(watch(setting.hub))
    for i in range(50):
        await writer.say(f"{i},")
    await writer.end()
    frames = await watching
    assert text_of(frames) == "".join(f"{i}," for i in range(50))
    stored = await setting.log.read("r", cursor.START, 100)
    assert [frame.id for frame in frames] == [str(entry.cursor) for entry in stored]


async def test_late_viewers_get_the_whole_run(setting: Setting) -> None:
    writer = await setting.writer()
    watching = []
    for i in range(30):
        watching.append(asyncio.create_task(watch(setting.hub)))
        await writer.say(f"{i},")
    await writer.end()
    expected = "".join(f"{i}," for i in range(30))
    assert {text_of(frames) for frames in await asyncio.gather(*watching)} == {expected}


async def test_an_ended_run_can_be_watched_from_its_start(setting: Setting) -> None:
    writer = await setting.writer()
    await writer.say("a", "b")
    await writer.end()
    assert text_of(await watch(setting.hub)) == "ab"


async def test_each_event_is_encoded_once_for_all_viewers_of_a_view(setting: Setting) -> None:
    calls = 0

    class Counting(NativeSSE):
        def encode(self, entry: Entry) -> Encoded:
            nonlocal calls
            calls += 1
            return super().encode(entry)

    counting = View(("counting",), lambda: Counting(ViewOptions(run="r")))

    async def follow() -> list[ServerSentEvent]:
        async with setting.hub.subscribe("r", counting, None) as subscriber:
            return await rest_of(subscriber)

    writer = await setting.writer()
    viewers = [asyncio.create_task(follow()) for _ in range(20)]
    await eventually(lambda: setting.hub.viewers("r") == 20, 5, "twenty viewers")
    for i in range(10):
        await writer.say(str(i))
    await writer.end()
    assert {text_of(frames) for frames in await asyncio.gather(*viewers)} == {"0123456789"}
    assert calls == 13  # accepted, started, ten texts, completed


async def test_a_resumed_viewer_gets_exactly_the_rest(setting: Setting) -> None:
    writer = await setting.writer()
    await writer.say("a", "b", "c")
    await writer.end()
    whole = await watch(setting.hub)
    for i, frame in enumerate(whole[:-1]):
        assert frame.id is not None
        rest = await watch(setting.hub, at=Position(cursor.parse(frame.id)))
        assert rest == whole[i + 1 :]


async def test_a_cursor_at_the_end_has_nothing_left(setting: Setting) -> None:
    writer = await setting.writer()
    await writer.end()
    last = await setting.log.last(["r"])
    assert last[0] is not None
    for at in (last[0].cursor, cursor.GONE):
        async with setting.hub.subscribe("r", NATIVE, Position(at)) as subscriber:
            assert subscriber.ended_before


async def test_a_new_attempt_begins_with_a_reset_for_who_followed_the_old_one(setting: Setting) -> None:
    writer = await setting.writer()
    await writer.say("old")
    async with setting.hub.subscribe("r", NATIVE, None) as subscriber:
        assert len(await rest_of(subscriber, upto=3)) == 3
        await writer.hand_back()
        await writer.say("new")
        await writer.end()
        frames = await rest_of(subscriber)
    assert [frame.event for frame in frames] == ["reset", "run.started", "text.delta", "run.completed"]
    assert json.loads(frames[0].data)["reason"] == "attempt"
    assert frames[0].id is None
    fresh = await watch(setting.hub)
    assert [frame.event for frame in fresh] == ["run.accepted", "run.started", "text.delta", "run.completed"]
    assert text_of(fresh) == "new"


@pytest.mark.parametrize(("seq", "reset"), [(0, False), (1, True), (2, True)])
async def test_a_resume_from_an_older_attempt_is_judged_by_the_cursor_alone(
    setting: Setting, seq: int, reset: bool
) -> None:
    writer = await setting.writer()
    await writer.say("a", "b")
    assert writer.claim is not None
    old = writer.claim.attempt
    await writer.hand_back()
    await writer.say("new")
    await writer.end()
    frames = await watch(setting.hub, at=Position(Cursor(old, seq)))
    assert [frame.event for frame in frames][: 1 if reset else 0] == ["reset"] * reset
    assert [frame.event for frame in frames][-3:] == ["run.started", "text.delta", "run.completed"]


@pytest.mark.parametrize("at", [Position(None), Position(Cursor(0, 9)), Position(Cursor(5, 5))])
async def test_a_cursor_that_is_none_replays_after_a_reset(setting: Setting, at: Position) -> None:
    """Also one of an attempt that never was: older than the newest, it is answered like any old one."""
    writer = await setting.writer()
    await writer.say("a")
    await writer.end()
    frames = await watch(setting.hub, at=at)
    assert [frame.event for frame in frames] == ["reset", "run.started", "text.delta", "run.completed"]


async def test_a_cursor_ahead_of_the_stream_is_waited_for(setting: Setting) -> None:
    writer = await setting.writer()
    await writer.say("a")
    assert writer.claim is not None
    ahead = Position(Cursor(writer.claim.attempt, 3))
    watching = asyncio.create_task(watch(setting.hub, at=ahead))
    await eventually(lambda: setting.hub.viewers("r") == 1, 5, "it is connected")
    await writer.say("b", "c", "d")
    await writer.end()
    assert text_of(await watching) == "d"


async def test_a_cursor_ahead_of_an_ended_stream_is_reset(setting: Setting) -> None:
    writer = await setting.writer()
    await writer.end()
    assert writer.claim is not None
    frames = await watch(setting.hub, at=Position(Cursor(writer.claim.attempt, 99)))
    assert [frame.event for frame in frames] == ["reset", "run.started", "run.completed"]


async def test_an_unknown_run_is_gone(setting: Setting) -> None:
    with pytest.raises(StreamGone):
        await watch(setting.hub, "nothing")
    assert setting.hub.streams == 0


async def test_a_stream_that_is_deleted_while_watched_ends_as_gone(setting: Setting) -> None:
    writer = await setting.writer()
    await writer.say("a")
    async with setting.hub.subscribe("r", NATIVE, None) as subscriber:
        await rest_of(subscriber, upto=3)
        await setting.broker.call("DEL", "bff:{r}:s", "bff:{r}:m")
        frames = await rest_of(subscriber)
    assert [frame.event for frame in frames] == ["reset", "run.failed"]
    assert json.loads(frames[1].data)["code"] == "gone"
    assert frames[1].id == "18446744073709551615-0"


async def test_entries_lost_by_redis_and_written_again_are_not_doubled(setting: Setting) -> None:
    """A roll-back shorter than the patience: the worker writes the same entries, viewers see nothing."""
    writer = await setting.writer()
    await writer.say("a", "b")
    async with setting.hub.subscribe("r", NATIVE, None) as subscriber:
        await rest_of(subscriber, upto=4)
        stored = await setting.log.read("r", cursor.START, 100)
        await setting.broker.call("XDEL", "bff:{r}:s", str(stored[-1].cursor))
        # XDEL keeps the stream's last id, so the stream is made again without its last entry
        pairs = [("XADD", "bff:{r}:s2", str(e.cursor), "t", e.type, "d", e.data) for e in stored[:-1]]
        await setting.broker.calls([*pairs, ("RENAME", "bff:{r}:s2", "bff:{r}:s")])
        writer.last = stored[-2].cursor
        await writer.say("b", "c")
        await writer.end()
        frames = await rest_of(subscriber)
    assert [frame.event for frame in frames] == ["text.delta", "run.completed"]
    assert text_of(frames) == "c"


async def test_a_viewer_behind_the_window_reads_at_its_own_pace(redis_server: RedisServer) -> None:
    async with setting_on(redis_server.url, window_bytes=2000) as setting:
        writer = await setting.writer()
        async with setting.hub.subscribe("r", NATIVE, None) as slow:
            first = await rest_of(slow, upto=2)
            for i in range(200):
                await writer.say(f"{i},")
            await writer.end()
            fresh = await watch(setting.hub)
            frames = first + await rest_of(slow)
        assert frames == fresh
        assert text_of(frames) == "".join(f"{i}," for i in range(200))
        for at in (0, 1, 57, 200):
            position = Position(cursor.parse(fresh[at].id or ""))
            assert await watch(setting.hub, at=position) == fresh[at + 1 :]


async def test_nothing_is_lost_when_the_subscription_is_cut_again_and_again(setting: Setting) -> None:
    runs = [await setting.writer(f"run{i}") for i in range(4)]
    watching = [asyncio.create_task(watch(setting.hub, f"run{i % 4}")) for i in range(24)]
    expected = "".join(f"{i}," for i in range(150))
    for i in range(150):
        await asyncio.gather(*(writer.say(f"{i},") for writer in runs))
        if i % 20 == 10:
            await setting.broker.call("CLIENT", "KILL", "TYPE", "pubsub")
    await asyncio.gather(*(writer.end() for writer in runs))
    for frames in await asyncio.gather(*watching):
        ids = [cursor.parse(frame.id or "") for frame in frames]
        assert ids == sorted(set(ids))
        assert text_of(frames) == expected


async def test_a_silent_stop_by_another_gateway_arrives(setting: Setting) -> None:
    writer = await setting.writer()
    watching = asyncio.create_task(watch(setting.hub))
    await eventually(lambda: setting.hub.viewers("r") == 1, 5, "it is connected")
    await setting.log.finish(Finish(writer.run, "elsewhere", RunStopped(by="client")))
    assert (await watching)[-1].event == "run.stopped"


async def test_viewers_are_told_to_the_log_and_taken_back(setting: Setting) -> None:
    await setting.writer()
    async with setting.hub.subscribe("r", NATIVE, None) as subscriber:
        subscriber.left = True
        await eventually(lambda: setting.broker.call("ZCARD", "bff:{r}:v"), 5, "the viewer is known")

    async def gone() -> bool:
        return int(await setting.broker.call("ZCARD", "bff:{r}:v")) == 0

    await eventually(gone, 5, "the viewer has left")
    assert "left" in (await setting.log.meta(["r"]))[0]


async def roll_back_one(setting: Setting) -> None:
    """Redis comes back without the newest entry of the run."""
    stored = await setting.log.read("r", cursor.START, 100)
    pairs = [("XADD", "bff:{r}:s2", str(e.cursor), "t", e.type, "d", e.data) for e in stored[:-1]]
    await setting.broker.calls([*pairs, ("RENAME", "bff:{r}:s2", "bff:{r}:s")])


async def test_an_end_that_stands_where_a_lost_entry_stood_arrives(setting: Setting) -> None:
    writer = await setting.writer()
    await writer.say("a", "b")
    async with setting.hub.subscribe("r", NATIVE, None) as subscriber:
        await rest_of(subscriber, upto=4)
        await roll_back_one(setting)
        failed = RunFailed(code="interrupted", message="m")
        reply = await setting.log.finish(Finish("r", "the sweep", failed))
        assert reply.last == writer.last
        frames = await rest_of(subscriber)
    assert [frame.event for frame in frames] == ["reset", "run.started", "text.delta", "run.failed"]
    assert json.loads(frames[0].data)["reason"] == "lost"


class LateLog(StreamLog):
    """What it says is the newest entry is an old one when it is heard."""

    writer: ClassVar[Writer | None] = None
    heard: ClassVar[list[str]] = []
    looks = 0

    async def last(self, runs: Sequence[str]) -> list[Entry | None]:
        newest = await super().last(runs)
        if self.writer is not None and runs:
            self.looks += 1
            await self.writer.say("x")
            said = str(self.writer.last)
            await eventually(lambda: said in self.heard, 5, "the channel was faster")
        return newest


async def test_a_late_look_at_the_stream_is_no_loss(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.hub.HOLE_PATIENCE", 0.0)
    async with setting_on(redis_server.url, LateLog) as setting:
        writer = await setting.writer()
        frames: list[ServerSentEvent] = []

        async def follow() -> None:
            async with setting.hub.subscribe("r", NATIVE, None) as subscriber:
                while not (frames and frames[-1].event == "run.completed"):
                    frames.extend(await rest_of(subscriber, upto=1))
                    LateLog.heard.append(frames[-1].id or "")

        following = asyncio.create_task(follow())
        await eventually(lambda: frames, 5, "it follows")
        try:
            LateLog.writer = writer
            await setting.broker.call("CLIENT", "KILL", "TYPE", "pubsub")
            log = setting.log
            assert isinstance(log, LateLog)
            await eventually(lambda: log.looks, 5, "a look")
        finally:
            LateLog.writer = None
        await eventually(lambda: not setting.hub._watched["r"].filling, 5, "it was seen to be whole")
        await writer.end()
        await asyncio.wait_for(following, 10)
    assert [frame.event for frame in frames if frame.event == "reset"] == []


class Stumbling(NativeSSE):
    """Cannot tell one of the texts."""

    def encode(self, entry: Entry) -> Encoded:
        if b"unspeakable" in entry.data:
            raise RuntimeError("cannot tell it")
        return super().encode(entry)


STUMBLING = View(("stumbling",), lambda: Stumbling(ViewOptions(run="r")))


async def test_a_view_that_cannot_be_encoded_ends_and_nobody_else_notices(
    setting: Setting, caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = await setting.writer(), await setting.writer("good")
    async with (
        setting.hub.subscribe("r", STUMBLING, None) as stumbling,
        setting.hub.subscribe("r", NATIVE, None) as native,
        setting.hub.subscribe("good", NATIVE, None) as other,
    ):
        await bad.say("unspeakable")
        await bad.say("more")
        await good.say("fine")
        told = await rest_of(stumbling)
        assert [frame.event for frame in told] == ["run.accepted", "run.started", "reset", "run.failed"]
        assert json.loads(told[-1].data)["code"] == "internal"
        assert text_of(await rest_of(other, upto=3)) == "fine"
        async with setting.hub.subscribe("r", STUMBLING, Position(bad.last)) as late:
            await bad.end()
            assert [frame.event for frame in await rest_of(late)] == ["reset", "run.failed"]
        assert text_of(await rest_of(native)) == "unspeakablemore"
    assert ["cannot be told" in record.message for record in caplog.records if record.exc_info] == [True]


async def test_an_event_that_does_not_fit_is_passed_over_and_an_end_that_does_not_is_an_end(
    setting: Setting,
) -> None:
    writer = await setting.writer()
    view = View(("openai",), lambda: OpenAIChat(ViewOptions(run="r")))
    async with setting.hub.subscribe("r", view, None) as subscriber:
        await writer.say_raw("text.delta", b'{"block":"t","text":5}')
        await writer.say("b")
        await writer.say_raw("run.completed", b'{"usage":7}')
        told = b"".join([frame.data for frame in await rest_of(subscriber)])
    assert b'"content":"b"' in told
    assert told.endswith(b"[DONE]")


async def test_what_no_one_can_read_on_one_channel_silences_no_other(setting: Setting) -> None:
    bad, good = await setting.writer(), await setting.writer("good")
    async with (
        setting.hub.subscribe("r", NATIVE, None) as one,
        setting.hub.subscribe("good", NATIVE, None) as other,
    ):
        await rest_of(one, upto=2)
        await rest_of(other, upto=2)
        await setting.broker.call("SPUBLISH", keys.channel("r"), b"no id\n\xff\n{}")
        await good.say("b")
        async with asyncio.timeout(1):
            assert text_of(await rest_of(other, upto=1)) == "b"
        await bad.say("a")
        assert text_of(await rest_of(one, upto=1)) == "a"


async def test_a_stream_that_no_one_can_read_ends_its_own_viewers_only(setting: Setting) -> None:
    bad, good = await setting.writer(), await setting.writer("good")
    async with (
        setting.hub.subscribe("r", NATIVE, None) as one,
        setting.hub.subscribe("good", NATIVE, None) as other,
    ):
        await setting.broker.call("XADD", keys.stream("r"), str(bad.last.next()), "not", "ours")
        frames = await rest_of(one)
        assert json.loads(frames[-1].data)["code"] == "internal"
        await good.say("b")
        assert text_of(await rest_of(other, upto=3)) == "b"


async def test_only_a_viewer_that_goes_by_itself_is_said_to_have_left(setting: Setting) -> None:
    await setting.writer()
    for viewers in ((False,), (False, True)):
        async with setting.hub.subscribe("r", NATIVE, None) as last:
            await eventually(lambda: setting.broker.call("ZCARD", "bff:{r}:v"), 5, "the viewer is known")
            last.left = viewers[-1]
            for left in viewers[:-1]:
                async with setting.hub.subscribe("r", NATIVE, None) as before:
                    before.left = left
        await eventually(lambda: not setting.hub._tasks, 5, "it was closed")
        assert await setting.broker.call("ZCARD", "bff:{r}:v") == 1
        assert "left" not in (await setting.log.meta(["r"]))[0]


class SlowToRead(StreamLog):
    """Reads nothing before it is told to go on."""

    reading: ClassVar[asyncio.Event]
    go_on: ClassVar[asyncio.Event]

    async def read(self, run: str, after: Cursor, count: int) -> list[Entry]:
        self.reading.set()
        await self.go_on.wait()
        return await super().read(run, after, count)


async def test_a_viewer_that_left_before_the_stream_was_read_is_none(redis_server: RedisServer) -> None:
    SlowToRead.reading, SlowToRead.go_on = asyncio.Event(), asyncio.Event()
    async with setting_on(redis_server.url, SlowToRead) as setting:
        await setting.writer()
        watching = asyncio.create_task(watch(setting.hub))
        await asyncio.wait_for(SlowToRead.reading.wait(), 5)
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        SlowToRead.go_on.set()
        await eventually(lambda: not setting.hub._tasks, 5, "it was opened and closed")
        assert await setting.broker.call("EXISTS", "bff:{r}:v") == 0


class AwayLog(StreamLog):
    """Redis, which is out for the hub's clock when a test says so."""

    out: ClassVar[bool] = False

    async def last(self, runs: Sequence[str]) -> list[Entry | None]:
        if self.out:
            raise BrokerUnavailable("out")
        return await super().last(runs)


async def test_viewers_that_were_let_go_while_redis_was_out_are_welcome_again(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.hub.OUT_PATIENCE", 0.1)
    monkeypatch.setattr("gateway.hub._TICK", 0.02)
    async with setting_on(redis_server.url, AwayLog) as setting:
        writer = await setting.writer()
        async with setting.hub.subscribe("r", NATIVE, None) as busy_sending:
            async with setting.hub.subscribe("r", NATIVE, None) as subscriber:
                monkeypatch.setattr(AwayLog, "out", True)
                with pytest.raises(BrokerUnavailable):
                    await rest_of(subscriber)
            monkeypatch.setattr(AwayLog, "out", False)
            await eventually(lambda: not setting.hub._watched["r"].window.let_go_of, 5, "Redis is back")
            await writer.say("a")
            assert text_of(await rest_of(busy_sending, upto=3)) == "a"


async def test_more_viewers_of_a_run_than_allowed_are_refused_for_the_moment(
    redis_server: RedisServer,
) -> None:
    async with setting_on(redis_server.url, max_viewers=1) as setting:
        writer = await setting.writer()
        await setting.writer("other")
        async with setting.hub.subscribe("r", NATIVE, None):
            with pytest.raises(RequestError) as refused:
                await watch(setting.hub)
            assert (refused.value.status, refused.value.code) == (429, "too_many_viewers")
            assert refused.value.retry_after
            async with setting.hub.subscribe("other", NATIVE, None):
                assert setting.hub.streams == 2
        await writer.end()
        assert (await watch(setting.hub))[-1].event == "run.completed"


async def test_all_windows_together_stay_within_their_limit_and_nobody_misses_anything(
    redis_server: RedisServer,
) -> None:
    async with setting_on(redis_server.url, window_total_bytes=10_000) as setting:
        writers = [await setting.writer(f"run{i}") for i in range(5)]
        watching = [asyncio.create_task(watch(setting.hub, f"run{i}")) for i in range(5)]
        await eventually(lambda: setting.hub.streams == 5, 5, "all are connected")

        def kept() -> int:
            return sum(watched.window.track.size for watched in setting.hub._watched.values())

        for writer in writers[:2]:
            for _ in range(20):
                await writer.say("x" * 1000)
        await eventually(lambda: kept() > 10_000, 5, "too much is kept")
        await eventually(lambda: kept() <= 10_000, 5, "the largest are trimmed")
        fresh = await asyncio.gather(*(_upto_now(setting.hub, f"run{i}", 20) for i in range(2)))
        assert fresh == ["x" * 20_000] * 2
        for writer in writers:
            await writer.end()
        assert [len(text_of(frames)) for frames in await asyncio.gather(*watching)] == [20_000] * 2 + [0] * 3


async def _upto_now(hub: Hub, run: str, texts: int) -> str:
    async with hub.subscribe(run, NATIVE, None) as subscriber:
        return text_of(await rest_of(subscriber, upto=2 + texts))
