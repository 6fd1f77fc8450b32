"""What a team would write: FastAPI and httpx, bytes in, bytes out, nothing kept."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    limits = httpx.Limits(max_connections=None)  # the default of 100 would refuse half of the load
    async with httpx.AsyncClient(base_url=os.environ["AGENT_URL"], timeout=None, limits=limits) as client:
        app.state.agent = client
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/v1/chat/completions")
async def chat(request: Request) -> StreamingResponse:
    body = await request.body()
    headers = {"content-type": "application/json"}

    async def answer() -> AsyncIterator[bytes]:
        agent: httpx.AsyncClient = request.app.state.agent
        async with agent.stream("POST", "/chat/completions", content=body, headers=headers) as upstream:
            async for chunk in upstream.aiter_raw():
                yield chunk

    return StreamingResponse(answer(), media_type="text/event-stream")
