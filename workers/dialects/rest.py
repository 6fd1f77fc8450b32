"""Old services that answer once: one JSON body, or plain text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from shared.config import RestAgent
from shared.errors import AgentError, AgentProtocolError, AgentTruncated, at
from shared.events import Event, Json, RunCompleted
from shared.requests import RunRequest
from shared.sse import ServerSentEvent
from workers.dialects.base import AgentRequest
from workers.dialects.blocks import Blocks
from workers.dialects.decoding import FrameJson
from workers.dialects.outputs import Outputs
from workers.dialects.reported import shown
from workers.dialects.templated import TemplatedRequest
from workers.mapping import as_text, compile_data, compile_path


class Rest:
    """The one answer of a service."""

    framing: str = "json"

    def __init__(self, config: RestAgent) -> None:
        self.complete = False
        self.closed = False
        self.ended_as: str | None = None
        self._request = TemplatedRequest(config, "application/json, text/plain;q=0.5")
        with at("text"):
            self._text = compile_path(config.text) if config.text else None
        with at("error"):
            self._error = compile_path(config.error) if config.error else None
        with at("data"):
            self._data = compile_data(config.data or (None if config.text else "$"))
        self._outputs = Outputs(name for name, _ in self._data)
        self._json = FrameJson()
        self._blocks = Blocks()

    def request(self, run: RunRequest) -> AgentRequest:
        """The configured request, filled."""
        return self._request.fill(run)

    def map(self, frame: ServerSentEvent) -> Iterable[Event]:
        """The events of the answer."""
        return self._json.mend(self._map(frame.data))

    def finish(self) -> Iterable[Event]:
        """The end."""
        if not self.complete:
            raise AgentTruncated("the agent answered with nothing")
        return self._json.mend([RunCompleted("stop", None, None, self._outputs.whole)])

    def stop_request(self) -> AgentRequest | None:
        """There is none: closing the connection is all that can be done."""
        return None

    def _map(self, body: bytes) -> Iterator[Event]:
        try:
            value = self._json.value(body)
        except AgentProtocolError:
            if body.startswith((b"{", b"[")):  # cut or broken JSON is no answer
                raise
            yield from self._blocks.text(body.decode("utf-8", "replace"))
        else:
            yield from self._map_value(value)
        yield from self._blocks.close()
        self.complete = True

    def _map_value(self, value: Json) -> Iterator[Event]:
        error = self._error.first(value) if self._error else None
        if error is not None:
            raise AgentError(shown(as_text(error)))
        if self._text is not None:
            found = self._text.find(value)
            if not found:
                raise AgentProtocolError(f"the answer has nothing at {self._text.expression}")
            yield from self._blocks.text("".join(as_text(part) for part in found))
        yield from self._outputs.take(self._data, value)
