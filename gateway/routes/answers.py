"""Answers that are one JSON value."""

from __future__ import annotations

from collections.abc import Mapping

import orjson
from starlette.responses import Response

from shared.events import Json


def json_answer(value: Json, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """`value` as JSON that nobody keeps: all of it belongs to one tenant."""
    return Response(
        orjson.dumps(value), status, {"Cache-Control": "no-store", **(headers or {})}, "application/json"
    )
