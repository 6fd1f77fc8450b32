"""GET /v1/runs/{run}/events: a run's stream from any position, in any dialect."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from gateway.auth import Caller
from gateway.dependencies import Gateway, Opened, Viewer
from gateway.dialects import FRONTEND_DIALECTS
from gateway.dialects.base import ViewOptions
from gateway.negotiation import not_acceptable, preferred
from gateway.records import Records, RunRecord, events_url
from gateway.routes.problems import PROBLEMS
from gateway.tickets import COOKIE
from gateway.views import MEDIA_TYPES, text_finder
from gateway.watching import is_event_source, position_of, stream, told_gone
from shared import cursor
from shared.errors import RequestError

router = APIRouter(tags=["runs"])

_STREAM = {
    200: {
        "description": "The run's events; each SSE frame has its cursor as `id`.",
        "content": {"text/event-stream": {}, "application/x-ndjson": {}, "text/plain": {}},
    },
    204: {"description": "The cursor is at the terminal event: nothing is left to send."},
    410: {"description": "The stream is no longer there."},
}


@router.get(
    "/v1/runs/{run}/events",
    summary="Watch a run from any position",
    response_class=Response,
    responses={**_STREAM, **PROBLEMS},  # type: ignore[dict-item]  # FastAPI wants one value type
)
async def watch_run(
    run: str,
    request: Request,
    gateway: Opened,
    viewer: Viewer,
    dialect: Annotated[str | None, Query(description="a dialect's name; wins over `Accept`")] = None,
    named: Annotated[str, Query(description="0 leaves `event:` lines out, for `onmessage`")] = "1",
    last_event_id: Annotated[str | None, Query(description="a cursor; the header wins")] = None,
    ticket: Annotated[str | None, Query(description="the only credential that a URL may carry")] = None,
    errors: Annotated[str | None, Query(description="`status`: never answer as to an EventSource")] = None,
) -> Response:
    """Resume with `Last-Event-ID`; without it the run is told from its start."""
    name = _dialect(request, dialect)
    position = position_of(request)
    if position is not None and position.cursor == cursor.GONE:
        return Response(status_code=204)
    record = await _record(gateway.records, viewer, run, lenient=is_event_source(request))
    headers = {"Set-Cookie": _cookie(gateway, viewer, request, run)} if viewer.new_pass else None
    if record is None:
        return told_gone(gateway, name, ViewOptions(run))
    options = ViewOptions(
        run,
        record.agent,
        record.accepted_ms // 1000,
        named=named != "0",
        text=text_finder(gateway.config.agents.get(record.agent)),
    )
    return stream(
        gateway, viewer, name, options, position, event_source=is_event_source(request), headers=headers
    )


def _dialect(request: Request, wanted: str | None) -> str:
    if wanted is not None:
        if wanted not in FRONTEND_DIALECTS:
            raise RequestError(
                400,
                "unknown_dialect",
                f"there is no dialect {wanted[:64]!r}; choose of {', '.join(FRONTEND_DIALECTS)}",
                field="dialect",
            )
        return wanted
    media_type = preferred(request.headers.get("accept", ""), tuple(MEDIA_TYPES))
    if media_type is None:
        raise not_acceptable(tuple(MEDIA_TYPES))
    return MEDIA_TYPES[media_type]


async def _record(records: Records, viewer: Caller, run: str, *, lenient: bool) -> RunRecord | None:
    """The run's record. None for a run that an EventSource may know to have been its own: a pass was
    signed for it, or there is one tenant only; everybody else gets a status."""
    try:
        return await records.one(viewer, run)
    except RequestError:
        if lenient and (viewer.holds_pass or viewer.alone):
            return None
        raise


def _cookie(gateway: Gateway, viewer: Caller, request: Request, run: str) -> str:
    """The cookie that authorises the browser's own reconnects, as long as the run can be read."""
    longest = max((a.timeouts.queue + a.timeouts.run for a in gateway.config.agents.values()), default=0.0)
    seconds = round(longest + gateway.settings.retention)
    value = gateway.tickets.cookie(run, viewer.tenant, seconds)
    secure = "; Secure" if request.url.scheme == "https" else ""
    return f"{COOKIE}={value}; Path={events_url(run)}; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}"
