"""A run as a front end wants to see it: the dialect by name, its options, and what the agent adds."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import jsonpath_ng

from gateway.dialects import FRONTEND_DIALECTS
from gateway.dialects.base import ViewOptions
from gateway.window import View
from shared.config import Agent
from shared.events import Json

MEDIA_TYPES = {"text/event-stream": "sse", "application/x-ndjson": "ndjson", "text/plain": "text"}
"""The native dialects by what an `Accept` header calls them."""


def view_of(dialect: str, options: ViewOptions) -> View:
    """The view whose frames all connections with equal options share."""
    return View(options.key(dialect), partial(FRONTEND_DIALECTS[dialect], options))


def takes_back(dialect: str) -> bool:
    """Whether text that was shown in this dialect can be taken back."""
    return FRONTEND_DIALECTS[dialect](ViewOptions()).takes_back


def text_finder(agent: Agent | None) -> Callable[[Json], Json] | None:
    """How to find the text in the structured output of an agent that names the field."""
    return _finder(agent.text) if agent is not None and agent.text else None


@lru_cache(maxsize=256)
def _finder(expression: str) -> Callable[[Json], Json]:
    path = jsonpath_ng.parse(expression)  # type: ignore[attr-defined]  # it is its public name

    def find(value: Json) -> Json:
        return next((match.value for match in path.find(value)), None)

    return find
