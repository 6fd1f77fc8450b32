"""Whether this process lives, and whether it can serve."""

from __future__ import annotations

from fastapi import APIRouter, Response
from pydantic import BaseModel

from gateway.dependencies import Gateway, Opened
from gateway.routes.answers import json_answer
from shared.broker import check
from shared.errors import BrokerError, BrokerUnfit

router = APIRouter(tags=["operations"])


class Readiness(BaseModel):
    """`missing` says what is not there, each with the reason."""

    ready: bool
    missing: dict[str, str]


@router.get("/healthz", summary="Is the process alive?", response_class=Response)
async def healthz() -> Response:
    """Says yes as long as it can say anything."""
    return json_answer({"status": "ok"})


@router.get(
    "/readyz",
    summary="Can it serve?",
    response_class=Response,
    responses={200: {"model": Readiness}, 503: {"model": Readiness, "description": "Something is missing."}},
)
async def readyz(gateway: Opened) -> Response:
    """Names what is missing: Redis, agents, or time, as the process is shutting down."""
    missing = await _missing(gateway)
    return json_answer({"ready": not missing, "missing": missing}, 503 if missing else 200)


async def _missing(gateway: Gateway) -> dict[str, str]:
    missing = {}
    try:
        await check(gateway.broker)
    except BrokerUnfit as error:
        missing["redis"] = str(error)
    except BrokerError:
        missing["redis"] = "Redis does not answer as it should (BFF_REDIS_URL)"
    if not gateway.config.agents:
        missing["agents"] = "the configuration has no agent that is available"
    if gateway.drain.is_set():
        missing["time"] = "this gateway is shutting down"
    return missing
