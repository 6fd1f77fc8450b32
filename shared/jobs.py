"""What the gateway asks of a worker: the queue, which is arq's, and the wake-up list beside it.

A job carries a run's id and nothing else, as JSON. The queue is the truth; the list only wakes a
free worker at once, which arq's polling alone would do half a second later. Clocks do not matter:
scores are Redis' time less an hour (less two for a run that was started before, so restarts go first).
"""

from __future__ import annotations

from collections.abc import Sequence

import orjson
from arq.constants import job_key_prefix
from arq.jobs import serialize_job

from shared import keys
from shared.broker import Broker

FUNCTION = "claim_run"
"""The one function that workers offer."""

_HOUR_MS = 3_600_000
_LONGEST_READY_LIST = 10_000


def dumps(value: dict[str, object]) -> bytes:
    """arq's job serialiser: JSON, since unpickling what stands in Redis would run it."""
    return orjson.dumps(value, default=str)


def loads(data: bytes) -> dict[str, object]:
    """The other way. Raises ValueError for anything but a JSON object."""
    value = orjson.loads(data)
    if not isinstance(value, dict):
        raise ValueError("a job is a JSON object")
    return value


def run_of(job: bytes) -> str:
    """The run that a job id is for."""
    return job.decode("utf-8", "replace").partition(":")[0]


class Queue:
    """Puts runs on the queue, takes them off and counts them."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def put(self, run: str, job: str, time_ms: int, lifetime_ms: int, restarted: bool = False) -> None:
        """Queue a run under the job id that the log noted for it, and wake a worker.

        `time_ms` is Redis' time. The same job put twice stands once.
        """
        body = serialize_job(FUNCTION, (run,), {}, None, time_ms, serializer=dumps)
        score = time_ms - (2 if restarted else 1) * _HOUR_MS
        wake = "LPUSH" if restarted else "RPUSH"
        await self._broker.calls(
            [
                ("PSETEX", job_key_prefix + job, lifetime_ms, body),
                ("ZADD", keys.QUEUE, score, job),
                (wake, keys.READY, job),
                ("LTRIM", keys.READY, 0, _LONGEST_READY_LIST),
                ("EXPIRE", keys.READY, keys.READY_SECONDS),
            ]
        )

    async def take_off(self, job: bytes) -> None:
        """Take a job off whose run was started without arq's help."""
        await self._broker.calls([("ZREM", keys.QUEUE, job), ("DEL", job_key_prefix.encode() + job)])

    async def length(self) -> int:
        """How many runs wait for a worker."""
        return int(await self._broker.call("ZCARD", keys.QUEUE))

    async def waiting(self, jobs: Sequence[str]) -> list[bool]:
        """Which of these jobs are still on the queue."""
        scores = await self._broker.calls([("ZSCORE", keys.QUEUE, job) for job in jobs])
        return [score is not None for score in scores]
