"""Whose run it is: other tenants, and pages of other origins, see and begin nothing."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import pytest
import yaml
from openai import AsyncOpenAI

from cli.keys import key_entry
from gateway.auth import new_key
from tests.support.sse_client import Viewer
from tests.support.system import System, browser, events_of, start_run, state_of, watched
from tests.system.conftest import StartSystem

SECRET = "a server secret of the tests"

AGENTS = """
agents:
  held: {dialect: openai-chat, url: "{url}/s/held/openai/v1", model: gpt, api_key: "${KEY}"}
  other: {dialect: openai-chat, url: "{url}/openai/v1", model: gpt, api_key: "${KEY}"}
"""


@dataclass(frozen=True)
class Keys:
    """The keys of two tenants; `reader` and `limited` are the first one's, too."""

    owner: str
    reader: str
    limited: str
    stranger: str


@pytest.fixture(scope="module")
def issued() -> tuple[Keys, str]:
    """The keys, and `clients:` with what is kept of them."""
    made = {name: new_key(name, SECRET.encode()) for name in ("owner", "reader", "limited", "stranger")}

    def entry(name: str, scopes: list[str], agents: list[str]) -> dict[str, Any]:
        return key_entry(made[name][1], scopes, agents)

    everything, both = ["*"], ["run", "read"]
    portal = [entry("owner", both, everything), entry("reader", ["read"], everything)]
    portal.append(entry("limited", both, ["other"]))
    stranger = [entry("stranger", ["run", "read", "admin"], everything)]
    clients = {"portal": {"keys": portal}, "team": {"keys": stranger}}
    return Keys(**{name: key for name, (key, _) in made.items()}), yaml.safe_dump({"clients": clients})


@pytest.fixture(scope="module")
def keys(issued: tuple[Keys, str]) -> Keys:
    return issued[0]


@pytest.fixture(scope="module")
def shared_system(start_shared_system: StartSystem, issued: tuple[Keys, str]) -> System:
    return start_shared_system(AGENTS + issued[1], gateways=2, env={"BFF_SECRET": SECRET})


@pytest.fixture
def system(shared_system: System) -> System:
    shared_system.scripted.reset()
    shared_system.scripted.script("held", {"tokens": 9, "hold_after": 4})
    return shared_system


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.fixture
async def owner(keys: Keys) -> AsyncIterator[httpx.AsyncClient]:
    async with browser() as client:
        client.headers.update(bearer(keys.owner))
        yield client


@pytest.fixture
async def stranger(keys: Keys) -> AsyncIterator[httpx.AsyncClient]:
    async with browser() as client:
        client.headers.update(bearer(keys.stranger))
        yield client


Call = tuple[str, str, dict[str, Any]]

CALLS: dict[str, Call] = {
    "look": ("GET", "/v1/runs/{run}", {}),
    "erase": ("DELETE", "/v1/runs/{run}", {}),
    "stop": ("POST", "/v1/runs/{run}/stop", {}),
    "ticket": ("POST", "/v1/tickets", {"json": {"run": "{run}"}}),
    "events": ("GET", "/v1/runs/{run}/events", {}),
    "events as EventSource": ("GET", "/v1/runs/{run}/events", {"headers": {"accept": "text/event-stream"}}),
    "lines": ("GET", "/v1/runs/{run}/events", {"headers": {"accept": "application/x-ndjson"}}),
    "text": ("GET", "/v1/runs/{run}/events?dialect=text", {}),
    "chat": ("GET", "/v1/runs/{run}/events?dialect=openai-chat", {}),
    "resume": ("GET", "/v1/runs/{run}/events", {"headers": {"last-event-id": "{cursor}"}}),
    "resume by query": ("GET", "/v1/runs/{run}/events?last_event_id={cursor}", {}),
    "resume at the start": ("GET", "/v1/runs/{run}/events", {"headers": {"last-event-id": "0-1"}}),
    "resume at nothing": ("GET", "/v1/runs/{run}/events", {"headers": {"last-event-id": "nonsense"}}),
}


async def make(
    client: httpx.AsyncClient, url: str, call: Call, run: str, cursor: str = "5-3"
) -> httpx.Response:
    """Make a call about a run."""
    method, path, options = call

    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: filled(inner) for name, inner in value.items()}
        return value.replace("{run}", run).replace("{cursor}", cursor)

    return await client.request(method, url + filled(path), **filled(options))


