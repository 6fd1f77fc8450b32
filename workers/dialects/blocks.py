"""Blocks of text and reasoning: opened by their first delta, closed by the next block or the end.

Deltas are joined over half surrogates: a trailing first half waits for the second one in the next
delta of the same block, and becomes U+FFFD when the block ends without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from shared.events import (
    Event,
    ReasoningDelta,
    ReasoningEnd,
    ReasoningStart,
    TextDelta,
    TextEnd,
    TextReplace,
    TextStart,
)
from workers.dialects.decoding import whole

Kind = Literal["text", "reasoning", "refusal"]


class _Block:
    __slots__ = ("choice", "half", "id", "kind")

    def __init__(self, block_id: str, kind: Kind, choice: int) -> None:
        self.id = block_id
        self.kind = kind
        self.choice = choice
        self.half = ""

    def start(self) -> Event:
        if self.kind == "reasoning":
            return ReasoningStart(self.id)
        return TextStart(self.id, self.choice, self.kind == "refusal")

    def delta(self, text: str) -> Event:
        if self.kind == "reasoning":
            return ReasoningDelta(self.id, text)
        return TextDelta(self.id, text, self.choice, self.kind == "refusal")

    def end(self) -> Event:
        if self.kind == "reasoning":
            return ReasoningEnd(self.id)
        return TextEnd(self.id, self.choice)

    def join(self, text: str) -> str:
        """`text` behind the half that waited, without a half that must wait itself."""
        text = self.half + text
        self.half = ""
        if "\ud800" <= text[-1:] <= "\udbff":
            text, self.half = text[:-1], text[-1]
        return whole(text)


class Blocks:
    """The blocks of one answer: one open at a time for each choice."""

    def __init__(self) -> None:
        self._open: dict[int, _Block] = {}
        self._count = 0

    def text(self, text: str, choice: int = 0) -> Sequence[Event]:
        """More of the answer."""
        return self._add("text", text, choice)

    def reasoning(self, text: str, choice: int = 0) -> Sequence[Event]:
        """More of the reasoning."""
        return self._add("reasoning", text, choice)

    def refusal(self, text: str, choice: int = 0) -> Sequence[Event]:
        """More of a refusal."""
        return self._add("refusal", text, choice)

    def replace(self, text: str, reason: str | None = None) -> Sequence[Event]:
        """All text of the answer so far becomes `text`."""
        events: list[Event] = []
        block = self._open.get(0)
        if block is None or block.kind != "text":
            events, block = self._begin("text", 0)
        block.half = ""
        return [*events, TextReplace(block.id, whole(text), reason)]

    def close(self, choice: int | None = None) -> Sequence[Event]:
        """End what is open, of one choice or of all."""
        choices = list(self._open) if choice is None else [choice] if choice in self._open else []
        events: list[Event] = []
        for number in choices:
            block = self._open.pop(number)
            if block.half:
                events.append(block.delta(whole(block.half)))
            events.append(block.end())
        return events

    def _add(self, kind: Kind, text: str, choice: int) -> Sequence[Event]:
        if not text:
            return ()
        block = self._open.get(choice)
        if block is not None and block.kind == kind:
            if not (text.isascii() and not block.half):
                text = block.join(text)
            return (block.delta(text),) if text else ()
        events, block = self._begin(kind, choice)
        text = block.join(text)
        return [*events, block.delta(text)] if text else events

    def _begin(self, kind: Kind, choice: int) -> tuple[list[Event], _Block]:
        events = list(self.close(choice))
        prefix = "r" if kind == "reasoning" else "t"
        block = self._open[choice] = _Block(f"{prefix}{self._count}", kind, choice)
        self._count += 1
        events.append(block.start())
        return events, block
