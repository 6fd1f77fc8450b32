"""A whole system for a test: its own Redis, gateways and workers, all ended with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.keys import check_what_is_left
from tests.support.redis_server import RedisServer
from tests.support.scripted_agents import AgentProcess
from tests.support.system import System

StartSystem = Callable[..., System]

AGENTS = """
agents:
  assistant: {dialect: openai-chat, url: "{url}/openai/v1", model: gpt, api_key: "${KEY}"}
  long: {dialect: openai-chat, url: "{url}/s/long/openai/v1", model: gpt, api_key: "${KEY}"}
  long-again: {dialect: openai-chat, url: "{url}/s/long/openai/v1", model: gpt, api_key: "${KEY}",
               on_interrupt: restart}
  workflow: {dialect: dify-workflow, url: "{url}/dify/v1", api_key: "${KEY}"}
"""


@contextmanager
def systems(directory: Path, agents: AgentProcess, redis: RedisServer) -> Iterator[StartSystem]:
    """Gives what starts systems; when they have ended, what they left in Redis is checked."""
    used: list[RedisServer] = []
    with ExitStack() as stack:

        def start(
            config: str = AGENTS,
            *,
            redis: RedisServer = redis,
            scripted: AgentProcess = agents,
            **options: Any,
        ) -> System:
            used.append(redis)
            return stack.enter_context(System(directory, scripted, redis, config, **options))

        yield start
    for server in used:
        check_what_is_left(server)


@pytest.fixture
def start_system(
    tmp_path: Path, scripted_agents: AgentProcess, redis_server: RedisServer
) -> Iterator[StartSystem]:
    """Starts systems; `redis`, `scripted`, `gateways`, `workers` and `env` as in `System`."""
    with systems(tmp_path, scripted_agents, redis_server) as start:
        yield start


@pytest.fixture(scope="module")
def start_shared_system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartSystem]:
    """The same for a system that all tests of a module share; Redis and agents are its own, too."""
    directory = tmp_path_factory.mktemp("system")
    with (
        RedisServer(tmp_path_factory.mktemp("redis")) as redis,
        AgentProcess(directory) as agents,
        systems(directory, agents, redis) as start,
    ):
        yield start
