"""A conversation as one text, for agents that take a prompt instead of messages."""

from __future__ import annotations

from collections.abc import Iterator

from shared.requests import RunRequest


def as_prompt(run: RunRequest, *, remembered: bool) -> str:
    """The last user message, with system messages in front of it.

    Unless the agent has `remembered` them, other turns stand around it as `role: text` lines.
    """
    last = max((place for place, message in enumerate(run.messages) if message.role == "user"), default=-1)
    return "\n\n".join(text for text in _texts(run, last, remembered) if text)


def _texts(run: RunRequest, last: int, remembered: bool) -> Iterator[str]:
    system = ("system", "developer")
    yield from (message.text for message in run.messages if message.role in system)
    turns = [
        (place, message)
        for place, message in enumerate(run.messages)
        if message.role not in system and message.text
    ]
    if not remembered:
        yield "\n".join(f"{message.role}: {message.text}" for place, message in turns if place < last)
    yield run.messages[last].text if last >= 0 else ""
    yield "\n".join(f"{message.role}: {message.text}" for place, message in turns if place > last)
