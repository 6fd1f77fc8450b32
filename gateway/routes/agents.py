"""GET /v1/agents: who can be asked with this key, in what way, and what comes back."""

from __future__ import annotations

from typing import Any, NamedTuple

from fastapi import APIRouter, Response
from pydantic import BaseModel

from gateway.admission import offered_agents
from gateway.dependencies import Opened, Reader
from gateway.routes.answers import json_answer
from gateway.routes.problems import PROBLEMS
from shared.config import Config

router = APIRouter(tags=["agents"])


class _Traits(NamedTuple):
    takes: tuple[str, ...]
    gives: tuple[str, ...]


_TRAITS = {
    "openai-chat": _Traits(
        ("text", "messages", "images", "tools", "parameters"), ("text", "reasoning", "tools", "usage")
    ),
    "dify-completion": _Traits(("text", "inputs"), ("text", "usage")),
    "dify-chat": _Traits(
        ("text", "messages", "images", "inputs", "conversation"),
        ("text", "steps", "sources", "files", "usage"),
    ),
    "dify-workflow": _Traits(("text", "inputs"), ("data", "text", "steps", "files", "usage")),
    "mapped": _Traits(("text", "messages", "inputs"), ("text", "reasoning", "data", "steps", "usage")),
    "rest": _Traits(("text", "messages", "inputs"), ("text", "data")),
    "function": _Traits(("text", "messages", "inputs", "conversation"), ("text", "reasoning", "data")),
}
"""What agents of a dialect can be given and can give, at most."""

_UNKNOWN = _Traits(("text",), ("text",))


class AgentEntry(BaseModel):
    """An agent. `reason` says why it is not available."""

    name: str
    dialect: str
    available: bool
    reason: str | None = None
    description: str | None = None
    takes: list[str]
    gives: list[str]


class AgentList(BaseModel):
    """The agents that a key may ask."""

    agents: list[AgentEntry]


@router.get(
    "/v1/agents",
    summary="List the agents that this key may ask",
    response_class=Response,
    responses={200: {"model": AgentList}, **PROBLEMS},
)
async def list_agents(gateway: Opened, caller: Reader) -> Response:
    """Agents whose secrets are not set are listed with the reason."""
    names = offered_agents(gateway.config, caller)
    return json_answer({"agents": [_entry(gateway.config, name) for name in names]})


def _entry(config: Config, name: str) -> dict[str, Any]:
    agent = config.agents.get(name)
    dialect = agent.dialect if agent is not None else config.dialects.get(name, "")
    traits = _TRAITS.get(dialect, _UNKNOWN)
    entry: dict[str, Any] = {"name": name, "dialect": dialect, "available": agent is not None}
    if agent is None:
        entry["reason"] = config.unavailable[name]
    elif agent.description is not None:
        entry["description"] = agent.description
    return {**entry, "takes": traits.takes, "gives": traits.gives}
