"""Agents reached by HTTP: one request and its answer, read by whoever iterates.

The request is opened in a task of its own, so that whoever relays it can leave at any moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

import httpx

from shared.errors import AgentTooLarge, AgentTruncated
from shared.sse import FRAMINGS, FrameTooLarge
from workers.agents.base import Batch
from workers.agents.client import Body, HttpAgents, body_of
from workers.agents.faults import FOREIGN, as_ours, check_answer, mapped, refusal
from workers.dialects.base import AgentDialect, AgentRequest

READ_OUT = 0.25
"""Seconds for which a body that nobody needs any more may end by itself."""

STOP_TIMEOUT = 5.0


class HttpStream:
    """One request to an agent and its answer, read by whoever iterates, at the reader's own pace."""

    def __init__(
        self, agents: HttpAgents, dialect: AgentDialect, request: AgentRequest, *, connect: float
    ) -> None:
        self._agents = agents
        self._dialect = dialect
        self._request = request
        self._connect = connect
        self._decoder = FRAMINGS[dialect.framing](agents.frame_limit)
        self._answer = AsyncExitStack()
        self._opening: asyncio.Task[httpx.Response] | None = None
        self._body: Body | None = None

    async def __aenter__(self) -> AsyncIterator[Batch]:
        self._opening = self._agents.aside(self._open())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection, or keep it for the next request when the body is about to end.

        One that is being made is left to itself (`_Connector`).
        """
        if error is None and self._body is not None:
            self._agents.aside(self._read_out(self._body))
            return
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait((self._opening,))
            if not self._opening.cancelled():
                self._opening.exception()  # whoever iterated has been told
        await self._answer.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Batch:
        try:
            while not (frames := await self._read()):
                pass
        except AgentTruncated:
            if self._dialect.complete:  # what breaks off behind the end marker has said all it had to
                raise StopAsyncIteration from None
            raise
        except FrameTooLarge as error:
            raise AgentTooLarge(str(error)) from None
        return frames

    async def stop(self) -> None:
        """Ask the agent's own stop address, where its dialect knows one."""
        request = self._dialect.stop_request()
        if request is None:
            return
        async with (
            as_ours(begun=False),
            asyncio.timeout(STOP_TIMEOUT),
            self._agents.send(request, self._connect) as response,
        ):
            if response.status_code >= 400:
                raise refusal(response, None)

    async def _read_out(self, body: Body) -> None:
        """Read what is left behind the agent's last word; with a body at its end the connection is kept."""
        try:
            async with asyncio.timeout(READ_OUT):
                while await body.read():
                    pass
        except (TimeoutError, *FOREIGN):
            pass
        finally:
            await self._answer.aclose()

    async def _open(self) -> httpx.Response:
        async with as_ours(begun=False):
            response = await self._answer.enter_async_context(self._agents.send(self._request, self._connect))
            await check_answer(response, self._dialect.framing)
            return response

    async def _read(self) -> Batch:
        """The frames that the next bytes complete. Raises StopAsyncIteration behind the last."""
        assert self._opening is not None, "used outside of `async with`"
        if self._body is None:
            self._body = body_of(await asyncio.shield(self._opening))
        try:
            chunk = await self._body.read()
        except FOREIGN as error:
            raise mapped(error, begun=True) from error
        if chunk:
            return self._decoder.feed(chunk)
        if last := self._decoder.end():
            return last
        raise StopAsyncIteration
