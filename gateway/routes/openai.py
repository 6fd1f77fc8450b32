"""/v1/chat/completions and /v1/models: agents for everything that speaks to OpenAI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field

from gateway.admission import Admitted, Order, offered_agents
from gateway.bodies import JsonBody, read_json
from gateway.dependencies import Asker, Gateway, Opened, Reader
from gateway.dialects.base import ViewOptions
from gateway.outcome import read_result, wait_for_end
from gateway.problems import openai_error
from gateway.routes.answers import json_answer
from gateway.routes.openapi import body_of
from gateway.routes.turns import Turn, conversation_of, to_messages
from gateway.views import takes_back, text_finder
from gateway.watching import stream
from shared.config import Config
from shared.errors import RequestError
from shared.requests import RunRequest

_DIALECT = "openai-chat"
_SAFE_SUFFIX = ":safe"


class OpenAIRoute(APIRoute):
    """A route whose refusals have OpenAI's form."""

    refuse = staticmethod(openai_error)


router = APIRouter(tags=["openai"], route_class=OpenAIRoute)


class ChatTurn(Turn):
    """A message; what the format adds over time is accepted."""

    model_config = ConfigDict(extra="ignore")


class StreamOptions(BaseModel):
    """How to stream."""

    include_usage: bool | None = Field(None, description="send token counts before the end")


class ChatBody(BaseModel):
    """A chat completion request. Fields that are not listed are passed to agents that know them."""

    model_config = ConfigDict(extra="allow")

    model: str = Field("", max_length=64, description="an agent; `:safe` behind it for strict readers")
    messages: list[ChatTurn] = Field(min_length=1)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, description="1 at most: one run gives one answer")
    user: str | None = None
    metadata: dict[str, Any] | None = None
    conversation: str | None = None

    def parameters(self) -> dict[str, Any]:
        """The model parameters that were given."""
        extra = self.model_extra or {}
        return {name: value for name, value in extra.items() if value is not None}


@router.post(
    "/v1/chat/completions",
    summary="Chat completion in OpenAI's format",
    response_class=Response,
    responses={
        200: {
            "description": "Chunks with `stream: true`, else one completion.",
            "content": {"text/event-stream": {}, "application/json": {}},
        }
    },
    openapi_extra=body_of(ChatBody),
)
@router.post("/chat/completions", include_in_schema=False)
async def complete_chat(request: Request, gateway: Opened, caller: Asker) -> Response:
    """`model` is an agent. The profile `safe` (header `X-Bff-Profile` or the model's suffix) leaves out
    what AutoDev, Shire and ClickPrompt cannot read."""
    read = await read_json(request, gateway.settings.max_body_bytes)
    body = read.fit(ChatBody)
    if body.n is not None and body.n != 1:
        raise RequestError(400, "n_not_supported", "one run gives one answer: leave `n` out or 1", field="n")
    gateway.slots.check(caller.tenant, caller.limits.streams)
    agent, safe = _agent(gateway.config, body.model, request.headers)
    order = _order(request, read, body, agent)
    admitted = await gateway.admission.admit(caller, order)
    options = _options(gateway, admitted, body, safe)
    if body.stream:
        return stream(gateway, caller, _DIALECT, options, None, refuse=openai_error)
    await wait_for_end(gateway, caller, request, admitted.run)
    result, _ = await read_result(gateway, options)
    if not result.ended:
        raise RequestError(503, "shutting_down", "this gateway is shutting down; ask again", retry_after=1)
    place = {"Location": f"/v1/runs/{admitted.run}", "X-Run-Id": admitted.run}
    return json_answer(result.to_chat_completion(), 200, place)


@router.get("/v1/models", summary="List the agents as models", response_class=Response)
@router.get("/models", include_in_schema=False)
async def list_models(gateway: Opened, caller: Reader) -> Response:
    """Only those that are available."""
    names = [name for name in offered_agents(gateway.config, caller) if name in gateway.config.agents]
    return json_answer({"object": "list", "data": [_model(name) for name in names]})


@router.get("/v1/models/{model}", summary="Look at one of them", response_class=Response)
async def look_at_model(model: str, gateway: Opened, caller: Reader) -> Response:
    """The agent as a model."""
    if model not in gateway.config.agents or not caller.may_ask(model):
        raise RequestError(404, "unknown_agent", f"there is no model {model[:64]!r}", field="model")
    return json_answer(_model(model))


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "streaming-bff"}


def _agent(config: Config, model: str, headers: Mapping[str, str]) -> tuple[str, bool]:
    """The agent's name, and whether the safe profile is asked for."""
    safe = headers.get("x-bff-profile", "").strip().lower() == "safe"
    if model.endswith(_SAFE_SUFFIX) and model not in config.agents:
        return model.removesuffix(_SAFE_SUFFIX), True
    return model, safe


def _order(request: Request, read: JsonBody, body: ChatBody, agent: str) -> Order:
    metadata = body.metadata or {}
    return Order(
        agent=agent or None,
        request=RunRequest(
            messages=to_messages(body.messages),
            conversation=conversation_of(request, body.conversation, metadata),
            user=body.user,
            metadata=metadata,
            params=body.parameters(),
        ),
        raw=read.raw,
        route="chat.completions",
        dialect=_DIALECT,
        takes_back=not body.stream or takes_back(_DIALECT),
        agent_field="model",
        idempotency_key=request.headers.get("idempotency-key"),
    )


def _options(gateway: Gateway, admitted: Admitted, body: ChatBody, safe: bool) -> ViewOptions:
    return ViewOptions(
        admitted.run,
        admitted.agent,
        admitted.accepted_ms // 1000,
        usage=body.stream_options is not None and bool(body.stream_options.include_usage),
        safe=safe,
        text=text_finder(gateway.config.agents.get(admitted.agent)),
    )
