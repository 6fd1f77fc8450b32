"""Every Redis key, and how long it lives.

Keys of a run share the hash tag `{run}`, so that one script reaches them on Redis Cluster too.
All of them get their lifetime where they are written (`shared/lua/`).

| key | holds | lives |
| --- | --- | --- |
| `bff:{run}:s` | stream: the events | queue + run deadline + retention, then retention |
| `bff:{run}:l` | lease: the owner's token and the newest id | `lease`, set anew by append and renew |
| `bff:{run}:m` | meta: tenant, agent, policies, deadlines, attempts, end | as the stream |
| `bff:{run}:r` | request: the prompt | as the stream, deleted when the run ends |
| `bff:{run}:v` | viewers: gateway to time last seen | a minute after the last sign |
| `bff:open` | runs that have not ended, by acceptance | none: the sweep keeps it true |
| `bff:queue` | arq's queue | none: arq and the sweep keep it true |
| `bff:ready` | wake-up hints for free workers | a minute |
| `bff:sweep` | which process sweeps now | a few sweeps |
| `bff:runs:<tenant>` | runs of a tenant, by acceptance | retention after the last |
| `bff:conv:<tenant>:<agent>:<id>` | the agent's own conversation id | a week after its last use |
| `bff:ticket:<digest>` | a ticket that was used | until the ticket would have expired |
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

PREFIX = "bff:"

OPEN = PREFIX + "open"
QUEUE = PREFIX + "queue"
READY = PREFIX + "ready"
SWEEP = PREFIX + "sweep"
STOPS = PREFIX + "stops"
"""Channel on which the ends of runs by others than their worker are told."""

WITHOUT_LIFETIME = frozenset((OPEN, QUEUE))
"""The only keys that may stand without a lifetime."""

READY_SECONDS = 60
CONVERSATION_SECONDS = 7 * 24 * 3600


@lru_cache(maxsize=4096)
def of_run(run: str) -> tuple[str, str, str, str, str]:
    """Stream, lease, meta, request and viewers of a run, in the order that the scripts expect."""
    tag = f"{PREFIX}{{{run}}}:"
    return tag + "s", tag + "l", tag + "m", tag + "r", tag + "v"


def stream(run: str) -> str:
    return f"{PREFIX}{{{run}}}:s"


def meta(run: str) -> str:
    return f"{PREFIX}{{{run}}}:m"


@lru_cache(maxsize=4096)
def channel(run: str) -> str:
    """The shard channel on which a run's events are published."""
    return f"{PREFIX}{{{run}}}:c"


def run_of_channel(channel_name: str) -> str:
    """The run whose channel this is."""
    return channel_name[len(PREFIX) + 1 : -len("}:c")]


def runs_of(tenant: str) -> str:
    return f"{PREFIX}runs:{tenant}"


def conversation(tenant: str, agent: str, conversation_id: str) -> str:
    """Hashed, since a front end chooses the id and may choose it long."""
    digest = hashlib.sha256(conversation_id.encode()).hexdigest()[:32]
    return f"{PREFIX}conv:{tenant}:{agent}:{digest}"


def ticket(digest: str) -> str:
    return f"{PREFIX}ticket:{digest}"
