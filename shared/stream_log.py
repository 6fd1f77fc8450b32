"""(being written)"""
from __future__ import annotations
from shared.cursor import Cursor
from shared.events import Event, load, TERMINAL_TYPES
class Entry:
    """One event in the log."""
    __slots__ = ("cursor", "type", "data", "_event")
    def __init__(self, cursor: Cursor, type: str, data: bytes) -> None:
        self.cursor, self.type, self.data = cursor, type, data
        self._event: Event | None = None
    @property
    def event(self) -> Event | None:
        if self._event is None:
            self._event = load(self.type, self.data)
        return self._event
    @property
    def terminal(self) -> bool:
        return self.type in TERMINAL_TYPES
