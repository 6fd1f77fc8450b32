"""`text/plain`: the answer's text and nothing else. What it cannot say breaks the connection off."""

from __future__ import annotations

from gateway.dialects.base import Encoded, FrontendDialect, ViewOptions
from gateway.dialects.structured import StructuredOutput
from shared.events import Data, RunCompleted, RunFailed, RunStopped, TextDelta, TextReplace
from shared.stream_log import Entry

_NOTHING = Encoded()


class PlainText(FrontendDialect):
    """Append-only: there are no ids, no word for failure and no way to take text back."""

    media_type = "text/plain"
    resumable = False
    takes_back = False
    obeys_retry = False
    holds_head = True
    opening = b""

    def __init__(self, options: ViewOptions) -> None:
        self._sent: list[str] = []
        self._output = StructuredOutput(options.text)

    def encode(self, entry: Entry) -> Encoded:
        match entry.event:
            case TextDelta(text=text, choice=0) if text:
                return self._text(text)
            case TextReplace(text=text):
                return self._replace(text)
            case Data() as data:
                self._output.add(data)
            case RunCompleted() as completed:
                return self._end(self._output.shown(completed))
            case RunStopped():
                return self._end(self._output.shown())
            case RunFailed() as failed:
                return Encoded(aborts=True, failure=None if self._sent else failed)
        return _NOTHING

    def reset(self, reason: str) -> Encoded:
        return Encoded(aborts=True)

    def heartbeat(self) -> bytes:
        return b""

    def _text(self, text: str) -> Encoded:
        self._sent.append(text)
        return Encoded((text.encode(),))

    def _replace(self, text: str) -> Encoded:
        sent = "".join(self._sent)
        if not text.startswith(sent):
            return Encoded(aborts=True)
        rest = text[len(sent) :]
        return self._text(rest) if rest else _NOTHING

    def _end(self, output: str) -> Encoded:
        frames = (output.encode(),) if output and not self._sent else ()
        return Encoded(frames, ends=True)
