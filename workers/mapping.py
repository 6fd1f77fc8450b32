"""JSONPath and request templates, compiled once.

A path is parsed by jsonpath-ng (`jsonpath_ng.parse`, no extensions). From its parse tree a chain of
plain children and indices becomes a direct look-up, which is thirty times as fast; anything else
runs through jsonpath-ng itself. Templates fill values, never keys, and of an address only path
segments and query values.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any
from urllib.parse import quote

import jsonpath_ng
import orjson
from jsonpath_ng.exceptions import JSONPathError
from jsonpath_ng.parser import parse
from msgspec import to_builtins

from shared.config import DataPaths
from shared.errors import AgentProtocolError, AgentRejected, ConfigError, at
from shared.events import Json
from shared.placeholders import split
from shared.requests import RunRequest

MAX_EXPRESSION = 256
"""Characters of an expression; longer ones are mistakes or attacks on the parser."""


class Path:
    """A compiled JSONPath."""

    def __init__(self, expression: str) -> None:
        if len(expression) > MAX_EXPRESSION:
            raise ConfigError(f"the path {expression[:40]}... is longer than {MAX_EXPRESSION} characters")
        try:
            self._parsed = parse(expression)
        except (JSONPathError, RecursionError, ValueError) as error:
            raise ConfigError(f"not a JSONPath: {expression!r} ({error})") from None
        self.expression = expression
        self._steps = _steps(self._parsed)

    def find(self, value: Json) -> list[Json]:
        """Everything in `value` that the path leads to."""
        if self._steps is None:
            return self._find_by_library(value)
        for step in self._steps:
            if isinstance(step, str):
                if not isinstance(value, dict) or step not in value:
                    return []
                value = value[step]
            else:
                if not isinstance(value, list) or not -len(value) <= step < len(value):
                    return []
                value = value[step]
        return [value]

    def _find_by_library(self, value: Json) -> list[Json]:
        try:
            return [match.value for match in self._parsed.find(value)]
        except Exception as error:  # the library's border: it asserts, and calls methods of any value
            raise AgentProtocolError(f"{self.expression} cannot be applied to what the agent sent") from error

    def first(self, value: Json) -> Json:
        """The first thing it leads to, or None."""
        found = self.find(value)
        return found[0] if found else None

    def all(self, value: Json) -> Json:
        """A plain path's value; of other paths the list of all values; None when there is nothing."""
        found = self.find(value)
        return (found[0] if self._steps is not None else found) if found else None

    @property
    def name(self) -> str:
        """The last field it names, or "outputs" when it names none."""
        return _last_field(self._parsed) or "outputs"


def compile_data(paths: DataPaths | None) -> tuple[tuple[str, Path], ...]:
    """The paths of structured output with their names. Raises ConfigError."""
    if paths is None:
        return ()
    if isinstance(paths, str):
        path = compile_path(paths)
        return ((path.name, path),)
    return tuple((name, _compiled_at(name, path)) for name, path in paths.items())


def _compiled_at(name: str, expression: str) -> Path:
    with at(name):
        return compile_path(expression)


@lru_cache(maxsize=4096)
def compile_path(expression: str) -> Path:
    """The path, parsed once a process. Raises ConfigError that names the expression."""
    return Path(expression)


def _steps(node: Any) -> tuple[str | int, ...] | None:
    """The look-ups that a parse tree stands for, or None when it is more than look-ups."""
    if isinstance(node, jsonpath_ng.Root):
        return ()
    if isinstance(node, jsonpath_ng.Child):
        left, right = _steps(node.left), None
        if left is not None and not isinstance(node.right, jsonpath_ng.Child | jsonpath_ng.Root):
            right = _steps(node.right)
        return None if left is None or right is None else left + right
    if isinstance(node, jsonpath_ng.Fields) and len(node.fields) == 1:
        return tuple(node.fields)
    if isinstance(node, jsonpath_ng.Index) and len(node.indices) == 1:
        return tuple(node.indices)
    return None


def _last_field(node: Any) -> str | None:
    """The last single field in a parse tree: of `$.a.b[*]` it is `b`."""
    if isinstance(node, jsonpath_ng.Child | jsonpath_ng.Descendants):
        return _last_field(node.right) or _last_field(node.left)
    if isinstance(node, jsonpath_ng.Fields) and len(node.fields) == 1 and node.fields[0] != "*":
        return str(node.fields[0])
    return None


class Template:
    """A JSON value with placeholders in its strings.

    A string that is exactly one placeholder becomes the value itself; elsewhere text is put in.
    """

    def __init__(self, value: Json) -> None:
        self._fill = _compiled(value)

    def fill(self, run: RunRequest) -> Json:
        """The value for one run."""
        return self._fill(run)


class UrlTemplate:
    """An address with placeholders in path segments and query values, filled percent-encoded."""

    def __init__(self, url: str) -> None:
        head = re.match(r"https?://[^/?#{}]*(?=[/?#]|$)", url)
        if head is None:
            raise ConfigError(f"a placeholder must not stand in the scheme, host or port of {url!r}")
        path, mark, query = url[head.end() :].partition("?")
        self._head = head.group()
        self._segments = [_text(segment) for segment in path.split("/")]
        self._mark = mark
        self._pairs = [_query_pair(pair) for pair in query.split("&")] if query else []

    def fill(self, run: RunRequest) -> str:
        """The address for one run. Raises AgentRejected for a value that would change the path."""
        segments = [segment(run, _encoded) for segment in self._segments]
        for place, segment in enumerate(segments):
            if segment in (".", "..") or (not segment and 0 < place < len(segments) - 1):
                raise AgentRejected("a value of this request cannot stand in the agent's address")
        query = "&".join(pair(run, _encoded) for pair in self._pairs)
        return self._head + "/".join(segments) + self._mark + query


_Text = Callable[[RunRequest, Callable[[Json], str]], str]


def _query_pair(pair: str) -> _Text:
    if "{" in pair.partition("=")[0]:
        raise ConfigError(f"a placeholder may stand in the value of a query, not in its name: {pair!r}")
    return _text(pair)


def _compiled(value: Json) -> Callable[[RunRequest], Json]:
    if isinstance(value, dict):
        fields = {str(key): _compiled(inner) for key, inner in value.items()}
        return lambda run: {key: inner(run) for key, inner in fields.items()}
    if isinstance(value, list | tuple):
        items = [_compiled(inner) for inner in value]
        return lambda run: [inner(run) for inner in items]
    if not isinstance(value, str):
        return lambda run: value
    literals, names = split(value)
    if not names:
        return lambda run: literals[0]
    if literals == ["", ""]:
        return _value(names[0])
    text = _text(value)
    return lambda run: text(run, as_text)


def _text(text: str) -> _Text:
    """Text with placeholders; each value is written by the function given."""
    literals, names = split(text)
    values = [_value(name) for name in names]

    def fill(run: RunRequest, write: Callable[[Json], str]) -> str:
        filled = [write(value(run)) for value in values]
        return literals[0] + "".join(map("".join, zip(filled, literals[1:], strict=True)))

    return fill


def _value(name: str) -> Callable[[RunRequest], Json]:
    """How the value of a placeholder is taken from a run."""
    head, _, rest = name.partition(".")
    if head == "input":
        return lambda run: run.prompt
    if head == "messages":
        return lambda run: to_builtins(list(run.messages))
    if rest:
        return lambda run: getattr(run, head).get(rest)
    return lambda run: getattr(run, head)


def as_text(value: Json) -> str:
    """A value as it stands in text: strings as they are, nothing for null, else JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _encoded(value: Json) -> str:
    return quote(as_text(value), safe="")
