"""One view's encoder, held so that what it cannot encode ends that view and nothing else."""

from __future__ import annotations

import logging

from gateway.dialects.base import Encoded, FrontendDialect
from gateway.last_words import internal_entry, last_words
from shared.stream_log import Entry

log = logging.getLogger(__name__)


class Encoder:
    """A dialect that never raises. Once it has failed, every further entry is the same end."""

    def __init__(self, run: str, dialect: FrontendDialect) -> None:
        self.dialect = dialect
        self._run = run
        self._end: Encoded | None = None

    def encode(self, entry: Entry) -> Encoded:
        """The frames of the next entry."""
        if self._end is None:
            try:
                return _ending(self.dialect.encode(entry), entry)
            except Exception:
                log.exception("run %s: its event %s cannot be told", self._run, entry.cursor)
                self._end = self._last_words()
        return self._end

    def _last_words(self) -> Encoded:
        try:
            return last_words(self.dialect, internal_entry())
        except Exception:
            log.exception("run %s: nor can its end", self._run)
            return Encoded(aborts=True)


def _ending(encoded: Encoded, entry: Entry) -> Encoded:
    """The same. Raises ValueError for an end that the dialect could not read and so would not tell."""
    if entry.terminal and entry.event is None and not (encoded.ends or encoded.aborts):
        raise ValueError(f"{entry.type} does not fit")
    return encoded
