"""No key without a lifetime: what a run leaves in Redis goes away by itself."""

from __future__ import annotations

import redis


def keys_without_lifetime(client: redis.Redis) -> list[str]:
    """Keys that would stay for ever, but for those in `shared.keys.WITHOUT_LIFETIME`."""
    from shared.keys import WITHOUT_LIFETIME

    names = sorted(str(name) for name in client.scan_iter(count=1000))
    pipeline = client.pipeline(transaction=False)
    for name in names:
        pipeline.pttl(name)
    return [
        name
        for name, lifetime in zip(names, pipeline.execute(), strict=True)
        if lifetime == -1 and name not in WITHOUT_LIFETIME
    ]
