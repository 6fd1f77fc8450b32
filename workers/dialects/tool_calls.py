"""Tool calls that come in fragments (Chat Completions `delta.tool_calls`), merged by index.

Without an index (Gemini's compatible endpoint) a fragment with a new id or a name begins a call
and any other goes on with the last one. Servers that number every call 0 are told apart by id.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec
import orjson

from shared.errors import AgentProtocolError
from shared.events import Event, Json, ToolDelta, ToolEnd, ToolStart
from workers.dialects.decoding import whole

MAX_CALLS = 1024
"""More in one answer is a fault of the agent."""


class Function(msgspec.Struct):
    """`arguments` is JSON text in pieces; some servers send the object at once."""

    name: str | None = None
    arguments: str | dict[str, Json] | None = None


class Fragment(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: Function | None = None


class _Call:
    def __init__(self, number: int, given: str | None) -> None:
        self.id = given or f"call_{number}"
        self.given = given or None
        self.name = ""
        self.arguments: list[str] = []


class ToolCalls:
    """The calls of one answer."""

    def __init__(self) -> None:
        self._calls: list[_Call] = []
        self._by_index: dict[int, _Call] = {}

    def feed(self, fragment: Fragment) -> Iterator[Event]:
        """The events of one fragment."""
        function = fragment.function or Function()
        call = self._find(fragment, bool(function.name)) or self._new(fragment)
        if function.name and not call.name:
            call.name = function.name
            yield ToolStart(call.id, call.name)
            if call.arguments:
                yield ToolDelta(call.id, "".join(call.arguments))
        text = function.arguments
        if isinstance(text, dict):
            text = orjson.dumps(text).decode()
        if text:
            call.arguments.append(text)
            if call.name:
                yield ToolDelta(call.id, text)

    def close(self, *, cut: bool) -> Iterable[Event]:
        """The ends of the calls; of an answer that was `cut`, only those that are whole."""
        for call in self._calls:
            text = whole("".join(call.arguments))
            if cut and not text.strip():
                continue
            try:
                arguments = orjson.loads(text) if text.strip() else {}
            except orjson.JSONDecodeError:
                if cut:
                    continue
                arguments = text  # a model's slip: the front end gets what the model wrote
            if call.name:
                yield ToolEnd(call.id, call.name, arguments)
        self._calls, self._by_index = [], {}

    def _find(self, fragment: Fragment, named: bool) -> _Call | None:
        if fragment.index is not None:
            call = self._by_index.get(fragment.index)
            other = call is not None and named and bool(fragment.id and call.given != fragment.id)
            return None if other else call
        if fragment.id:
            return next((call for call in self._calls if call.given == fragment.id), None)
        return self._calls[-1] if self._calls and not named else None

    def _new(self, fragment: Fragment) -> _Call:
        if len(self._calls) >= MAX_CALLS:
            raise AgentProtocolError("the agent began too many tool calls")
        call = _Call(len(self._calls), fragment.id)
        self._calls.append(call)
        if fragment.index is not None:
            self._by_index[fragment.index] = call
        return call
