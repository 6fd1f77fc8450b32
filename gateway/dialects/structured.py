"""Structured output for front ends that only show text."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from shared.events import Data, Json, RunCompleted


class StructuredOutput:
    """The `data` of a run that may turn out to have no text."""

    def __init__(self, find_text: Callable[[Json], Json] | None) -> None:
        """`find_text` looks the text up in the output, for agents that name the field."""
        self._find_text = find_text
        self._values: dict[str, Json] = {}

    def add(self, data: Data) -> None:
        """Note a value; a later one of the same name replaces it."""
        self._values[data.name] = data.value

    def shown(self, completed: RunCompleted | None = None) -> str:
        """A single string as it is, anything else as a fenced JSON block, "" when there is nothing."""
        value = self._value(completed)
        if value is None:
            return ""
        found = self._find_text(value) if self._find_text else None
        if found is not None:
            value = found
        return value if isinstance(value, str) else fenced(value)

    def _value(self, completed: RunCompleted | None) -> Json:
        if len(self._values) == 1:
            return next(iter(self._values.values()))
        return self._values or (completed and completed.outputs)


def fenced(value: Json) -> str:
    """JSON as a Markdown code block, whose fence is longer than any run of backticks within."""
    text = msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}json\n{text}\n{fence}"