async def begun(client: httpx.AsyncClient, url: str) -> tuple[str, Viewer]:
    """A run that is under way, and one who has seen its first text."""
    run = await start_run(client, url, "held")
    viewer = Viewer()
    await viewer.watch(client, events_of(url, run), until="text.delta", headers=dict(client.headers))
    return run, viewer


async def test_every_route_about_a_run_is_tried(system: System, owner: httpx.AsyncClient) -> None:
    """So that a new one is not forgotten here."""
    paths = (await owner.get(f"{system.url}/openapi.json")).json()["paths"]
    offered = {(method.upper(), path) for path in paths if "{run}" in path for method in paths[path]}
    assert offered <= {(method, path.partition("?")[0]) for method, path, _ in CALLS.values()}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_another_tenants_run_is_no_run(
    system: System, owner: httpx.AsyncClient, stranger: httpx.AsyncClient, call: Call
) -> None:
    """The answer is that to an unknown one, on every gateway, while it lives and after its end."""
    run, viewer = await begun(owner, system.url)
    for _ in ("live", "ended"):
        assert viewer.cursor is not None
        for gateway in system.gateways:
            foreign = await make(stranger, gateway.url, call, run, viewer.cursor)
            unknown = await make(stranger, gateway.url, call, "0" * 32, viewer.cursor)
            assert foreign.status_code == 404
            assert (foreign.status_code, foreign.content) == (unknown.status_code, unknown.content)
            assert foreign.headers.keys() == unknown.headers.keys()
        system.scripted.release("held")
        await viewer.watch_to_end(owner, events_of(system.url, run))
    assert viewer.types[-1] == "run.completed"


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_without_a_key_nothing_is_told(
    system: System, owner: httpx.AsyncClient, keys: Keys, call: Call
) -> None:
    run = await start_run(owner, system.url, "other")
    stored = yaml.safe_load((system.directory / "agents.yaml").read_text())["clients"]["portal"]["keys"][0]
    as_key = f"bff_{stored['id']}_{stored['hash']}"
    async with browser() as nobody:
        for headers in ({}, bearer("bff_nobody00_x"), bearer(keys.owner + "x"), bearer(as_key)):
            nobody.headers.pop("authorization", None)
            nobody.headers.update(headers)
            answer = await make(nobody, system.url, call, run)
            assert answer.status_code == 401
            assert run not in answer.text
    async with browser() as nobody:
        in_url = {"api_key": keys.owner, "key": keys.owner, "ticket": keys.owner}
        assert (await nobody.get(f"{system.url}/v1/runs/{run}", params=in_url)).status_code == 401


async def test_lists_hold_a_tenants_own_runs(
    system: System, owner: httpx.AsyncClient, stranger: httpx.AsyncClient
) -> None:
    mine, _ = await begun(owner, system.url)
    theirs = await start_run(stranger, system.url, "other")

    async def listed(client: httpx.AsyncClient) -> set[str]:
        answer = await client.get(f"{system.gateways[1].url}/v1/runs", params={"limit": 200})
        return {run["id"] for run in answer.json()["runs"]}

    assert mine in await listed(owner)
    assert mine not in await listed(stranger)
    assert theirs in await listed(stranger)
    assert theirs not in await listed(owner)
    system.scripted.release("held")


async def test_the_same_idempotency_key_of_two_tenants_is_two_runs(
    system: System, owner: httpx.AsyncClient, stranger: httpx.AsyncClient
) -> None:
    asking, once = {"agent": "other", "input": "?"}, {"idempotency-key": "one"}
    answers = [
        await client.post(f"{system.url}/v1/runs", json=asking, headers=once)
        for client in (owner, stranger, owner)
    ]
    runs = [answer.headers["x-run-id"] for answer in answers]
    assert runs[0] == runs[2] != runs[1]


async def test_a_key_may_do_what_it_was_made_for(system: System, keys: Keys) -> None:
    async with browser() as client:
        asking = {"agent": "held", "input": "?"}
        for key, status, code in (
            (keys.reader, 403, "scope_missing"),
            (keys.limited, 404, "unknown_agent"),
        ):
            answer = await client.post(f"{system.url}/v1/runs", json=asking, headers=bearer(key))
            assert (answer.status_code, answer.json()["code"]) == (status, code)
        client.headers.update(bearer(keys.limited))
        agents = (await client.get(f"{system.url}/v1/agents")).json()["agents"]
        assert [agent["name"] for agent in agents] == ["other"]
        run = await start_run(client, system.url, "other")
        reading = await client.get(f"{system.url}/v1/runs/{run}", headers=bearer(keys.reader))
        assert reading.status_code == 200
        stopping = await client.post(f"{system.url}/v1/runs/{run}/stop", headers=bearer(keys.reader))
        assert stopping.status_code == 403
    assert system.scripted.calls("held") == []


