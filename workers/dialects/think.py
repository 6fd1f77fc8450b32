"""<think>...</think> at the start of an answer, from models served without a reasoning parser.

Only an opening tag before any other text counts: later in the answer it is text about tags.
Whitespace around the reasoning and before the answer is dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

OPEN, CLOSE = "<think>", "</think>"

Part = tuple[Literal["text", "reasoning"], str]


class ThinkSplitter:
    """Cuts the text of one answer into reasoning and text, whatever the pieces it comes in."""

    def __init__(self) -> None:
        self._state: Literal["start", "inside", "behind", "text"] = "start"
        self._rest = ""
        self._begun = False

    def feed(self, text: str) -> Iterator[Part]:
        """The parts that `text` decides; an undecided tail waits."""
        if self._state == "text":
            yield "text", text
            return
        self._rest += text
        if self._state == "start":
            yield from self._look_for_open()
        if self._state == "inside":
            yield from self._read_inside()
        if self._state == "behind":
            yield from self._skip_space()

    def end(self) -> Iterator[Part]:
        """What still waited, as what it was taken for."""
        rest, self._rest = self._rest, ""
        if self._state == "inside":
            rest = rest.rstrip()
        if rest and self._state != "behind":
            yield ("reasoning" if self._state == "inside" else "text"), rest

    def _look_for_open(self) -> Iterator[Part]:
        seen = self._rest.lstrip()
        if seen.startswith(OPEN):
            self._state, self._rest = "inside", seen[len(OPEN) :]
        elif not OPEN.startswith(seen):
            self._state = "text"
            yield "text", self._rest
            self._rest = ""

    def _read_inside(self) -> Iterator[Part]:
        if not self._begun:
            self._rest = self._rest.lstrip()
            self._begun = bool(self._rest)
        body, tag, behind = self._rest.partition(CLOSE)
        if tag:
            self._state, self._rest = "behind", behind
            body = body.rstrip()
        else:
            body = body[: len(body) - _overlap(body)].rstrip()
            self._rest = self._rest[len(body) :]
        if body:
            yield "reasoning", body

    def _skip_space(self) -> Iterator[Part]:
        self._rest = self._rest.lstrip()
        if self._rest:
            self._state = "text"
            yield "text", self._rest
            self._rest = ""


def _overlap(text: str) -> int:
    """How many characters at the end of `text` may be the beginning of the closing tag."""
    for size in range(min(len(text), len(CLOSE) - 1), 0, -1):
        if CLOSE.startswith(text[-size:]):
            return size
    return 0
