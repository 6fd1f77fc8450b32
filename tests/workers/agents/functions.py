"""Functions that a configuration may name, good and bad."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from shared.events import Data, ReasoningDelta, RunAccepted, RunCompleted, TextDelta, Usage
from workers.agents.function import Call

closed = threading.Event()
given = 0


async def stream(call: Call) -> AsyncIterator[str]:
    for word in ("You said: ", call.prompt):
        yield word
        await asyncio.sleep(0)


def blocking_stream(call: Call) -> Iterator[str]:
    yield "blocking "
    yield call.inputs.get("name", "")


async def coroutine(call: Call) -> str:
    return call.prompt.upper()


def plain(call: Call) -> dict[str, Any]:
    return {"user": call.user, "conversation": call.conversation, "metadata": dict(call.metadata)}


def returns_coroutine(call: Call) -> Any:
    return coroutine(call)


def nothing(call: Call) -> None:
    return None


async def events(call: Call) -> AsyncIterator[Any]:
    yield ReasoningDelta("mine", "hm")
    yield TextDelta("mine", "text")
    yield Data("extra", [1])
    yield Usage(1, 2, 3)
    yield {"answer": 42}
    yield RunCompleted("length", "cut")


async def halves(call: Call) -> AsyncIterator[str]:
    yield "a\ud83d"
    yield "\udc4bb\udc4b"


async def fails(call: Call) -> AsyncIterator[str]:
    yield "half"
    raise ValueError("the password is hunter2")


def fails_blocking(call: Call) -> str:
    raise StopIteration


async def gives_an_object(call: Call) -> object:
    return object()


async def forges(call: Call) -> AsyncIterator[Any]:
    yield RunAccepted("r", "a")


async def never_ends(call: Call) -> AsyncIterator[str]:
    closed.clear()
    try:
        yield "begun"
        await asyncio.Event().wait()
    finally:
        closed.set()


def floods(call: Call) -> Iterator[str]:
    global given
    given = 0
    closed.clear()
    try:
        while True:
            given += 1
            yield "x" * 1024
    finally:
        closed.set()


async def floods_async(call: Call) -> AsyncIterator[str]:
    global given
    given = 0
    closed.clear()
    try:
        while True:
            given += 1
            yield "x" * 1024
    finally:
        closed.set()


not_callable: Callable[[Call], Any] | int = 3
