"""Readers of the three tools as they are, strict where they are strict.

Ported from unit-mesh/auto-dev `ResponseBodyCallback.kt` and `CustomSSEProcessor.kt`, phodal/shire (an
older copy of the same) and prompt-engineering/click-prompt `ChatRoom.tsx`.
"""

from __future__ import annotations

import json
import re
from typing import Any

from shared.events import Json


class ReaderFailed(Exception):
    """The tool shows an error instead of an answer, or stops in the middle of it."""


def jetbrains_events(raw: bytes, *, shire: bool = False) -> list[str]:
    """The events that the line parser of AutoDev, or of Shire, finds in a body."""
    events: list[str] = []
    pending: str | None = None
    for line in re.split(r"\r\n|\r|\n", raw.decode())[:-1]:
        if line.startswith("data:"):
            pending = line[5:].strip("".join(map(chr, range(33))))
        elif line == "" and pending is not None:
            events.append(pending)
            if pending.lower() == "[done]":
                break
            pending = None
        elif line.startswith("event:"):
            if shire and "ping" in line:
                raise ReaderFailed("NullPointerException")
            pending = None
        elif line == "" or line.startswith(":"):
            pending = None
        elif not shire and line.startswith("{") and line.endswith("}"):
            return [*events, line]
        else:
            raise ReaderFailed(f"Invalid sse format! '{line}'")
    return events


def autodev_by_path(raw: bytes) -> str:
    """AutoDev with `$.choices[0].delta.content` as its response format; reasoning is shown apart."""
    text, matched = "", False
    for data in jetbrains_events(raw):
        if data.lower() == "[done]":
            continue
        delta = _delta(json.loads(data))
        if isinstance(delta.get("content"), str):
            text, matched = text + delta["content"], True
        elif "reasoning_content" in delta:
            matched = True
    if not matched:
        raise ReaderFailed("Failed to parse response")
    return text


_FIELDS: dict[str, set[str]] = {
    "": {"id", "object", "created", "model", "choices", "usage"},
    "choice": {"index", "message", "delta", "finish_reason"},
    "delta": {"role", "content", "name", "function_call"},
    "usage": {"prompt_tokens", "completion_tokens", "total_tokens"},
}


def autodev_strict(raw: bytes) -> str:
    """AutoDev with an empty response format: Jackson, which fails on every field it does not know."""
    text = ""
    for data in jetbrains_events(raw):
        if data.lower() == "[done]":
            continue
        chunk = json.loads(data)
        _only(chunk, "")
        if not chunk.get("choices"):
            raise ReaderFailed("Index 0 out of bounds for length 0")
        choice = chunk["choices"][0]
        _only(choice, "choice")
        _only(choice.get("delta") or {}, "delta")
        _only(chunk.get("usage") or {}, "usage")
        text += choice["delta"].get("content") or ""
    return text


def shire(raw: bytes) -> str:
    """Shire: the same path; an event that is not JSON ends the answer without a word."""
    text = ""
    for data in jetbrains_events(raw, shire=True):
        if data.lower() == "[done]":
            continue
        try:
            delta = _delta(json.loads(data))
        except ValueError:
            return text
        content = delta.get("content")
        text += content if isinstance(content, str) else ""
    return text


class ClickPrompt:
    """Bubbles of a chat, the user's first; each network read is decoded and parsed on its own."""

    def __init__(self) -> None:
        self.bubbles = ["the user's question"]
        self.done = False

    def read(self, chunk: bytes) -> None:
        """One `reader.read()`. Raises ReaderFailed where the page's loop would throw."""
        for line in filter(None, chunk.decode("utf-8", "replace").split("\n")):
            data = re.sub(r"^data: ", "", line)
            if data == "[DONE]":
                self.done = True
                return
            try:
                delta = json.loads(data)["choices"][0]["delta"]
            except (ValueError, LookupError) as error:
                raise ReaderFailed(str(error)) from error
            if "role" in delta:
                self.bubbles.append("")
            elif delta.get("content"):
                self.bubbles[-1] += delta["content"]


def _delta(chunk: Json) -> dict[str, Any]:
    try:
        delta = chunk["choices"][0]["delta"]
    except (LookupError, TypeError):
        return {}
    return delta if isinstance(delta, dict) else {}


def _only(value: dict[str, Json], kind: str) -> None:
    unknown = set(value) - _FIELDS[kind]
    if unknown:
        raise ReaderFailed(f"Unrecognized field {sorted(unknown)}")
