"""How agents speak: a file for each way, and the table of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from workers.dialects.base import AgentDialect
from workers.dialects.dify import CHAT, COMPLETION, WORKFLOW, Dify
from workers.dialects.function import Function
from workers.dialects.mapped import Mapped
from workers.dialects.openai_chat import OpenAIChat
from workers.dialects.rest import Rest

AGENT_DIALECTS: dict[str, Callable[[Any], AgentDialect]] = {
    "openai-chat": OpenAIChat,
    "dify-completion": partial(Dify, app=COMPLETION),
    "dify-chat": partial(Dify, app=CHAT),
    "dify-workflow": partial(Dify, app=WORKFLOW),
    "mapped": Mapped,
    "rest": Rest,
    "function": Function,
}
"""Name in `agents.yaml` to what makes a dialect for one attempt from the agent's configuration."""
