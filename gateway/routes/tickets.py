"""POST /v1/tickets: a pass to a run's events, for EventSource, which cannot send a key."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from gateway.bodies import read_json
from gateway.dependencies import Opened, Reader
from gateway.records import events_url
from gateway.routes.answers import json_answer
from gateway.routes.openapi import body_of
from gateway.routes.problems import PROBLEMS
from gateway.tickets import TICKET_SECONDS

router = APIRouter(tags=["runs"])


class TicketBody(BaseModel):
    """Whose events the ticket is for."""

    model_config = ConfigDict(extra="forbid")

    run: str = Field(min_length=1, max_length=64, description="id of a run")


class Ticket(BaseModel):
    """A ticket; `url` is the address to give to EventSource."""

    ticket: str
    run: str
    expires_in: int = Field(description="seconds")
    url: str


@router.post(
    "/v1/tickets",
    summary="Get a ticket for EventSource",
    status_code=201,
    response_class=Response,
    responses={201: {"model": Ticket}, **PROBLEMS},
    openapi_extra=body_of(TicketBody),
)
async def make_ticket(request: Request, gateway: Opened, caller: Reader) -> Response:
    """Valid for 30 seconds and one use, which sets a cookie for that run's events."""
    body = (await read_json(request, gateway.settings.max_body_bytes)).fit(TicketBody)
    record = await gateway.records.one(caller, body.run)
    ticket = gateway.tickets.ticket(record.run, caller.tenant)
    url = f"{events_url(record.run)}?ticket={ticket}"
    answer = Ticket(ticket=ticket, run=record.run, expires_in=TICKET_SECONDS, url=url)
    return json_answer(answer.model_dump(), 201)
