"""The whole product as processes: gateways and workers over one Redis, with scripted agents behind."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from tests.support.procs import Child, python
from tests.support.redis_server import RedisServer, free_port
from tests.support.scripted_agents import AgentProcess
from tests.support.sse_client import Viewer
from tests.support.wait import eventually, wait_until

_KEY = "scripted"


class Gateway(Child):
    """One gateway process; `url` is its address."""

    def __init__(self, log: Path, env: Mapping[str, str]) -> None:
        port = free_port()
        super().__init__(python("cli.main", "gateway"), log, env={**env, "BFF_PORT": str(port)})
        self.url = f"http://127.0.0.1:{port}"

    def until_ready(self, deadline: float = 15.0) -> Self:
        def ready() -> bool:
            assert self.running, self.log
            try:
                return httpx.get(self.url + "/readyz", timeout=1, trust_env=False).status_code == 200
            except httpx.TransportError:
                return False

        wait_until(ready, deadline, f"gateway at {self.url} is ready")
        return self


class Worker(Child):
    """One worker process."""

    def __init__(self, log: Path, env: Mapping[str, str]) -> None:
        super().__init__(python("cli.main", "worker"), log, env=env)

    def until_ready(self, deadline: float = 15.0) -> Self:
        self.wait_for_log("worker ready", deadline)
        return self


class System:
    """`with System(directory, agents_yaml, ...) as system:` starts everything and ends it again.

    `agents` is the text of agents.yaml; `{url}` in it is the scripted agent server's address, and
    `${KEY}` its key. `env` is added to every process. Processes are started by `start`.
    """

    def __init__(
        self,
        directory: Path,
        scripted: AgentProcess,
        redis: RedisServer,
        agents: str,
        *,
        gateways: int = 1,
        workers: int = 1,
        redis_url: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.directory = directory
        self.scripted = scripted
        self.redis = redis
        self.gateways: list[Gateway] = []
        self.workers: list[Worker] = []
        self._counts = (gateways, workers)
        self._stack = contextlib.ExitStack()
        config = directory / "agents.yaml"
        config.write_text(agents.replace("{url}", scripted.url))
        self._env = {
            "BFF_REDIS_URL": redis_url or redis.url,
            "BFF_CONFIG": str(config),
            "BFF_SECRET": secrets.token_hex(16),
            "BFF_HOST": "127.0.0.1",
            "BFF_LOG_LEVEL": "INFO",
            "KEY": _KEY,
            **(env or {}),
        }

    def __enter__(self) -> Self:
        gateways, workers = self._counts
        self.gateways += [self._new_gateway({}) for _ in range(gateways)]
        self.workers += [self._new_worker({}) for _ in range(workers)]
        for gateway in self.gateways:
            gateway.until_ready()
        for worker in self.workers:
            worker.until_ready()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    @property
    def url(self) -> str:
        """The first gateway."""
        return self.gateways[0].url

    def add_gateway(self, **env: str) -> Gateway:
        gateway = self._new_gateway(env)
        self.gateways.append(gateway)
        return gateway.until_ready()

    def add_worker(self, **env: str) -> Worker:
        worker = self._new_worker(env)
        self.workers.append(worker)
        return worker.until_ready()

    def _new_gateway(self, env: Mapping[str, str]) -> Gateway:
        log = self.directory / f"gateway{len(self.gateways)}-{secrets.token_hex(2)}.log"
        return self._stack.enter_context(Gateway(log, {**self._env, **env}))

    def _new_worker(self, env: Mapping[str, str]) -> Worker:
        log = self.directory / f"worker{len(self.workers)}-{secrets.token_hex(2)}.log"
        return self._stack.enter_context(Worker(log, {**self._env, **env}))


@contextlib.asynccontextmanager
async def browser() -> AsyncIterator[httpx.AsyncClient]:
    """A client with room for many connections and no proxies."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(trust_env=False, timeout=30, limits=limits) as client:
        yield client


async def start_run(client: httpx.AsyncClient, url: str, agent: str, text: str = "hello", **body: Any) -> str:
    """Ask an agent; gives the run's id."""
    answer = await client.post(
        f"{url}/v1/runs", json={"agent": agent, "input": text, **body}, headers={"accept": "application/json"}
    )
    assert answer.status_code == 201, answer.text
    return str(answer.headers["x-run-id"])


def events_of(url: str, run: str) -> str:
    """Where a run's events are."""
    return f"{url}/v1/runs/{run}/events"


async def watched(client: httpx.AsyncClient, url: str, run: str) -> Viewer:
    """A viewer that has read the run to its end, over as many connections as it takes."""
    viewer = Viewer()
    await viewer.watch_to_end(client, events_of(url, run))
    return viewer


async def state_of(client: httpx.AsyncClient, url: str, run: str) -> dict[str, Any]:
    """What the API says of a run."""
    answer = await client.get(f"{url}/v1/runs/{run}")
    assert answer.status_code == 200, answer.text
    state: dict[str, Any] = answer.json()
    return state


async def text_has_begun(viewer: Viewer) -> None:
    """Wait until something is shown."""
    await eventually(lambda: viewer.text, 15, "the first text")
