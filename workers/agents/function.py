"""Agents that are Python functions of the operator's own.

`async def` generators and coroutines run on the loop; generators and plain functions in a thread of
their own, where they may block. A function is given one `Call` and gives strings (text), events of
`shared/events.py`, or any other JSON value (structured output), by yielding or returning.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import logging
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import TracebackType
from typing import Any

import msgspec

from shared.config import FunctionAgent
from shared.errors import AgentError, ConfigError
from shared.events import EVENT_TYPES, Json, dump
from shared.requests import Message, RunRequest
from shared.sse import ServerSentEvent
from workers.agents.base import Batch
from workers.agents.handover import Handover
from workers.dialects.function import DATA, END, TEXT

LEAVE_TIMEOUT = 5.0
"""Seconds a coroutine that was cancelled may take to clean up before it is left to itself."""

_log = logging.getLogger("bff.worker")
_EVENTS = tuple(EVENT_TYPES.values())
_END_FRAME = ServerSentEvent(b"", END)
_Outcome = tuple[Any, Exception | None]


@dataclass(frozen=True)
class Call:
    """What a function is asked: the argument it is called with."""

    prompt: str
    messages: tuple[Message, ...]
    inputs: Mapping[str, Json]
    conversation: str | None
    user: str | None
    metadata: Mapping[str, Json]


@lru_cache(maxsize=256)
def load_function(spec: str) -> Callable[[Call], Any]:
    """The function named `package.module:function`. Raises ConfigError."""
    module_name, _, name = spec.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise ConfigError(f"the function {spec} cannot be imported: {error}") from None
    if not callable(found):
        raise ConfigError(f"{spec} is not a function")
    return found  # type: ignore[no-any-return]  # what a module holds is of any type


class FunctionStream:
    """One call of a function."""

    def __init__(self, config: FunctionAgent, run: RunRequest) -> None:
        self._spec = config.function
        self._call = Call(run.prompt, run.messages, run.inputs, run.conversation, run.user, run.metadata)
        self._handover = Handover()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> AsyncIterator[Batch]:
        self._task = asyncio.create_task(self._run(), name=f"function {self._spec}")
        return self._handover

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the call: a coroutine is cancelled, a generator closed, a plain function left to return."""
        self._handover.leave()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,), timeout=LEAVE_TIMEOUT)

    async def stop(self) -> None:
        """Leaving the stream has stopped it."""

    async def _run(self) -> None:
        try:
            await self._drive(load_function(self._spec))
            await self._handover.put([_END_FRAME])
        except AgentError as error:
            self._handover.end(error)
        except Exception as error:  # the border to the operator's code: whatever it raises ends this run only
            _log.exception("function %s failed", self._spec)
            self._handover.end(AgentError(f"the function failed ({type(error).__name__})"))
        finally:
            self._handover.end()

    async def _drive(self, function: Callable[[Call], Any]) -> None:
        if inspect.isasyncgenfunction(function):
            await self._drain(function(self._call))
        elif inspect.iscoroutinefunction(function):
            await self._give(await function(self._call))
        else:
            await self._in_thread(function)

    async def _drain(self, values: AsyncGenerator[Any, Any]) -> None:
        try:
            async for value in values:
                if not await self._give(value):
                    return
        finally:
            await values.aclose()

    async def _give(self, value: Any) -> bool:
        """Hand one value over; False when nobody wants more."""
        if inspect.isasyncgen(value):
            await self._drain(value)
            return not self._handover.left
        return await self._handover.put([] if value is None else [_frame(value)])

    async def _in_thread(self, function: Callable[[Call], Any]) -> None:
        """Run a function that may block. Its thread ends by itself when the stream has been left."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[_Outcome] = loop.create_future()

        def settle(outcome: _Outcome) -> None:
            if not done.done():
                done.set_result(outcome)

        def run() -> None:
            try:
                outcome: _Outcome = (self._call_blocking(function, loop), None)
            except Exception as error:  # carried over to the loop, which maps it
                outcome = (None, error)
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle, outcome)

        threading.Thread(target=run, name=f"function {self._spec}", daemon=True).start()
        found, error = await done
        if error is not None:
            raise error
        await self._give(await found if inspect.isawaitable(found) else found)

    def _call_blocking(self, function: Callable[[Call], Any], loop: asyncio.AbstractEventLoop) -> Any:
        """Call it and hand over what it gives from here, so that it waits when the reader is slow.

        What turns out to be for the loop (a callable that returns a coroutine) is returned.
        """
        found = function(self._call)
        if inspect.isawaitable(found) or inspect.isasyncgen(found):
            return found
        values: Generator[Any, Any, Any] = found if inspect.isgenerator(found) else _once(found)
        try:
            for value in values:
                if self._handover.left or not self._give_blocking(value, loop):
                    break
        finally:
            values.close()
        return None

    def _give_blocking(self, value: Any, loop: asyncio.AbstractEventLoop) -> bool:
        if loop.is_closed():
            return False
        return asyncio.run_coroutine_threadsafe(self._give(value), loop).result()


def _once(value: Any) -> Generator[Any, None, None]:
    yield value


def _frame(value: Any) -> ServerSentEvent:
    """The frame for one value. Raises AgentError for what is neither text, event nor JSON."""
    try:
        if isinstance(value, str):
            return ServerSentEvent(value.encode("utf-8", "surrogatepass"), TEXT)
        if isinstance(value, _EVENTS):
            return ServerSentEvent(dump(value), value.type)
        return ServerSentEvent(msgspec.json.encode(value), DATA)
    except (TypeError, ValueError, RecursionError):
        raise AgentError(f"the function gave a {type(value).__name__} that cannot be sent") from None
