"""Fixtures for all tests. A coroutine test needs no decoration: it runs on asyncio by anyio's plugin."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator

import pytest

from tests.support.keys import check_what_is_left
from tests.support.procs import processes_with
from tests.support.redis_server import RedisServer
from tests.support.scripted_agents import AgentProcess
from tests.support.wait import wait_until

_MARK = "STREAMING_BFF_TEST_SESSION"


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def _no_process_left() -> Iterator[None]:
    """Every process started by a test inherits a mark; at the end of the session nobody may carry it."""
    mark = os.environ[_MARK] = secrets.token_hex(8)
    yield
    wait_until(lambda: not processes_with(_MARK, mark), 10, "no process is left")


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
    """Fails a test that leaves a key which would stay for ever, or a prompt of an ended run."""
    yield
    check_what_is_left(redis_server)


@pytest.fixture(scope="session")
def _session_agents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    with AgentProcess(tmp_path_factory.mktemp("agents")) as agents:
        yield agents


@pytest.fixture
def scripted_agents(_session_agents: AgentProcess) -> AgentProcess:
    """The scripted agent server, one per test process, with no scripts and no counts."""
    _session_agents.reset()
    return _session_agents
