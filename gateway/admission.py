"""From what a front end asks to an accepted run, in three round trips to Redis.

The order: the index, then the stream, then the queue. Whatever is lost after the
stream was created is repaired by the sweep, so from then on the run is accepted.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import msgspec

from gateway.auth import Caller
from gateway.records import record
from shared import requests
from shared.broker import patiently
from shared.config import Agent, Config, OnDisconnect, OpenAIChatAgent
from shared.conversations import Conversations
from shared.errors import BrokerError, BrokerUnavailable, RequestError
from shared.events import SCHEMA, RunAccepted, RunQueued
from shared.failpoints import failpoint
from shared.index import Added, RunIndex
from shared.jobs import Queue
from shared.requests import RunRequest
from shared.stream_log import Created, Log, NewRun
from shared.warnings import warnings

log = logging.getLogger(__name__)

AGENT_CONVERSATION = "agent_conversation"
"""Where `RunRequest.metadata` carries the agent's own id of the conversation; never a front end's word."""

CANCEL_MS = 2000
"""How long after the last viewer left `cancel` waits, so that a reconnect is no disconnect."""

_CREATE_PATIENCE = 1.0
"""Seconds for which a creation whose answer was lost is repeated."""

_JOB_MARGIN_MS = 60_000
_LONGEST_KEY = 255


@dataclass(frozen=True)
class Order:
    """What a front end asks for. `raw` is the body as it came, `route` what an idempotency key is for.

    `takes_back` says whether its dialect can take back what it has shown, `agent_field` where it names
    the agent.
    """

    agent: str | None
    request: RunRequest
    raw: bytes
    route: str
    dialect: str
    takes_back: bool
    agent_field: str = "agent"
    on_disconnect: OnDisconnect | None = None
    idempotency_key: str | None = None


@dataclass(frozen=True)
class Admitted:
    """An accepted run; `new` is false when the same order had been accepted before.

    `accepted_ms` is the time of acceptance in milliseconds since 1970.
    """

    run: str
    agent: str
    new: bool
    accepted_ms: int
    state: str = "queued"


class Admission:
    """Takes orders."""

    def __init__(
        self,
        config: Config,
        secret: bytes,
        log: Log,
        index: RunIndex,
        queue: Queue,
        conversations: Conversations,
        *,
        max_queue: int,
        retention: float,
    ) -> None:
        """`max_queue` runs may wait for a worker; `retention` in seconds."""
        self._config = config
        self._secret = secret
        self._log = log
        self._index = index
        self._queue = queue
        self._conversations = conversations
        self._max_queue = max_queue
        self._retention_ms = round(retention * 1000)

    async def admit(self, caller: Caller, order: Order) -> Admitted:
        """Accept a run, or find the one that the same order began before.

        Raises RequestError when the caller may not have it or there is no room, BrokerError when Redis
        cannot take it.
        """
        name, agent = self._agent(caller, order.agent, order.agent_field)
        run = self._run_id(caller, order)
        waiting, added, own_id = await asyncio.gather(
            self._queue.length(),
            self._index.add(run, caller.tenant, _now_ms()),
            self._own_id(caller, name, order.request.conversation),
        )
        refusal = self._no_room(caller, waiting, added.others)
        if refusal is not None and not (order.idempotency_key and await self._is_there(run)):
            await self._take_back(run, caller, added)
            raise refusal
        new = self._new_run(run, caller, name, agent, order, waiting, own_id)
        try:
            created = await patiently(lambda: self._log.create(new), time.monotonic() + _CREATE_PATIENCE)
        except BrokerError as error:
            if not isinstance(error, BrokerUnavailable):  # whose answer may be lost, and the run be there
                await self._take_back(run, caller, added)
            raise
        if created.new:
            failpoint("after_accept")
            await self._enqueue(new, created)
            return Admitted(run, name, True, created.time_ms)
        _check_same(created, new)
        known = record(run, (await self._log.meta([run]))[0])
        return Admitted(run, name, False, known.accepted_ms, known.state)

    def _agent(self, caller: Caller, name: str | None, field: str) -> tuple[str, Agent]:
        offered = offered_agents(self._config, caller)
        known = f"; you may ask {', '.join(offered) or 'none'}"
        name = name or caller.default_agent
        if name is None:
            raise RequestError(422, "agent_missing", f"name an agent{known}", field=field)
        if name not in offered:
            raise RequestError(404, "unknown_agent", f"there is no agent {name[:64]!r}{known}", field=field)
        if name not in self._config.agents:
            reason = self._config.unavailable[name]
            raise RequestError(
                503, "agent_unavailable", f"the agent {name!r} is not available: {reason}", field=field
            )
        return name, self._config.agents[name]

    def _run_id(self, caller: Caller, order: Order) -> str:
        key = order.idempotency_key
        if key is None:
            return secrets.token_hex(16)
        if not 0 < len(key) <= _LONGEST_KEY or not key.isprintable():
            raise RequestError(
                400,
                "idempotency_key",
                f"an idempotency key has 1 to {_LONGEST_KEY} printable characters",
                field="Idempotency-Key",
            )
        said = "\0".join(("run", caller.tenant, order.route, key))
        return hmac.new(self._secret, said.encode(), hashlib.sha256).hexdigest()[:32]

    async def _own_id(self, caller: Caller, agent: str, conversation: str | None) -> str | None:
        if conversation is None:
            return None
        return await self._conversations.find(caller.tenant, agent, conversation)

    def _no_room(self, caller: Caller, waiting: int, running: int) -> RequestError | None:
        limit = caller.limits.running
        if running >= limit:
            return RequestError(
                429,
                "too_many_runs",
                f"this client has {limit} runs under way, which is its limit; wait for one or stop one",
                retry_after=2,
            )
        if waiting and waiting >= self._max_queue:
            return RequestError(
                429, "queue_full", f"{waiting} runs wait for a worker already; try again later", retry_after=5
            )
        return None

    def _new_run(
        self,
        run: str,
        caller: Caller,
        name: str,
        agent: Agent,
        order: Order,
        waiting: int,
        own_id: str | None,
    ) -> NewRun:
        request = _with_own_id(order.request, own_id)
        accepted = RunAccepted(run, name, request.conversation, SCHEMA, warnings(agent, request))
        return NewRun(
            run=run,
            tenant=caller.tenant,
            agent=name,
            body_hash=_body_hash(name, order),
            accepted=accepted,
            queued=RunQueued(waiting) if waiting else None,
            request=requests.dump(request),
            queue_ms=round(agent.timeouts.queue * 1000),
            run_ms=round(agent.timeouts.run * 1000),
            retention_ms=self._retention_ms,
            model=agent.model if isinstance(agent, OpenAIChatAgent) else None,
            meta={
                **_policies(agent, order),
                "digest": self._config.digest,
                "dialect": order.dialect,
                **({"conversation": request.conversation} if request.conversation else {}),
            },
        )

    async def _is_there(self, run: str) -> bool:
        return bool((await self._log.meta([run]))[0])

    async def _take_back(self, run: str, caller: Caller, added: Added) -> None:
        """Out of the index again, unless the same order has become a run meanwhile. Best effort."""
        with suppress(BrokerError):
            await self._index.take_back(run, caller.tenant, added)
            if await self._is_there(run):
                await self._index.add(run, caller.tenant, _now_ms())

    async def _enqueue(self, new: NewRun, created: Created) -> None:
        """Put it on the queue, and, in the same round trip, into the index, whoever took it out meanwhile."""
        try:
            await asyncio.gather(
                self._index.reopen(new.run, created.time_ms),
                self._queue.put(new.run, created.job, created.time_ms, new.queue_ms + _JOB_MARGIN_MS),
            )
        except BrokerError as error:
            log.warning("run %s was accepted but not queued, which the sweep does next: %s", new.run, error)


def _now_ms() -> int:
    return int(time.time() * 1000)


def offered_agents(config: Config, caller: Caller) -> Sequence[str]:
    """The names of the agents that this caller may ask, also of those that are not available."""
    return [name for name in (*config.agents, *config.unavailable) if caller.may_ask(name)]


def _policies(agent: Agent, order: Order) -> dict[str, str]:
    """What is decided at creation, whatever the configuration says later."""
    on_disconnect = order.on_disconnect or agent.on_disconnect
    linger_ms = {"cancel": CANCEL_MS, "linger": round(agent.linger * 1000)}.get(on_disconnect)
    return {
        "on_disconnect": on_disconnect,
        **({} if linger_ms is None else {"linger_ms": str(linger_ms)}),
        "on_interrupt": agent.on_interrupt if order.takes_back else "fail",
        "repeatable": "1" if agent.repeatable else "0",
    }


def _with_own_id(request: RunRequest, own_id: str | None) -> RunRequest:
    metadata = {key: value for key, value in request.metadata.items() if key != AGENT_CONVERSATION}
    if own_id is not None:
        metadata[AGENT_CONVERSATION] = own_id
    return msgspec.structs.replace(request, metadata=metadata)


def _body_hash(agent: str, order: Order) -> str:
    said = b"\0".join((agent.encode(), (order.request.conversation or "").encode(), order.raw))
    return hashlib.sha256(said).hexdigest()


def _check_same(created: Created, new: NewRun) -> None:
    if created.end == "deleted":
        raise RequestError(410, "erased", "the run of this idempotency key was erased; use another key")
    if created.body_hash != new.body_hash:
        raise RequestError(
            422,
            "idempotency_mismatch",
            "this idempotency key was used with another body; use a new key for a new run",
            field="Idempotency-Key",
        )
