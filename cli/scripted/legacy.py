"""Plays three services that nobody wrote code for: one streams SSE, one NDJSON, one answers JSON.

They take `{"question": "..."}` by POST, or `?question=` by GET, and no key.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal
from urllib.parse import parse_qs

from cli.scripted.http import Request
from cli.scripted.vendor import Question, Refusal, json_bytes, json_object

_CONTENT_TYPES = {
    "sse": "text/event-stream",
    "ndjson": "application/x-ndjson",
    "rest": "application/json",
}


def _query(request: Request) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(request.query).items()}


class Legacy:
    """One of the three."""

    def __init__(self, form: Literal["sse", "ndjson", "rest"]) -> None:
        self.transcript = f"legacy/{form}"
        self.content_type = _CONTENT_TYPES[form]
        self.ping = b": ping\n\n" if form == "sse" else b"\n"
        self._form = form

    def admit(self, request: Request, key: str) -> Question:
        fields = json_object(request.body) or {} if request.method == "POST" else _query(request)
        asked = fields.get("question")
        if not isinstance(asked, str) or not asked:
            raise Refusal(400, json_bytes({"status": "error", "reason": "question is missing"}))
        return Question(asked)

    def refusal(self, status: int) -> bytes:
        return json_bytes({"status": "error", "reason": f"failed with {status}"})

    def adapt(self, recorded: Sequence[bytes], question: Question) -> list[bytes]:
        return list(recorded)

    def say(self, texts: Iterable[str], question: Question) -> Iterator[bytes]:
        if self._form == "rest":
            yield json_bytes(
                {"status": "ok", "result": {"summary": "".join(texts), "hits": []}, "took_ms": 1}
            )
        elif self._form == "sse":
            for text in texts:
                yield b"event: piece\ndata: " + json_bytes({"answer": {"piece": text}}) + b"\n\n"
            yield b'event: finished\ndata: {"ok":true}\n\n'
        else:
            for text in texts:
                yield json_bytes({"kind": "chunk", "payload": {"delta": text}}) + b"\n"
            yield json_bytes({"kind": "final", "payload": {}}) + b"\n"

    def whole(self, frames: Iterable[bytes]) -> bytes:
        return b"".join(frames)

    def stopped(self, question: Question) -> list[bytes]:
        return []
