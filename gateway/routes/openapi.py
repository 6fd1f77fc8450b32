"""Request bodies in the API's description: routes read bodies themselves, so they say what they take."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

_PLACE = "#/components/schemas/{model}"


def body_of(model: type[BaseModel]) -> dict[str, Any]:
    """For a route's `openapi_extra`: a JSON body that fits `model`."""
    schema = model.model_json_schema(ref_template=_PLACE)
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def describe(app: FastAPI) -> None:
    """Let `app` describe itself with the definitions of all bodies in one place."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _described(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend it


def _described(app: FastAPI) -> dict[str, Any]:
    schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    shared = schema.setdefault("components", {}).setdefault("schemas", {})
    for path in schema["paths"].values():
        for call in path.values():
            content = call.get("requestBody", {}).get("content", {})
            for body in content.values():
                shared.update(body["schema"].pop("$defs", {}))
    return schema
