"""Fixtures for all tests. A coroutine test needs no decoration: it runs on asyncio by anyio's plugin."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.keys import keys_without_lifetime
from tests.support.redis_server import RedisServer
from tests.support.scripted_agents import AgentProcess


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def _session_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_server(_session_redis: RedisServer) -> RedisServer:
    """An empty server, one per test process. A test that kills or pauses it makes its own instead."""
    with _session_redis.client() as client:
        client.flushall()
        client.script_flush()
    return _session_redis


@pytest.fixture
def no_lasting_keys(redis_server: RedisServer) -> Iterator[None]:
    """Fails a test that leaves a key which would stay for ever."""
    yield
    with redis_server.client() as client:
        assert keys_without_lifetime(client) == []


@pytest.fixture(scope="session")
def _session_agents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    with AgentProcess(tmp_path_factory.mktemp("agents")) as agents:
        yield agents


@pytest.fixture
def scripted_agents(_session_agents: AgentProcess) -> AgentProcess:
    """The scripted agent server, one per test process, with no scripts and no counts."""
    _session_agents.reset()
    return _session_agents
