"""/v1/runs: begin, list, look at, stop and erase runs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from gateway.admission import Admitted, Order
from gateway.auth import Caller
from gateway.bodies import read_json
from gateway.dependencies import Asker, Gateway, Opened, Reader
from gateway.dialects.base import ViewOptions
from gateway.hub import StreamGone
from gateway.negotiation import not_acceptable, preferred, wait_seconds
from gateway.outcome import read_result, wait_for_end
from gateway.records import RunRecord, events_url
from gateway.routes.answers import json_answer
from gateway.routes.openapi import body_of
from gateway.routes.problems import PROBLEMS
from gateway.routes.turns import ConversationId, Turn, conversation_of, to_messages
from gateway.views import MEDIA_TYPES, takes_back, text_finder
from gateway.watching import position_of, stream
from shared.config import OnDisconnect
from shared.events import RunStopped
from shared.requests import Message, RunRequest
from shared.stream_log import Answer

router = APIRouter(tags=["runs"])

_JSON = "application/json"
_FORMS = (_JSON, *MEDIA_TYPES)
_LONGEST_WAIT = 3600
_LIST_PAGE = 100
_LIST_REACH = 1000
"""How many of a tenant's newest runs a filtered list looks through."""


class Messages(BaseModel):
    """A conversation so far."""

    model_config = ConfigDict(extra="forbid")

    messages: list[Turn] = Field(min_length=1)


def _kind_of_input(value: Any) -> str:
    if isinstance(value, str):
        return "<text>"
    return "<messages>" if isinstance(value, dict) and "messages" in value else "<inputs>"


class RunBody(BaseModel):
    """What is asked of an agent: a text, a conversation, or named inputs for agents that take them."""

    model_config = ConfigDict(extra="forbid")

    agent: str | None = Field(None, max_length=64, description="default: the key's default agent")
    input: Annotated[
        Annotated[str, Field(min_length=1), Tag("<text>")]
        | Annotated[Messages, Tag("<messages>")]
        | Annotated[dict[str, Any], Tag("<inputs>")],
        Discriminator(_kind_of_input),
    ]
    conversation: str | None = ConversationId
    metadata: dict[str, Any] = Field({}, description="handed to the agent; not shown")
    on_disconnect: OnDisconnect | None = Field(
        None, description="what happens to the run when its last viewer has gone; default: the agent's"
    )

    def to_request(self, conversation: str | None) -> RunRequest:
        """The same for agents."""
        messages: tuple[Message, ...] = ()
        inputs: dict[str, Any] = {}
        if isinstance(self.input, str):
            messages = (Message("user", self.input),)
        elif isinstance(self.input, Messages):
            messages = to_messages(self.input.messages)
        else:
            inputs = self.input
        return RunRequest(messages, inputs, conversation, metadata=self.metadata)


class Run(BaseModel):
    """A run, as far as it has come."""

    id: str
    status: Literal["queued", "running", "completed", "failed", "stopped"]
    agent: str
    events_url: str
    conversation: str | None = None
    attempts: int | None = None
    accepted_at: str | None = None
    started_at: str | None = None
    ended_at: str | None = None


class RunState(Run):
    """A run with its result so far."""

    text: str
    outputs: Any = None
    usage: dict[str, int | None] | None = None
    finish_reason: str | None = None
    error: dict[str, Any] | None = None
    last_event_id: str
    viewers: int = Field(description="connections that watch it at this gateway")


class RunList(BaseModel):
    """Runs, newest first."""

    runs: list[Run]


@router.post(
    "/v1/runs",
    summary="Begin a run",
    status_code=201,
    response_class=Response,
    responses={
        200: {
            "description": "The stream itself, by `Accept`; or with `Prefer: wait=N` the whole result.",
            "content": {**{media_type: {} for media_type in MEDIA_TYPES}, _JSON: {}},
        },
        201: {"model": Run, "description": "Accepted; watch it at `events_url`."},
        202: {"model": Run, "description": "Not ended within the N seconds of `Prefer: wait=N`."},
        **PROBLEMS,
    },
    openapi_extra=body_of(RunBody),
)
async def begin_run(request: Request, gateway: Opened, caller: Asker) -> Response:
    """`Accept` decides between the stream (SSE, NDJSON, text) and JSON. The same `Idempotency-Key` with
    the same body joins the same run, from `Last-Event-ID` if that is sent."""
    form = preferred(request.headers.get("accept", ""), _FORMS)
    if form is None:
        raise not_acceptable(_FORMS)
    dialect = MEDIA_TYPES.get(form)
    seconds = wait_seconds(request.headers.get("prefer", ""))
    if dialect is not None or seconds is not None:
        gateway.slots.check(caller.tenant, caller.limits.streams)
    admitted = await gateway.admission.admit(caller, await _order(request, gateway, dialect))
    options = _options(gateway, admitted.run, admitted.agent, admitted.accepted_ms)
    if dialect is not None:
        position = None if admitted.new else position_of(request)
        return stream(gateway, caller, dialect, options, position)
    if seconds is None:
        return json_answer(_begun(admitted, admitted.state), 201, _place(admitted.run))
    return await _waited(request, gateway, caller, admitted, options, min(seconds, _LONGEST_WAIT))


