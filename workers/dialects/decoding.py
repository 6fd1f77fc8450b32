"""JSON from agents: orjson for what is right, the standard library for what is merely odd.

Odd are half surrogates (a server that cuts UTF-16 strings), invalid UTF-8 and very long integers.
Refused are NaN, infinities and nesting beyond MAX_DEPTH, so that whatever is decoded here can be
encoded again.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn, TypeVar

import msgspec
import orjson

from shared.errors import AgentProtocolError
from shared.events import Event, Json

MAX_DEPTH = 64
"""Deeper nesting has no use, and recursion in every later reader has its limit."""

T = TypeVar("T")

_HALF = re.compile("[\ud800-\udfff]")
_NOT_JSON = "the agent sent a frame that is not JSON"


class FrameJson:
    """Reads the frames of one body into small models.

    `ragged` becomes true once a frame held half a surrogate pair: from then on events are mended
    before they leave the dialect, because a lone half cannot be written as UTF-8.
    """

    def __init__(self) -> None:
        self.ragged = False

    def value(self, data: bytes) -> Json:
        """Any JSON value. Raises AgentProtocolError."""
        try:
            value = orjson.loads(data)
        except orjson.JSONDecodeError:
            value = _decode_odd(data)
            self.ragged = self.ragged or b"\\u" in data
        if data.count(b"{") + data.count(b"[") > MAX_DEPTH:
            _refuse_depth(value)
        return value

    def model(self, data: bytes, model: type[T]) -> T:
        """The frame as `model`. Raises AgentProtocolError when it is not one."""
        return fitted(self.value(data), model)

    def mend(self, events: Iterable[Event]) -> Iterable[Event]:
        """The events, without half surrogates."""
        return map(_mended, events) if self.ragged else events


def fitted(value: Json, model: type[T]) -> T:
    """`value` as `model`. Raises AgentProtocolError with the place that does not fit."""
    try:
        return msgspec.convert(value, model)
    except msgspec.ValidationError as error:
        raise AgentProtocolError(f"the agent sent something unexpected: {error}") from None


def whole(text: str) -> str:
    """`text` with surrogate pairs joined and lone halves replaced by U+FFFD."""
    if text.isascii() or _HALF.search(text) is None:
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _decode_odd(data: bytes) -> Json:
    try:
        return json.loads(
            data.decode("utf-8", "replace"),
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_integer,
        )
    except (ValueError, RecursionError):
        raise AgentProtocolError(_NOT_JSON) from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("not finite")
    return number


def _integer(text: str) -> int | float:
    return int(text) if len(text) < 20 else _finite(text)


def _refuse_depth(value: Json) -> None:
    level: list[Json] = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [inner for outer in level for inner in _contents(outer)]
        if not level:
            return
    raise AgentProtocolError(f"the agent sent JSON nested more than {MAX_DEPTH} deep")


def _contents(value: Json) -> Iterator[Json]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return (item for item in inner if isinstance(item, dict | list))


def _mended(event: Event) -> Event:
    fields: dict[str, Any] = {name: _clean(getattr(event, name)) for name in event.__struct_fields__}
    return type(event)(**fields)


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return whole(value)
    if isinstance(value, list):
        return [_clean(item) for item in value]
    if isinstance(value, tuple):
        return tuple(_clean(item) for item in value)
    if isinstance(value, dict):
        return {whole(key): _clean(item) for key, item in value.items()}
    return value
