"""A position in a run's stream: `<attempt>-<seq>`, dense within an attempt.

Text is parsed here and nowhere else, strictly, so that nothing a client sends reaches Redis
as it came. An encoded frame may have a third part, `<attempt>-<seq>.<k>`, when one event gives
several frames.
"""

from __future__ import annotations

import re
from typing import NamedTuple

MAX_PART = 2**64 - 1
"""Redis stream ids are pairs of unsigned 64-bit numbers."""

_FORM = re.compile(r"(0|[1-9][0-9]{0,19})-(0|[1-9][0-9]{0,19})(?:\.(0|[1-9][0-9]{0,5}))?", re.ASCII)


class Cursor(NamedTuple):
    """An event's place: the attempt it belongs to and its number within that attempt."""

    attempt: int
    seq: int

    def __str__(self) -> str:
        return f"{self.attempt}-{self.seq}"

    def next(self) -> Cursor:
        """The place right behind this one in the same attempt."""
        return Cursor(self.attempt, self.seq + 1)

    def leads_to(self, other: Cursor) -> bool:
        """Whether `other` may come right after this place without a hole."""
        if other.attempt == self.attempt:
            return other.seq == self.seq + 1
        return other.attempt > self.attempt and other.seq == 0


START = Cursor(0, 0)
"""Before the first event."""

GONE = Cursor(MAX_PART, 0)
"""The cursor of `run.failed{gone}`, which every run answers with 204."""


def parse(text: str) -> Cursor:
    """Read an id in its plain form. Raises ValueError for anything else."""
    return parse_frame_id(text)[0]


def trusted(text: bytes) -> Cursor:
    """Read an id that came from Redis, quickly: for what is read by the thousand."""
    attempt, _, seq = text.partition(b"-")
    return tuple.__new__(Cursor, (int(attempt), int(seq)))


def parse_frame_id(text: str) -> tuple[Cursor, int | None]:
    """Read `digits-digits[.digits]` into a cursor and the frame's number within its event.

    Raises ValueError when the form is not exactly that, has leading zeros or is out of range.
    """
    match = _FORM.fullmatch(text) if len(text) <= 48 else None
    if match is None:
        raise ValueError("not a cursor: expected digits-digits")
    attempt, seq, frame = match.groups()
    cursor = Cursor(int(attempt), int(seq))
    if max(cursor) > MAX_PART:
        raise ValueError("not a cursor: a part is over 2^64-1")
    return cursor, None if frame is None else int(frame)
