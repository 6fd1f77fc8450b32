"""Requests that the configuration writes out, with placeholders for what a run fills in."""

from __future__ import annotations

from shared.config import MappedAgent, RestAgent
from shared.errors import at
from shared.requests import RunRequest
from workers.dialects.base import AgentRequest
from workers.dialects.endpoints import headers
from workers.mapping import Template, UrlTemplate


class TemplatedRequest:
    """The request of a `mapped` or `rest` agent. Raises ConfigError for unknown placeholders."""

    def __init__(self, config: MappedAgent | RestAgent, accept: str) -> None:
        self._config = config
        self._accept = accept
        with at("url"):
            self._url = UrlTemplate(config.url)
        self._body = Template(config.body)

    def fill(self, run: RunRequest) -> AgentRequest:
        """The request for one run. Raises AgentRejected for a value its address cannot hold."""
        config = self._config
        body = None if config.method == "GET" else self._body.fill(run)
        found = headers(config.headers, config.api_key, accept=self._accept)
        return AgentRequest(config.method, self._url.fill(run), found, body)
