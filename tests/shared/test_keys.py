"""Every key is in the table, and none stands for ever but those that are named."""

from __future__ import annotations

import re
import secrets

import redis

from shared import keys
from shared.broker import Broker
from shared.conversations import Conversations
from shared.events import RunAccepted, RunCompleted
from shared.index import RunIndex
from shared.jobs import Queue
from shared.stopping import Stopper
from shared.stream_log import Claim, NewRun, StreamLog
from tests.support.keys import keys_without_lifetime
from tests.support.redis_server import RedisServer

RUN = secrets.token_hex(16)


def table() -> list[str]:
    """The patterns of the docstring's table, arq's own job keys beside them."""
    return [*re.findall(r"^\| `(bff:[^`]+)`", keys.__doc__ or "", re.MULTILINE), "arq:job:<job>"]


def described(key: str) -> bool:
    """Whether the table has this key."""
    return any(re.fullmatch(pattern_of(row), key) for row in table())


def pattern_of(row: str) -> str:
    """A regular expression for a row: what stands for something may be anything."""
    return re.sub(r"<\w+>|run(?=\\})", ".+", re.escape(row).replace(r"\<", "<").replace(r"\>", ">"))


def names() -> list[str]:
    """One key of each kind that the module can make."""
    fixed = [keys.OPEN, keys.QUEUE, keys.READY, keys.SWEEP]
    made = [keys.runs_of("t"), keys.conversation("t", "a", "c"), keys.ticket("d")]
    return [*keys.of_run(RUN), *fixed, *made]


def test_every_key_stands_in_the_table_and_every_row_is_a_key() -> None:
    assert all(described(name) for name in names())
    for row in table()[:-1]:
        assert any(re.fullmatch(pattern_of(row), name) for name in names()), row


def test_the_keys_of_a_run_share_a_slot() -> None:
    assert {re.findall(r"{(.*?)}", key)[0] for key in (*keys.of_run(RUN), keys.channel(RUN))} == {RUN}
    assert keys.of_run(RUN)[0] == keys.stream(RUN)
    assert keys.of_run(RUN)[2] == keys.meta(RUN)
    assert keys.run_of_channel(keys.channel(RUN)) == RUN


def test_only_hints_that_the_sweep_repairs_may_stay() -> None:
    assert {keys.OPEN, keys.QUEUE} == keys.WITHOUT_LIFETIME


def test_a_conversation_of_any_length_and_content_has_a_short_key() -> None:
    assert len(keys.conversation("t", "a", "x" * 100_000)) < 80
    assert keys.conversation("t", "a", "}{ *\n") != keys.conversation("t", "a", "}{ *")


async def test_nothing_that_a_run_leaves_stays(redis_server: RedisServer) -> None:
    """From acceptance to end and erasure: each key is known, and each has its lifetime."""
    broker = Broker.open(redis_server.url)
    log, index = StreamLog(broker), RunIndex(broker, 60_000)
    with redis_server.client() as admin:
        await index.add(RUN, "t", 1)
        accepted = RunAccepted(run=RUN, agent="a")
        created = await log.create(NewRun(RUN, "t", "a", "h", accepted, None, b"{}", 1000, 1000, 60_000, {}))
        await Queue(broker).put(RUN, created.job, created.time_ms, 1000)
        await log.watch([RUN], "gateway")
        await Conversations(broker).remember("t", "a", "c", "own id")
        check_keys(admin)
        claim = await log.claim(RUN, "token")
        assert isinstance(claim, Claim)
        check_keys(admin)
        await Stopper(log, index, Queue(broker), broker).end(RUN, RunCompleted(finish_reason="stop"))
        check_keys(admin)
        left = {str(key)[-1] for key in admin.scan_iter("bff:{*")}
        assert left == {"s", "m", "v"}, "neither lease nor prompt outlive the run"
        await log.erase(RUN, 1000)
        check_keys(admin)
    await broker.close()


def check_keys(admin: redis.Redis) -> None:
    """All keys there are: known, and with a lifetime."""
    assert [str(key) for key in admin.scan_iter() if not described(str(key))] == []
    assert keys_without_lifetime(admin) == []
