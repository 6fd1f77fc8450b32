"""Functions that agents.yaml may name, as an example of an agent of your own (`function:`)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from workers.agents.function import Call

_PAUSE_SECONDS = 0.03


async def greet(call: Call) -> AsyncIterator[str]:
    """Greets whoever asks, a word at a time: each text that is yielded goes out at once."""
    for word in ("Hello", " from", " a", " Python", " function.", " You", " said:", f" {call.prompt}"):
        yield word
        await asyncio.sleep(_PAUSE_SECONDS)
