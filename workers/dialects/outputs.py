"""Structured output taken by path, for the dialects that are told by configuration what it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from shared.events import Data, Json
from workers.mapping import Path

Paths = tuple[tuple[str, Path], ...]


class Outputs:
    """The structured output of one answer; a later value of a name replaces the earlier one."""

    def __init__(self, names: Iterable[str]) -> None:
        """`names` are all that the configuration has paths for."""
        self._single = len(set(names)) == 1
        self._values: dict[str, Json] = {}

    def take(self, paths: Paths, value: Json) -> Iterator[Data]:
        """What `paths` lead to in `value`."""
        for name, path in paths:
            if (found := path.all(value)) is not None:
                self._values[name] = found
                yield Data(name, found)

    @property
    def whole(self) -> Json:
        """Where the configuration names one value, it; of several an object; None without any."""
        if not self._values:
            return None
        return next(iter(self._values.values())) if self._single else dict(self._values)
