"""What runs leave in Redis: no key without a lifetime, and no prompt of a run that has ended."""

from __future__ import annotations

import redis

from shared import keys
from tests.support.redis_server import RedisServer


def keys_without_lifetime(client: redis.Redis) -> list[str]:
    """Keys that would stay for ever, but for those in `shared.keys.WITHOUT_LIFETIME`."""
    names = sorted(str(name) for name in client.scan_iter(count=1000))
    pipeline = client.pipeline(transaction=False)
    for name in names:
        pipeline.pttl(name)
    return [
        name
        for name, lifetime in zip(names, pipeline.execute(), strict=True)
        if lifetime == -1 and name not in keys.WITHOUT_LIFETIME
    ]


def prompts_of_ended_runs(client: redis.Redis) -> list[str]:
    """Requests that should have been deleted with the end of their runs."""
    requests = sorted(str(name) for name in client.scan_iter(f"{keys.PREFIX}{{*}}:r", count=1000))
    return [name for name in requests if client.hexists(name.removesuffix("r") + "m", "end")]


def check_what_is_left(server: RedisServer) -> None:
    """Fail for what should not be there. A server that a test has ended holds nothing."""
    if not server.running:
        return
    with server.client() as client:
        assert keys_without_lifetime(client) == []
        assert prompts_of_ended_runs(client) == []