async def test_the_official_client_needs_the_key(system: System, keys: Keys) -> None:
    for key in (keys.owner, keys.owner + "x"):
        async with AsyncOpenAI(base_url=f"{system.url}/v1", api_key=key, max_retries=0) as client:
            if key == keys.owner:
                assert [model.id async for model in client.models.list()] == ["held", "other"]
            else:
                with pytest.raises(openai.AuthenticationError):
                    await client.models.retrieve("other")


async def test_a_ticket_opens_one_runs_events_and_its_cookie_the_reconnects(
    system: System, owner: httpx.AsyncClient
) -> None:
    """As a browser's EventSource does it, which can send no key."""
    run, _ = await begun(owner, system.url)
    other = await start_run(owner, system.url, "other")
    issued = (await owner.post(f"{system.url}/v1/tickets", json={"run": run})).json()
    async with browser() as source:
        wrong_run = events_of(system.url, other) + "?" + issued["url"].partition("?")[2]
        assert (await source.get(wrong_run)).status_code == 401
        viewer = Viewer()
        await viewer.watch(source, system.url + issued["url"], until="text.delta")
        cookie = viewer.headers["set-cookie"]
        assert re.search(rf"; Path=/v1/runs/{run}/events; .*; HttpOnly; SameSite=Strict", cookie)
        system.scripted.release("held")
        await viewer.watch(source, system.gateways[1].url + issued["url"])
        assert viewer.types[-1] == "run.completed"
        for path in (f"/v1/runs/{run}", f"/v1/runs/{other}/events"):
            assert (await source.get(system.url + path)).status_code == 401
        foreign = {"origin": "https://evil.example"}
        assert (await source.get(events_of(system.url, run), headers=foreign)).status_code == 403
    async with browser() as somebody:
        again = await somebody.get(system.url + issued["url"])
        assert again.status_code == 401


REFUSED = {
    "foreign page": ({"origin": "https://evil.example"}, 403),
    "sandboxed page": ({"origin": "null"}, 403),
    "page on another port": ({"origin": "http://127.0.0.1:1"}, 403),
    "foreign name": ({"host": "evil.example"}, 403),
    "foreign name with our port": ({"host": "127.0.0.1.evil.example:8000"}, 403),
    "form": ({"content-type": "application/x-www-form-urlencoded"}, 415),
    "plain text": ({"content-type": "text/plain"}, 415),
}


async def test_without_keys_foreign_pages_and_names_begin_nothing(start_system: StartSystem) -> None:
    """A page can send simple requests to this machine, or make its own name point here."""
    system = start_system()
    body = b'{"agent":"assistant","model":"assistant","input":"?","messages":[{"role":"user","content":"?"}]}'
    async with browser() as client:
        run = await start_run(client, system.url, "assistant")
        await watched(client, system.url, run)
        calls = len(system.scripted.stats()["calls"])
        for path in ("/v1/runs", "/v1/chat/completions", "/v1/tickets", f"/v1/runs/{run}/stop"):
            for name, (headers, status) in REFUSED.items():
                told = {"content-type": "application/json", **headers}
                answer = await client.post(system.url + path, content=body, headers=told)
                assert answer.status_code == status, (path, name)
                assert "access-control-allow-origin" not in answer.headers
        for headers in (headers for headers, status in REFUSED.values() if status == 403):
            for path in (f"/v1/runs/{run}", f"/v1/runs/{run}/events", "/v1/runs", "/v1/agents"):
                assert (await client.get(system.url + path, headers=headers)).status_code == 403
        preflight = {"origin": "https://evil.example", "access-control-request-method": "POST"}
        answer = await client.options(f"{system.url}/v1/runs", headers=preflight)
        assert "access-control-allow-origin" not in answer.headers
        runs = (await client.get(f"{system.url}/v1/runs")).json()["runs"]
        assert [(one["id"], one["status"]) for one in runs] == [(run, "completed")]
        assert (await state_of(client, system.url, run))["status"] == "completed"
        assert len(system.scripted.stats()["calls"]) == calls
