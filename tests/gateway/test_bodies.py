"""Bodies that are refused, each with the field and the reason."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from tests.gateway.house import House, house
from tests.support.redis_server import RedisServer

LIMIT = 100_000


@pytest.fixture
async def home(redis_server: RedisServer) -> AsyncIterator[House]:
    async with house(redis_server.url, max_body_bytes=LIMIT) as opened:
        yield opened


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ([], "body"),
        ("text", "body"),
        ({}, "input"),
        ({"input": ""}, "input"),
        ({"input": 3}, "input"),
        ({"input": None}, "input"),
        ({"input": {"messages": []}}, "input.messages"),
        ({"input": {"messages": [{"role": "pirate", "content": "x"}]}}, "input.messages.0.role"),
        ({"input": {"messages": [{"content": "x"}]}}, "input.messages.0.role"),
        ({"input": {"messages": [{"role": "user", "content": 3}]}}, "input.messages.0.content"),
        ({"input": {"messages": [{"role": "user", "content": "x", "colour": 1}]}}, "input.messages.0.colour"),
        ({"input": "x", "agnet": "writer"}, "agnet"),
        ({"input": "x", "agent": 3}, "agent"),
        ({"input": "x", "agent": "a" * 65}, "agent"),
        ({"input": "x", "conversation": ""}, "conversation"),
        ({"input": "x", "conversation": "c" * 257}, "conversation"),
        ({"input": "x", "metadata": []}, "metadata"),
        ({"input": "x", "metadata": {"conversation": 3}}, "conversation"),
        ({"input": "x", "on_disconnect": "explode"}, "on_disconnect"),
    ],
)
async def test_a_wrong_field_is_named(home: House, body: Any, field: str) -> None:
    if isinstance(body, dict) and "agent" not in body:
        body = {"agent": "writer", **body}
    answer = await home.client.post("/v1/runs", json=body)
    assert answer.status_code == 422
    assert answer.json()["field"] == field
    assert field in answer.json()["detail"] or field == "conversation"


async def test_bodies_that_are_no_json_are_refused(home: House) -> None:
    json_type = {"content-type": "application/json"}
    cases: list[tuple[bytes, dict[str, str], int]] = [
        (b"", json_type, 400),
        (b"{", json_type, 400),
        (b'{"input": NaN}', json_type, 400),
        (b"\xff\xfe", json_type, 400),
        (b'{"input":"\\ud800"}', json_type, 400),
        (b"[" * 100 + b"]" * 100, json_type, 400),
        (b"[" * 40_000 + b"]" * 40_000, json_type, 400),
        (b"{}", {"content-type": "text/json"}, 415),
        (gzip.compress(b"{}"), {**json_type, "content-encoding": "gzip"}, 415),
        (b'"' + b"x" * LIMIT + b'"', json_type, 413),
    ]
    for content, headers, status in cases:
        answer = await home.client.post("/v1/runs", content=content, headers=headers)
        assert answer.status_code == status, content[:20]
        assert answer.json()["detail"]


async def test_a_body_of_unknown_length_is_bounded_too(home: House) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * (LIMIT // 10)

    answer = await home.client.post(
        "/v1/runs", content=endless(), headers={"content-type": "application/json"}
    )
    assert answer.status_code == 413


async def test_brackets_in_texts_are_no_depth_and_64_levels_are_allowed(home: House) -> None:
    deep: Any = "x"
    for _ in range(61):
        deep = [deep]
    text = '{"[\\"' * 100
    body = {"agent": "flow", "input": {"deep": deep, "text": text}}
    assert (await home.client.post("/v1/runs", json=body)).status_code == 201
    too_deep = {"agent": "flow", "input": {"deep": [[deep]], "text": text}}
    refused = await home.client.post("/v1/runs", json=too_deep)
    assert (refused.status_code, refused.json()["code"]) == (400, "too_deep")


def test_a_hostile_body_takes_no_time() -> None:
    from gateway.bodies import _too_deep

    def towers() -> Iterator[bytes]:
        yield b"[" + b",".join([b"[" * 62 + b"]" * 62] * 8000) + b"]"
        yield b"[" + b",".join([b"[]"] * 300_000) + b"]"
        yield json.dumps({'\\"[' * 1000: '\\"{' * 100_000}).encode()

    for body in towers():
        began = time.process_time()
        assert not _too_deep(body)
        assert time.process_time() - began < 0.2
