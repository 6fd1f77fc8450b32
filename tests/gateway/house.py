"""A whole gateway over a real Redis, its clients, and a worker that says what a test says."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from gateway.auth import new_key
from gateway.drain import Drain
from gateway.main import build_app
from shared import config
from shared.broker import Broker
from shared.config import Client, Config
from shared.cursor import Cursor
from shared.events import Event, RunCompleted, Terminal, TextDelta, TextEnd, TextStart, dump
from shared.settings import Settings
from shared.stream_log import Append, Claim, Entry, Finish, StreamLog
from tests.gateway.serving import served

SECRET = "a secret of this test only"

AGENTS = """
agents:
  writer: {dialect: openai-chat, url: "http://127.0.0.1:9/v1", model: m, description: writes}
  restarted: {dialect: openai-chat, url: "http://127.0.0.1:9/v1", model: m, on_interrupt: restart,
              on_disconnect: linger, linger: 7, repeatable: false}
  flow: {dialect: dify-workflow, url: "http://127.0.0.1:9/v1", api_key: "${FLOW_KEY:-x}"}
  absent: {dialect: openai-chat, url: "http://127.0.0.1:9/v1", model: m, api_key: "${NOT_SET_ANYWHERE}"}
"""


def configured(**clients: Client) -> Config:
    """The agents above, for these tenants."""
    plain = config.parse(AGENTS, {})
    return Config(plain.agents, plain.unavailable, plain.dialects, clients, plain.digest)


def keyed(name: str, limits: Mapping[str, int] | None = None, **fields: Any) -> tuple[str, Client]:
    """A key and the tenant that has it."""
    text, key = new_key(name, SECRET.encode())
    return text, Client(keys=(key.model_copy(update=fields),), limits=config.Limits(**(limits or {})))


def words(*texts: str) -> tuple[Event, ...]:
    """A block of text."""
    return (TextStart("1"), *(TextDelta("1", text) for text in texts), TextEnd("1"))


class Worker:
    """Plays the worker's part on the log, one attempt of each run."""

    def __init__(self, log: StreamLog) -> None:
        self._log = log
        self._claims: dict[str, tuple[Claim, Cursor]] = {}

    async def says(self, run: str, *events: Event) -> list[Cursor]:
        """Append events to the run, which is claimed first if it has not been."""
        if run not in self._claims:
            claim = await self._log.claim(run, secrets.token_hex(4))
            assert isinstance(claim, Claim), claim
            self._claims[run] = (claim, claim.started.cursor)
        claim, last = self._claims[run]
        entries = []
        for event in events:
            last = last.next()
            entries.append(Entry(last, event.type, dump(event)))
        if entries:
            append = Append(run, claim.token, claim.attempt, self._claims[run][1], entries, True)
            await self._log.append([append])
        self._claims[run] = (claim, last)
        return [entry.cursor for entry in entries]

    async def ends(self, run: str, end: Terminal | None = None) -> Cursor:
        """Write the terminal event."""
        claim, last = self._claims[run]
        reply = await self._log.finish(
            Finish(run, claim.token, end or RunCompleted("stop"), claim.attempt, last)
        )
        return reply.last

    async def answers(self, run: str, *texts: str) -> Cursor:
        """A whole answer."""
        await self.says(run, *words(*texts))
        return await self.ends(run)


@dataclass
class House:
    """A gateway that runs. `client` has no key."""

    client: httpx.AsyncClient
    worker: Worker
    broker: Broker
    log: StreamLog
    port: int

    async def begin(self, key: str | None = None, agent: str = "writer", **body: Any) -> str:
        """Begin a run; gives its id."""
        answer = await self.client.post(
            "/v1/runs",
            json={"agent": agent, "input": "hello", **body},
            headers={"accept": "application/json", **bearer(key)},
        )
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])


def bearer(key: str | None) -> dict[str, str]:
    """The header that carries a key."""
    return {} if key is None else {"authorization": f"Bearer {key}"}


@asynccontextmanager
async def house(redis_url: str, config_: Config | None = None, **settings: Any) -> AsyncIterator[House]:
    """A gateway on a free port."""
    wanted = Settings(
        **{
            "redis_url": redis_url,
            "secret": SECRET,
            "heartbeat": 0.2,
            "drain": 1.0,
            "sweep_every": 3600.0,
            "redis_timeout": 2.0,
            **settings,
        }
    )
    drain = Drain()
    async with AsyncExitStack() as stack:
        app = build_app(wanted, config_ if config_ is not None else configured(), drain)
        port = await stack.enter_async_context(served(app, wanted, drain))
        broker = Broker.open(redis_url)
        stack.push_async_callback(broker.close)
        client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10.0, trust_env=False)
        await stack.enter_async_context(client)
        log = StreamLog(broker)
        yield House(client, Worker(log), broker, log, port)
