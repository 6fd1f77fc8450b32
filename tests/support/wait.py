"""Waiting for a condition, never for a time."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, overload

T = TypeVar("T")

_STEP = 0.005


def wait_until(condition: Callable[[], T], deadline: float = 5.0, description: str = "") -> T:
    """The first true value of `condition`. Raises TimeoutError with the description after `deadline` s."""
    end = time.monotonic() + deadline
    while not (value := condition()):
        if time.monotonic() > end:
            raise TimeoutError(_explain(condition, deadline, description, value))
        time.sleep(_STEP)
    return value


@overload
async def eventually(
    condition: Callable[[], Awaitable[T]], deadline: float = 5.0, description: str = ""
) -> T: ...


@overload
async def eventually(condition: Callable[[], T], deadline: float = 5.0, description: str = "") -> T: ...


async def eventually(
    condition: Callable[[], T | Awaitable[T]], deadline: float = 5.0, description: str = ""
) -> T:
    """The same without stopping the loop; the condition may be a coroutine function."""
    end = time.monotonic() + deadline
    while not (value := await _value(condition)):
        if time.monotonic() > end:
            raise TimeoutError(_explain(condition, deadline, description, value))
        await asyncio.sleep(_STEP)
    return value


async def _value(condition: Callable[[], T | Awaitable[T]]) -> T:
    value = condition()
    return await value if inspect.isawaitable(value) else value


def _explain(condition: object, deadline: float, description: str, last: object) -> str:
    what = description or getattr(condition, "__qualname__", repr(condition))
    return f"not within {deadline} s: {what} (last value: {last!r})"