@router.get(
    "/v1/runs",
    summary="List runs, newest first",
    response_class=Response,
    responses={200: {"model": RunList}, **PROBLEMS},
)
async def list_runs(
    gateway: Opened,
    caller: Reader,
    state: Annotated[Literal["queued", "running", "completed", "failed", "stopped"] | None, Query()] = None,
    agent: Annotated[str | None, Query(max_length=64)] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> Response:
    """The runs of this tenant that can still be read."""
    found: list[RunRecord] = []
    runs = await gateway.index.of_tenant(caller.tenant, _LIST_REACH)
    for start in range(0, len(runs), _LIST_PAGE):
        records = await gateway.records.some(caller, runs[start : start + _LIST_PAGE])
        found += [r for r in records if state in (None, r.state) and agent in (None, r.agent)]
        if len(found) >= limit:
            break
    return json_answer({"runs": [record.to_json() for record in found[:limit]]})


@router.get(
    "/v1/runs/{run}",
    summary="Look at a run",
    response_class=Response,
    responses={200: {"model": RunState}, 410: {"description": "It was erased."}, **PROBLEMS},
)
async def look_at_run(run: str, gateway: Opened, caller: Reader) -> Response:
    """State, text so far, outputs, usage."""
    record = await gateway.records.one(caller, run)
    options = _options(gateway, run, record.agent, record.accepted_ms)
    result, last = await read_result(gateway, options)
    seen = {"last_event_id": str(last), "viewers": gateway.hub.viewers(run)}
    return json_answer({**record.to_json(), **result.to_json(), **seen})


@router.delete(
    "/v1/runs/{run}",
    summary="Erase a run",
    status_code=204,
    response_class=Response,
    responses={204: {"description": "Nothing of it is left but its id."}, **PROBLEMS},
)
async def erase_run(run: str, gateway: Opened, caller: Asker) -> Response:
    """Stops it first if it has not ended."""
    record = await gateway.records.one(caller, run)
    if not record.ended:
        await gateway.stopper.end(run, RunStopped(by="client", reason="erased"))
    await gateway.log.erase(run, round(gateway.settings.retention * 1000))
    await gateway.index.forget(run, caller.tenant)
    return Response(status_code=204)


@router.post(
    "/v1/runs/{run}/stop",
    summary="Stop a run",
    status_code=202,
    response_class=Response,
    responses={
        200: {"model": Run, "description": "It had ended before; its final state."},
        202: {"model": Run, "description": "It is stopped; every viewer is told."},
        **PROBLEMS,
    },
)
async def stop_run(run: str, gateway: Opened, caller: Asker) -> Response:
    """Ends it whatever its worker does."""
    await gateway.records.one(caller, run)
    reply = await gateway.stopper.end(run, RunStopped(by="client"))
    if reply.answer is Answer.GONE:
        raise StreamGone
    record = await gateway.records.one(caller, run)
    return json_answer(record.to_json(), 202 if reply.answer is Answer.OK else 200)


async def _order(request: Request, gateway: Gateway, dialect: str | None) -> Order:
    read = await read_json(request, gateway.settings.max_body_bytes)
    body = read.fit(RunBody)
    return Order(
        agent=body.agent,
        request=body.to_request(conversation_of(request, body.conversation, body.metadata)),
        raw=read.raw,
        route="runs",
        dialect=dialect or "json",
        takes_back=dialect is None or takes_back(dialect),
        on_disconnect=body.on_disconnect,
        idempotency_key=request.headers.get("idempotency-key"),
    )


def _options(gateway: Gateway, run: str, agent: str, accepted_ms: int) -> ViewOptions:
    return ViewOptions(run, agent, accepted_ms // 1000, text=text_finder(gateway.config.agents.get(agent)))


def _begun(admitted: Admitted, state: str) -> dict[str, Any]:
    """Where a run is to be found."""
    return {
        "id": admitted.run,
        "status": state,
        "agent": admitted.agent,
        "events_url": events_url(admitted.run),
    }


async def _waited(
    request: Request, gateway: Gateway, caller: Caller, admitted: Admitted, options: ViewOptions, seconds: int
) -> Response:
    """The whole result if the run ends in time, else where it is to be found."""
    await wait_for_end(gateway, caller, request, admitted.run, seconds)
    result, last = await read_result(gateway, options)
    headers = {**_place(admitted.run), "Preference-Applied": f"wait={seconds}"}
    if not result.ended:
        return json_answer(_begun(admitted, result.status), 202, headers)
    body = {**result.to_json(), "events_url": events_url(admitted.run), "last_event_id": str(last)}
    return json_answer(body, 200, headers)


def _place(run: str) -> dict[str, str]:
    return {"Location": f"/v1/runs/{run}", "X-Run-Id": run}
