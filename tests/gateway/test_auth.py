"""Who may do what: keys, tenants, passes, and the gateway without keys."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import pytest

from gateway.auth import Keyring, check_reach, new_key
from gateway.drain import Drain
from gateway.main import build_app
from shared.config import Client, Config
from shared.errors import ConfigError
from shared.settings import Settings
from tests.gateway.house import SECRET, House, bearer, configured, house, keyed
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.usefixtures("no_lasting_keys")

SSE = {"accept": "text/event-stream"}
ASK = {"agent": "writer", "input": "hello"}
CHAT = {"model": "writer", "messages": [{"role": "user", "content": "hello"}]}


class Guarded(NamedTuple):
    """A gateway with tenants, and their keys by name."""

    home: House
    keys: dict[str, str]


@pytest.fixture
async def guarded(redis_server: RedisServer) -> AsyncIterator[Guarded]:
    owner, one = keyed("one")
    read_only, reading = keyed("one", scopes=("read",))
    run_only, running = keyed("one", scopes=("run",))
    old, expired = keyed("one", expires=datetime.now(UTC) - timedelta(seconds=1))
    other, two = keyed("two", agents=("flow",), default_agent="flow")
    all_of_one = Client(keys=(*one.keys, *reading.keys, *running.keys, *expired.keys))
    async with house(redis_server.url, configured(one=all_of_one, two=two)) as home:
        keys = {"owner": owner, "read": read_only, "run": run_only, "expired": old, "other": other}
        yield Guarded(home, keys)


MATRIX: list[tuple[str, str, Any, dict[str, int]]] = [
    ("POST", "/v1/runs", ASK, {"owner": 201, "run": 201, "read": 403, "other": 404}),
    ("GET", "/v1/runs", None, {"owner": 200, "run": 403, "read": 200, "other": 200}),
    ("GET", "/v1/runs/RUN", None, {"owner": 200, "run": 403, "read": 200, "other": 404}),
    ("GET", "/v1/runs/RUN/events", None, {"owner": 200, "run": 403, "read": 200, "other": 404}),
    ("GET", "/v1/agents", None, {"owner": 200, "run": 403, "read": 200, "other": 200}),
    ("GET", "/v1/models", None, {"owner": 200, "run": 403, "read": 200, "other": 200}),
    ("GET", "/v1/models/writer", None, {"owner": 200, "run": 403, "read": 200, "other": 404}),
    ("POST", "/v1/tickets", {"run": "RUN"}, {"owner": 201, "run": 403, "read": 201, "other": 404}),
    ("POST", "/v1/runs/RUN/stop", {}, {"owner": 200, "run": 200, "read": 403, "other": 404}),
    ("POST", "/v1/chat/completions", {**CHAT, "n": 2}, {"owner": 400, "run": 400, "read": 403, "other": 400}),
    ("DELETE", "/v1/runs/RUN", None, {"run": 204, "read": 403, "other": 404}),
]


@pytest.mark.parametrize(("method", "path", "body", "expected"), MATRIX)
async def test_each_route_lets_in_whom_it_should(
    guarded: Guarded, method: str, path: str, body: Any, expected: dict[str, int]
) -> None:
    run = await guarded.home.begin(guarded.keys["owner"])
    await guarded.home.worker.answers(run, "x")
    said = {name: run if value == "RUN" else value for name, value in body.items()} if body else body
    everybody = {**expected, "none": 401, "expired": 401, "wrong": 401}
    order = sorted(everybody, key=lambda name: everybody[name] == 204)
    for name in order:
        key = guarded.keys.get(name, "bff_aaaaaaaa_x" if name == "wrong" else None)
        answer = await guarded.home.client.request(
            method, path.replace("RUN", run), json=said, headers={"accept": "*/*", **bearer(key)}
        )
        assert answer.status_code == everybody[name], (name, answer.text)


async def test_a_foreign_run_and_an_unknown_one_are_the_same(guarded: Guarded) -> None:
    run = await guarded.home.begin(guarded.keys["owner"])
    for path in ("", "/events"):
        answers = []
        for asked in (run, "f" * 32, "x"):
            for headers in ({}, {"last-event-id": "0-1"}, SSE):
                sent = {**headers, **bearer(guarded.keys["other"])}
                answer = await guarded.home.client.get(f"/v1/runs/{asked}{path}", headers=sent)
                answers.append((answer.status_code, answer.content))
        assert len(set(answers)) == 1
        assert answers[0][0] == 404


async def test_a_key_is_taken_from_either_header_and_never_from_the_address(guarded: Guarded) -> None:
    client, key = guarded.home.client, guarded.keys["owner"]
    assert (await client.get("/v1/runs", headers={"x-api-key": key})).status_code == 200
    assert (await client.get("/v1/runs", headers={"x-api-key": key, **bearer(key)})).status_code == 200
    contradiction = {"x-api-key": guarded.keys["other"], **bearer(key)}
    assert (await client.get("/v1/runs", headers=contradiction)).status_code == 401
    for name in ("api_key", "key", "token", "access_token", "ticket", "authorization"):
        assert (await client.get("/v1/runs", params={name: key})).status_code == 401
    refused = await client.get("/v1/runs")
    assert refused.headers["www-authenticate"] == "Bearer"


async def test_what_is_stored_is_no_key(guarded: Guarded) -> None:
    text, key = new_key("one", SECRET.encode())
    keyring = Keyring({"one": Client(keys=(key,))}, SECRET.encode())
    now = datetime.now(UTC)
    assert keyring.find(text, now) is not None
    for forged in (key.hash, f"bff_{key.id}_{key.hash}", text[:-1], text + "x", f"bff_{key.id}_", "", "é"):
        assert keyring.find(forged, now) is None
    other = Keyring({"one": Client(keys=(key,))}, b"another secret of a server")
    assert other.find(text, now) is None


async def test_a_key_names_its_agents_and_its_own_default(guarded: Guarded) -> None:
    client, key = guarded.home.client, guarded.keys["other"]
    agents = (await client.get("/v1/agents", headers=bearer(key))).json()["agents"]
    assert [agent["name"] for agent in agents] == ["flow"]
    refused = await client.post("/v1/runs", json=ASK, headers=bearer(key))
    assert refused.json()["code"] == "unknown_agent"
    assert "writer" not in refused.json()["detail"].partition(";")[2]
    begun = await client.post("/v1/runs", json={"input": "x"}, headers=bearer(key))
    assert begun.json()["agent"] == "flow"
    unnamed = await client.post("/v1/runs", json={"input": "x"}, headers=bearer(guarded.keys["owner"]))
    assert (unnamed.status_code, unnamed.json()["field"]) == (422, "agent")


async def test_the_same_idempotency_key_of_two_tenants_are_two_runs(guarded: Guarded) -> None:
    runs = set()
    for name in ("owner", "other"):
        answer = await guarded.home.client.post(
            "/v1/runs",
            json={"agent": "flow", "input": "x"},
            headers={"idempotency-key": "k", **bearer(guarded.keys[name])},
        )
        runs.add(answer.json()["id"])
    assert len(runs) == 2


async def test_a_ticket_opens_one_run_once_and_its_cookie_the_reconnects(guarded: Guarded) -> None:
    home, key = guarded.home, guarded.keys["owner"]
    run, second = await home.begin(key), await home.begin(key)
    for each in (run, second):
        await home.worker.answers(each, "x")
    made = await home.client.post("/v1/tickets", json={"run": run}, headers=bearer(key))
    ticket = made.json()["ticket"]
    assert made.json()["url"] == f"/v1/runs/{run}/events?ticket={ticket}"

    async def get(path: str, **headers: str) -> Any:
        home.client.cookies.clear()
        return await home.client.get(path, headers={**SSE, **headers})

    assert (await get(f"/v1/runs/{second}/events?ticket={ticket}")).status_code == 401
    assert (await get(f"/v1/runs/{run}?ticket={ticket}")).status_code == 401
    uses = await asyncio.gather(*(get(made.json()["url"]) for _ in range(5)))
    assert sorted(use.status_code for use in uses) == [200, 401, 401, 401, 401]
    first = next(use for use in uses if use.status_code == 200)
    cookie = first.headers["set-cookie"]
    value = cookie.partition(";")[0]
    for attribute in ("HttpOnly", "SameSite=Strict", f"Path=/v1/runs/{run}/events", "Max-Age="):
        assert attribute in cookie
    again = await get(made.json()["url"], cookie=value)
    assert (again.status_code, "set-cookie" in again.headers) == (200, False)
    assert (await get(f"/v1/runs/{second}/events", cookie=value)).status_code == 401
    assert (await get(f"/v1/runs/{run}", cookie=value)).status_code == 401
    assert (await get(f"/v1/runs/{run}/events", cookie=value, origin="http://evil.test")).status_code == 403
    for place in range(len("bff_run="), len(value)):
        forged = value[:place] + ("0" if value[place] != "0" else "1") + value[place + 1 :]
        assert (await get(f"/v1/runs/{run}/events", cookie=forged)).status_code == 401, place


async def test_limits_of_a_tenant_are_its_own(redis_server: RedisServer) -> None:
    small, one = keyed("small", {"running": 2, "streams": 1})
    busy, three = keyed("busy", {"requests_per_minute": 3})
    other, two = keyed("two")
    async with house(redis_server.url, configured(small=one, busy=three, two=two)) as home:
        run = await home.begin(small)
        await home.begin(small)
        full = await home.client.post("/v1/runs", json=ASK, headers=bearer(small))
        assert (full.status_code, full.json()["code"]) == (429, "too_many_runs")
        await home.client.post(f"/v1/runs/{run}/stop", headers=bearer(small))
        run = await home.begin(small)
        await home.begin(other)
        watch = {**SSE, **bearer(small)}
        async with home.client.stream("GET", f"/v1/runs/{run}/events", headers=watch) as first:
            assert first.status_code == 200
            second = await home.client.get(f"/v1/runs/{run}/events", headers=watch)
            assert (second.status_code, second.json()["code"]) == (429, "too_many_streams")
        statuses = [(await home.client.get("/v1/agents", headers=bearer(busy))).status_code for _ in range(4)]
        assert statuses == [200, 200, 200, 429]
        assert (await home.client.get("/v1/agents", headers=bearer(other))).status_code == 200


async def test_an_address_that_guesses_keys_is_no_longer_listened_to(guarded: Guarded) -> None:
    wrong = bearer("bff_aaaaaaaa_wrong")
    statuses = [(await guarded.home.client.get("/v1/runs", headers=wrong)).status_code for _ in range(61)]
    assert statuses == [401] * 60 + [429]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:8000", "[::1]:9", "LOCALHOST"])
async def test_without_keys_this_machines_names_are_served(redis_server: RedisServer, host: str) -> None:
    async with house(redis_server.url) as home:
        answer = await home.client.get("/v1/agents", headers={"host": host})
        assert answer.status_code == 200
        own = await home.client.get("/v1/agents", headers={"host": host, "origin": f"http://{host}"})
        assert own.status_code == 200


async def test_without_keys_foreign_pages_and_names_are_refused(redis_server: RedisServer) -> None:
    async with house(redis_server.url, cors_origins=("https://portal.test",)) as home:
        run = await home.begin()
        for name in ("evil.test", "127.0.0.1.evil.test", "localhost.evil.test:80", "127.0.0.2", ""):
            for method, path in (("POST", "/v1/runs"), ("GET", f"/v1/runs/{run}")):
                answer = await home.client.request(method, path, json=ASK, headers={"host": name})
                assert answer.status_code in (400, 403), name
        for origin in ("http://evil.test", "null", f"https://127.0.0.1:{home.port}", "http://127.0.0.1:1"):
            for method, path in (("POST", "/v1/runs"), ("DELETE", f"/v1/runs/{run}"), ("GET", "/v1/runs")):
                answer = await home.client.request(method, path, json=ASK, headers={"origin": origin})
                assert (answer.status_code, answer.json()["code"]) == (403, "origin_refused")
        for media_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
            for path in ("/v1/runs", f"/v1/runs/{run}/stop"):
                form = await home.client.post(path, content=b"{}", headers={"content-type": media_type})
                assert form.status_code == 415
        named = await home.client.post("/v1/runs", json=ASK, headers={"origin": "https://portal.test"})
        assert named.status_code == 201
        assert named.headers["access-control-allow-origin"] == "https://portal.test"
        assert "X-Run-Id" in named.headers["access-control-expose-headers"]


async def test_a_gateway_without_keys_stays_on_this_machine() -> None:
    for host in ("127.0.0.1", "::1", "localhost", "127.1.2.3"):
        check_reach(host, {})
    for host in ("0.0.0.0", "::", "10.0.0.1", "gateway.test"):
        with pytest.raises(ConfigError, match="bff keys new"):
            check_reach(host, {})
        check_reach(host, {"one": Client()})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"secret": None}, "BFF_SECRET"),
        ({"secret": "short"}, "BFF_SECRET"),
        ({"cors_origins": ("*",)}, "CORS"),
    ],
)
def test_a_gateway_that_would_be_unsafe_does_not_start(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_app(Settings(**{"secret": SECRET, **settings}), Config(), Drain())
