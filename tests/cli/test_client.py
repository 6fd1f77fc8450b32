"""The CLI's client: one stream over any number of connections, and refusals in plain words."""

from __future__ import annotations

import pytest

from cli import client as client_module
from cli.client import Address, GatewayClient, GatewayRefused, GatewayUnreachable, NativeEvent
from tests.cli.fake_gateway import FakeGateway, event, hang_up, json, refusal, serving, stream
from tests.support.redis_server import free_port

HELLO = event("5-1", "text.delta", block="t1", text="Hel")
LO = event("5-2", "text.delta", block="t1", text="lo")
END = event("5-3", "run.completed", finish_reason="stop")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_FIRST_PAUSE", 0.01)


async def collected(
    gateway: FakeGateway, cursor: str | None = None, heartbeat: float = 5.0, said: list[str] | None = None
) -> list[NativeEvent]:
    notes: list[str] = [] if said is None else said
    async with GatewayClient(Address(gateway.url, heartbeat=heartbeat), notes.append) as client:
        return [event async for event in client.events("r1", cursor)]


async def test_stream_ends_with_its_terminal_event() -> None:
    async with serving(stream(HELLO, LO, END, then="silence")) as gateway:
        events = await collected(gateway)
    assert [event.type for event in events] == ["text.delta", "text.delta", "run.completed"]
    assert events[0] == NativeEvent("5-1", "text.delta", {"block": "t1", "text": "Hel"})


@pytest.mark.parametrize("then", ["end", "reset"])
async def test_broken_stream_goes_on_behind_the_last_event(then: str) -> None:
    said: list[str] = []
    async with serving(stream(HELLO, LO[:20], then=then), stream(LO, END)) as gateway:
        events = await collected(gateway, said=said)
    assert [event.id for event in events] == ["5-1", "5-2", "5-3"]
    assert "last-event-id" not in gateway.requests[0].headers
    assert gateway.requests[1].headers["last-event-id"] == "5-1"
    assert "resuming" in said[0]


async def test_silence_beyond_two_and_a_half_heartbeats_counts_as_broken() -> None:
    async with serving(stream(HELLO, then="silence"), stream(LO, END)) as gateway:
        events = await collected(gateway, heartbeat=0.05)
    assert [event.id for event in events] == ["5-1", "5-2", "5-3"]


async def test_gateway_that_is_away_for_a_moment_is_tried_again() -> None:
    async with serving(refusal(503, "no broker"), stream(HELLO, END)) as gateway:
        events = await collected(gateway)
    assert len(events) == 2


async def test_retry_of_the_server_is_the_first_pause() -> None:
    said: list[str] = []
    async with serving(stream(b"retry: 400\n\n", HELLO), stream(END)) as gateway:
        await collected(gateway, said=said)
    pause = float(said[0].partition(" in ")[2].split()[0])
    assert 0.2 <= pause <= 0.6


async def test_given_cursor_is_sent() -> None:
    async with serving(stream(END)) as gateway:
        await collected(gateway, cursor="5-2")
    assert gateway.requests[0].headers["last-event-id"] == "5-2"


async def test_reset_does_not_move_the_cursor() -> None:
    reset = b'event: reset\ndata: {"type":"reset","reason":"attempt"}\n\n'
    async with serving(stream(HELLO, reset), stream(END)) as gateway:
        events = await collected(gateway)
    assert events[1] == NativeEvent(None, "reset", {"reason": "attempt"})
    assert gateway.requests[1].headers["last-event-id"] == "5-1"


async def test_cursor_at_the_end_gives_nothing() -> None:
    async with serving(refusal(204)) as gateway:
        assert await collected(gateway, cursor="5-3") == []


@pytest.mark.parametrize("status", [401, 403, 404, 410])
async def test_refusal_says_what_the_gateway_says(status: int) -> None:
    async with serving(refusal(status, "there is no such run")) as gateway:
        with pytest.raises(GatewayRefused, match="there is no such run") as caught:
            await collected(gateway)
    assert caught.value.status == status


async def test_missing_key_is_answered_with_its_remedy() -> None:
    async with serving(refusal(401, "send a key")) as gateway:
        with pytest.raises(GatewayRefused, match="BFF_API_KEY"):
            await collected(gateway)


async def test_it_gives_up_in_the_end_and_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_PATIENCE_SECONDS", 0.05)
    async with serving(stream(HELLO), stream()) as gateway:
        with pytest.raises(GatewayUnreachable, match="bff tail r1 --from 5-1"):
            await collected(gateway)


async def test_lost_answer_to_a_start_is_asked_for_again_under_the_same_key() -> None:
    async with (
        serving(hang_up, json({"id": "r7"}, 201)) as gateway,
        GatewayClient(Address(gateway.url)) as client,
    ):
        assert await client.start("assistant", "Hello") == "r7"
    first, second = gateway.requests
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]
    assert first.body == second.body == b'{"agent":"assistant","input":"Hello"}'


async def test_key_is_sent_and_never_shown() -> None:
    address = Address.from_env({"BFF_URL": "http://127.0.0.1:1/", "BFF_API_KEY": "bff_x_canary"})
    assert "canary" not in repr(address)
    async with (
        serving(json({"agents": []})) as gateway,
        GatewayClient(Address(gateway.url, address.key)) as client,
    ):
        assert await client.agents() == []
    assert gateway.requests[0].headers["authorization"] == "Bearer bff_x_canary"


async def test_no_gateway_is_a_sentence() -> None:
    async with GatewayClient(Address(f"http://127.0.0.1:{free_port()}")) as client:
        with pytest.raises(GatewayUnreachable, match=r"no gateway answers at .*bff dev"):
            await client.agents()


@pytest.mark.parametrize("url", ["nonsense", "http://[::1", "ftp://127.0.0.1"])
async def test_address_that_is_none_is_a_sentence(url: str) -> None:
    with pytest.raises(GatewayUnreachable):
        async with GatewayClient(Address(url)) as client:
            await client.agents()


async def test_something_else_at_the_address_is_a_sentence() -> None:
    async with serving(json(["not", "ours"])) as gateway, GatewayClient(Address(gateway.url)) as client:
        with pytest.raises(GatewayUnreachable, match="not a Streaming BFF"):
            await client.agents()
