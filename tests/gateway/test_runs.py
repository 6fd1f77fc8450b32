"""The native API over HTTP: begin, watch, resume, look, list, stop, erase."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from shared import keys
from shared.events import Data, RunCompleted, RunFailed, Usage
from tests.gateway.house import House, house, words
from tests.support.redis_server import RedisServer
from tests.support.sse_client import Viewer
from tests.support.wait import eventually

pytestmark = pytest.mark.usefixtures("no_lasting_keys")

JSON = {"accept": "application/json"}
SSE = {"accept": "text/event-stream"}
ASK = {"agent": "writer", "input": "hello"}


@pytest.fixture
async def home(redis_server: RedisServer) -> AsyncIterator[House]:
    async with house(redis_server.url) as opened:
        yield opened


async def test_a_run_begun_as_json_says_where_it_is(home: House) -> None:
    answer = await home.client.post("/v1/runs", json=ASK)
    assert answer.status_code == 201
    body = answer.json()
    assert body["status"] == "queued"
    assert body["events_url"] == f"/v1/runs/{body['id']}/events"
    assert answer.headers["location"] == f"/v1/runs/{body['id']}"
    assert answer.headers["x-run-id"] == body["id"]


async def test_a_run_begun_as_a_stream_is_the_stream(home: House) -> None:
    async with home.client.stream("POST", "/v1/runs", json=ASK, headers=SSE) as response:
        run = response.headers["x-run-id"]
        await home.worker.answers(run, "good ", "day")
        body = (await response.aread()).decode()
    assert response.headers["content-type"].startswith("text/event-stream")
    frames = [frame for frame in body.split("\n\n") if "data:" in frame]
    assert all(frame.startswith("id: ") for frame in frames)
    assert '"run.accepted"' in frames[0]
    assert '"run.completed"' in frames[-1]


async def test_text_and_ndjson_tell_the_same_run(home: House) -> None:
    run = await home.begin()
    await home.worker.answers(run, "good ", "day")
    text = await home.client.get(f"/v1/runs/{run}/events", headers={"accept": "text/plain"})
    assert text.text == "good day"
    lines = await home.client.get(f"/v1/runs/{run}/events?dialect=ndjson")
    events = [json.loads(line) for line in lines.text.splitlines()]
    assert "".join(e["text"] for e in events if e["type"] == "text.delta") == "good day"
    assert all("id" in event for event in events)


async def test_prefer_wait_gives_the_whole_result(home: House) -> None:
    asking = asyncio.create_task(
        home.client.post("/v1/runs", json=ASK, headers={"prefer": "wait=10", "idempotency-key": "w"})
    )
    run = await same_run(home, "w")
    await home.worker.says(run, *words("good day"), Data("outputs", {"a": 1}), Usage(3, 4, 7))
    await home.worker.ends(run, RunCompleted("stop", outputs={"a": 1}))
    answer = await asking
    assert answer.status_code == 200
    assert answer.json()["text"] == "good day"
    assert answer.json()["outputs"] == {"a": 1}
    assert answer.json()["usage"]["total_tokens"] == 7
    assert answer.headers["location"] == f"/v1/runs/{run}"


async def test_prefer_wait_gives_up_in_time(home: House) -> None:
    answer = await home.client.post("/v1/runs", json=ASK, headers={"prefer": "wait=0"})
    assert answer.status_code == 202
    assert answer.json()["status"] == "queued"


async def test_a_failed_run_is_a_result_too(home: House) -> None:
    run = await home.begin()
    await home.worker.says(run)
    await home.worker.ends(run, RunFailed("agent_error", "no"))
    body = (await home.client.get(f"/v1/runs/{run}")).json()
    assert body["status"] == "failed"
    assert body["error"]["code"] == "agent_error"


async def test_looking_at_a_run_shows_it_as_far_as_it_has_come(home: House) -> None:
    run = await home.begin(conversation="c1")
    cursors = await home.worker.says(run, *words("good ")[:2])
    body = (await home.client.get(f"/v1/runs/{run}")).json()
    assert body["status"] == "running"
    assert body["text"] == "good "
    assert body["last_event_id"] == str(cursors[-1])
    assert body["conversation"] == "c1"
    assert body["viewers"] == 0


async def test_runs_are_listed_newest_first_and_filtered(home: House) -> None:
    first, second = await home.begin(), await home.begin(agent="flow")
    await home.worker.answers(first, "x")
    every = (await home.client.get("/v1/runs")).json()["runs"]
    assert {run["id"] for run in every} == {first, second}
    ended = (await home.client.get("/v1/runs?state=completed")).json()["runs"]
    assert [run["id"] for run in ended] == [first]
    flows = (await home.client.get("/v1/runs?agent=flow")).json()["runs"]
    assert [run["id"] for run in flows] == [second]
    assert len((await home.client.get("/v1/runs?limit=1")).json()["runs"]) == 1
    refused = await home.client.get("/v1/runs?limit=0")
    assert (refused.status_code, refused.json()["field"]) == (422, "limit")


async def test_stopping_ends_the_run_for_everybody_and_once(home: House) -> None:
    run = await home.begin()
    stopped = await home.client.post(f"/v1/runs/{run}/stop")
    assert (stopped.status_code, stopped.json()["status"]) == (202, "stopped")
    again = await home.client.post(f"/v1/runs/{run}/stop", json={})
    assert (again.status_code, again.json()["status"]) == (200, "stopped")
    viewer = Viewer()
    await viewer.watch(home.client, f"/v1/runs/{run}/events")
    assert viewer.types[-1] == "run.stopped"


async def test_an_erased_run_leaves_nothing_but_its_name(home: House) -> None:
    run = await home.begin()
    await home.worker.says(run, *words("secret"))
    assert (await home.client.delete(f"/v1/runs/{run}")).status_code == 204
    for path in ("", "/events"):
        assert (await home.client.get(f"/v1/runs/{run}{path}")).status_code == 410
    assert (await home.client.get("/v1/runs")).json() == {"runs": []}


async def test_resuming_goes_on_behind_the_cursor_and_the_header_wins(home: House) -> None:
    run = await home.begin()
    await home.worker.answers(run, *"abcdef")
    url = f"/v1/runs/{run}/events?errors=status"
    whole = Viewer()
    await whole.watch(home.client, url)
    for place, frame in enumerate(whole.frames[:-1]):
        rest = Viewer(cursor=frame.id)
        await rest.watch(home.client, f"{url}&last_event_id=0-1")
        assert rest.frames == whole.frames[place + 1 :]
        assert rest.headers["stream-resumed-from"] == frame.id
    answer = await home.client.get(f"{url}&last_event_id={whole.frames[-1].id}", headers=SSE)
    assert answer.status_code == 204


async def test_the_cursor_of_a_run_that_is_gone_is_answered_with_204_everywhere(home: House) -> None:
    for run in (await home.begin(), "f" * 32, "nonsense"):
        answer = await home.client.get(
            f"/v1/runs/{run}/events", headers={**SSE, "last-event-id": "18446744073709551615-0"}
        )
        assert answer.status_code == 204


async def test_no_cursor_is_an_error_and_none_hangs(home: House) -> None:
    run = await home.begin()
    await home.worker.answers(run, "good day")
    chance = random.Random(20261122)
    cursors = ["-1", "$", "+", "0", "01-1", "1-01", "0-0", "1-1", f"{2**64}-0", "1-1.x", "é", "0-99"]
    cursors += ["".join(chance.choices("0123456789-.$+* ", k=chance.randint(1, 40))) for _ in range(50)]
    for text in cursors:
        answer = await home.client.get(f"/v1/runs/{run}/events", params={"last_event_id": text}, headers=SSE)
        assert answer.status_code == 200, text
        assert '"run.completed"' in answer.text, text


async def test_an_event_source_is_told_that_a_run_is_gone_and_others_get_a_status(home: House) -> None:
    told = await home.client.get(f"/v1/runs/{'a' * 32}/events", headers=SSE)
    assert told.status_code == 200
    assert '"code":"gone"' in told.text
    assert "id: 18446744073709551615-0" in told.text
    plain = await home.client.get(f"/v1/runs/{'a' * 32}/events?errors=status", headers=SSE)
    assert (plain.status_code, plain.json()["code"]) == (404, "unknown_run")


async def test_a_stream_that_was_deleted_is_gone_and_its_run_is_not_unknown(home: House) -> None:
    run = await home.begin()
    await home.broker.call("DEL", keys.stream(run))
    for path in ("", "/events"):
        answer = await home.client.get(f"/v1/runs/{run}{path}")
        assert (answer.status_code, answer.json()["code"]) == (410, "gone")
    told = await home.client.get(f"/v1/runs/{run}/events", headers=SSE)
    assert '"code":"gone"' in told.text


async def test_a_client_that_leaves_a_waiting_call_is_no_viewer_any_more(home: House) -> None:
    asking = asyncio.create_task(
        home.client.post("/v1/runs", json=ASK, headers={"prefer": "wait=60", "idempotency-key": "w"})
    )
    run = await same_run(home, "w")

    async def viewers() -> int:
        return int((await home.client.get(f"/v1/runs/{run}")).json()["viewers"])

    async def watched() -> bool:
        return await viewers() == 1

    async def left() -> bool:
        return await viewers() == 0

    await eventually(watched, description="the call watches its run")
    asking.cancel()
    await eventually(left, description="its client has gone")


async def test_events_can_be_unnamed_and_dialects_are_known_by_name(home: House) -> None:
    run = await home.begin()
    await home.worker.answers(run, "x")
    plain = await home.client.get(f"/v1/runs/{run}/events?named=0")
    assert "event:" not in plain.text
    refused = await home.client.get(f"/v1/runs/{run}/events?dialect=morse")
    assert (refused.status_code, refused.json()["field"]) == (400, "dialect")
    refused = await home.client.get(f"/v1/runs/{run}/events", headers={"accept": "image/png"})
    assert refused.status_code == 406


async def test_fifty_parallel_posts_with_one_key_are_one_run(home: House) -> None:
    headers = {**JSON, "idempotency-key": "k"}
    answers = await asyncio.gather(
        *(home.client.post("/v1/runs", json=ASK, headers=headers) for _ in range(50))
    )
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert await home.broker.call("ZCARD", "bff:queue") == 1


async def test_a_key_with_another_body_is_refused_and_an_erased_run_is_gone(home: House) -> None:
    headers = {**JSON, "idempotency-key": "k"}
    run = (await home.client.post("/v1/runs", json=ASK, headers=headers)).json()["id"]
    other = await home.client.post("/v1/runs", json={**ASK, "input": "else"}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")
    await home.client.delete(f"/v1/runs/{run}")
    gone = await home.client.post("/v1/runs", json=ASK, headers=headers)
    assert (gone.status_code, gone.json()["code"]) == (410, "erased")


async def test_a_repeated_post_goes_on_from_the_cursor(home: House) -> None:
    headers = {**SSE, "idempotency-key": "k"}
    first = Viewer()
    watching = asyncio.create_task(
        first.watch(home.client, "/v1/runs", method="POST", json=ASK, headers=headers, until="text.delta")
    )
    run = await same_run(home, "k")
    await home.worker.answers(run, "good ", "day")
    await watching
    await first.watch(home.client, "/v1/runs", method="POST", json=ASK, headers=headers)
    assert first.text == "good day"
    assert first.resets == []


async def test_a_full_queue_is_said_with_a_time_to_come_back(redis_server: RedisServer) -> None:
    async with house(redis_server.url, max_queue=2) as home:
        headers = {**JSON, "idempotency-key": "k"}
        await home.client.post("/v1/runs", json=ASK, headers=headers)
        second = await home.begin()
        full = await home.client.post("/v1/runs", json=ASK)
        assert (full.status_code, full.json()["code"]) == (429, "queue_full")
        assert int(full.headers["retry-after"]) > 0
        assert (await home.client.post("/v1/runs", json=ASK, headers=headers)).status_code == 201
        assert len((await home.client.get("/v1/runs")).json()["runs"]) == 2
        viewer = Viewer()
        await viewer.watch(home.client, f"/v1/runs/{second}/events", until="run.queued")
        assert viewer.frames[-1].data["position"] == 1


async def test_without_redis_requests_are_refused_for_the_moment(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        async with house(server.url) as home:
            run = await home.begin()
            server.kill()
            refused = await home.client.post("/v1/runs", json=ASK)
            assert (refused.status_code, refused.json()["code"]) == (503, "broker_unavailable")
            assert "retry-after" in refused.headers
            ready = await home.client.get("/readyz")
            assert ready.status_code == 503
            assert "redis" in ready.json()["missing"]
            assert (await home.client.get("/healthz")).status_code == 200
            later = await home.client.get(f"/v1/runs/{run}/events", headers=SSE)
            assert later.status_code == 200
            assert later.text.startswith("retry: ")
            status = await home.client.get(f"/v1/runs/{run}/events?errors=status", headers=SSE)
            assert status.status_code == 503


async def test_what_is_decided_at_admission_is_stored(home: House) -> None:
    async def stored(**body: object) -> dict[str, str]:
        return (await home.log.meta([await home.begin(**body)]))[0]  # type: ignore[arg-type]

    plain = await stored()
    assert (plain["on_disconnect"], plain["on_interrupt"], plain["repeatable"]) == ("continue", "fail", "1")
    assert "linger_ms" not in plain
    lingering = await stored(agent="restarted")
    assert (lingering["on_disconnect"], lingering["linger_ms"]) == ("linger", "7000")
    assert (lingering["on_interrupt"], lingering["repeatable"]) == ("restart", "0")
    cancelled = await stored(agent="restarted", on_disconnect="cancel", conversation="c")
    assert (cancelled["linger_ms"], cancelled["conversation"], cancelled["dialect"]) == ("2000", "c", "json")
    async with home.client.stream(
        "POST", "/v1/runs", json={**ASK, "agent": "restarted"}, headers={"accept": "text/plain"}
    ) as response:
        as_text = (await home.log.meta([response.headers["x-run-id"]]))[0]
    assert as_text["on_interrupt"] == "fail"


async def test_the_agents_own_conversation_is_looked_up_and_cannot_be_claimed(home: House) -> None:
    await home.broker.call("SET", conversation_key("c1"), "dify-7", "EX", 60)
    known = await home.begin(conversation="c1")
    forged = await home.begin(metadata={"agent_conversation": "somebody-elses", "conversation": "c2"})
    assert (await request_of(home, known))["metadata"] == {"agent_conversation": "dify-7"}
    assert (await request_of(home, forged))["metadata"] == {"conversation": "c2"}
    assert (await request_of(home, forged))["conversation"] == "c2"


async def test_who_can_be_asked_and_why_not(home: House) -> None:
    agents = {agent["name"]: agent for agent in (await home.client.get("/v1/agents")).json()["agents"]}
    assert list(agents) == ["writer", "restarted", "flow", "absent"]
    assert agents["writer"]["description"] == "writes"
    assert agents["flow"]["dialect"] == "dify-workflow"
    assert not agents["absent"]["available"]
    assert "NOT_SET_ANYWHERE" in agents["absent"]["reason"]
    refused = await home.client.post("/v1/runs", json={**ASK, "agent": "absent"})
    assert (refused.status_code, refused.json()["code"]) == (503, "agent_unavailable")
    assert "NOT_SET_ANYWHERE" in refused.json()["detail"]
    unknown = await home.client.post("/v1/runs", json={**ASK, "agent": "nobody"})
    assert (unknown.status_code, unknown.json()["code"]) == (404, "unknown_agent")
    assert "writer, restarted, flow, absent" in unknown.json()["detail"]


async def test_every_refusal_is_a_problem_and_the_api_describes_itself(home: House) -> None:
    for answer, status in (
        (await home.client.get("/nowhere"), 404),
        (await home.client.put("/v1/runs", json={}), 405),
        (await home.client.get("/v1/runs?state=odd"), 422),
    ):
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["status"] == status
    assert (await home.client.get("/docs")).status_code == 200
    described = (await home.client.get("/openapi.json")).json()
    body = described["paths"]["/v1/runs"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert "input" in body["properties"]
    text = json.dumps(described)
    named = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert named <= set(described["components"]["schemas"])
    assert "<text>" not in text


async def same_run(home: House, key: str) -> str:
    """The id of the run that an idempotency key stands for."""
    answer = await home.client.post("/v1/runs", json=ASK, headers={**JSON, "idempotency-key": key})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def request_of(home: House, run: str) -> dict[str, Any]:
    """What the agent will be given."""
    stored = await home.broker.call("GET", f"bff:{{{run}}}:r")
    found: dict[str, Any] = json.loads(stored)
    found.setdefault("metadata", {})
    return found


def conversation_key(conversation: str) -> str:
    return keys.conversation("local", "writer", conversation)
