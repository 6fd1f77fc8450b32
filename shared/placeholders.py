"""Placeholders in configured text: `{name}` stands for a value, `{{` and `}}` for braces."""

from __future__ import annotations

import re

from shared.errors import ConfigError, at
from shared.events import Json

KNOWN = "{input}, {messages}, {conversation}, {user}, {inputs}, {inputs.NAME}, {metadata}, {metadata.NAME}"

_NAME = re.compile(r"input|messages|conversation|user|(inputs|metadata)(\.[\w.-]+)?")
_MARK = re.compile(r"(\{\{|\}\}|\{[^{}]*\}|[{}])")


def split(text: str) -> tuple[list[str], list[str]]:
    """The literal pieces of `text`, and the names between them: one fewer. Raises ConfigError."""
    literals, names = [""], []
    for piece in _MARK.split(text):
        if piece in ("{{", "}}"):
            literals[-1] += piece[0]
        elif piece in ("{", "}"):
            raise ConfigError(f"a {piece} stands alone in {text!r}; write {piece * 2} for the brace itself")
        elif piece.startswith("{"):
            names.append(_known(piece))
            literals.append("")
        else:
            literals[-1] += piece
    return literals, names


def names_in(value: Json) -> frozenset[str]:
    """The names in all strings of a JSON value. Raises ConfigError with the place of a wrong one."""
    if isinstance(value, str):
        return frozenset(split(value)[1])
    if not isinstance(value, dict | list | tuple):
        return frozenset()
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    return frozenset().union(*(_names_at(place, item) for place, item in inner))


def _known(placeholder: str) -> str:
    name = placeholder[1:-1]
    if _NAME.fullmatch(name) is None:
        raise ConfigError(
            f"unknown placeholder {placeholder}; known are {KNOWN}; a brace itself is written {{{{ or }}}}"
        )
    return name


def _names_at(place: str | int, value: Json) -> frozenset[str]:
    with at(place):
        return names_in(value)
