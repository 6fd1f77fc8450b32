"""Requests that the configuration writes out, with templates for what a run fills in."""

from __future__ import annotations

from shared.config import MappedAgent, RestAgent
from shared.requests import RunRequest
from workers.dialects.base import AgentRequest
from workers.dialects.endpoints import headers
from workers.mapping import Template, UrlTemplate


class TemplatedRequest:
    """The request of a `mapped` or `rest` agent. Raises ConfigError for templates that are none."""

    def __init__(self, config: MappedAgent | RestAgent, accept: str) -> None:
        body = config.request
        self._config = config
        self._accept = accept
        self._url = UrlTemplate(config.url)
        self._body = Template({**config.body, **body} if isinstance(body, dict) else body)

    def fill(self, run: RunRequest) -> AgentRequest:
        """The request for one run. Raises AgentRejected for a value its address cannot hold."""
        config = self._config
        body = None if config.method == "GET" else self._body.fill(run)
        found = headers(config.headers, config.api_key, accept=self._accept)
        return AgentRequest(config.method, self._url.fill(run), found, body)
