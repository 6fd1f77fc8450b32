"""Work that goes on for as long as the process does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

log = logging.getLogger(__name__)

PAUSE = 0.5
"""Seconds before work that failed begins again, so that a lasting failure is no busy loop."""


@asynccontextmanager
async def permanent(name: str, work: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Do `work` beside the block, again whenever it ends by itself, and no longer than the block."""
    task = asyncio.create_task(_again_and_again(name, work))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def _again_and_again(name: str, work: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await work()
            log.error("%s ended, which it never should; it begins again", name)
        except Exception:
            log.exception("%s failed; it begins again", name)
        await asyncio.sleep(PAUSE)
