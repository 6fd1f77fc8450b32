"""A whole system for a test: its own Redis, gateways and workers, all ended with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

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


@pytest.fixture
def start_system(
    tmp_path: Path, scripted_agents: AgentProcess, redis_server: RedisServer
) -> Iterator[StartSystem]:
    """Starts systems; `redis`, `agents`, `gateways`, `workers` and `env` as in `System`."""
    with ExitStack() as stack:

        def start(agents: str = AGENTS, *, redis: RedisServer | None = None, **options: Any) -> System:
            return stack.enter_context(
                System(tmp_path, scripted_agents, redis or redis_server, agents, **options)
            )

        yield start
