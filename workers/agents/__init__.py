"""How agents are reached, and the table of ways."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shared.config import Agent
from shared.requests import RunRequest
from workers.agents.base import AgentStream
from workers.agents.client import HttpAgents
from workers.agents.function import FunctionStream
from workers.agents.http import HttpStream
from workers.dialects.base import AgentDialect


def _by_http(agents: HttpAgents, config: Any, dialect: AgentDialect, run: RunRequest) -> AgentStream:
    return HttpStream(agents, dialect, dialect.request(run), connect=config.timeouts.connect)


def _by_call(agents: HttpAgents, config: Any, dialect: AgentDialect, run: RunRequest) -> AgentStream:
    return FunctionStream(config, run)


REACHED: dict[str, Callable[[HttpAgents, Any, AgentDialect, RunRequest], AgentStream]] = {
    "openai-chat": _by_http,
    "dify-completion": _by_http,
    "dify-chat": _by_http,
    "dify-workflow": _by_http,
    "mapped": _by_http,
    "rest": _by_http,
    "function": _by_call,
}
"""Name of a dialect to how its agents are reached."""


def open_agent(agents: HttpAgents, config: Agent, dialect: AgentDialect, run: RunRequest) -> AgentStream:
    """The stream of one run, not yet begun. Raises ConfigError, AgentRejected."""
    return REACHED[config.dialect](agents, config, dialect, run)
