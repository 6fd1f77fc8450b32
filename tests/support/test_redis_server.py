"""Redis servers for tests come back where they were, with what they were told to keep."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis

from tests.support.keys import keys_without_lifetime, prompts_of_ended_runs
from tests.support.redis_server import RedisServer


def test_with_append_only_file_a_kill_loses_nothing(tmp_path: Path) -> None:
    with RedisServer(tmp_path, appendonly=True) as server, server.client() as client:
        client.set("kept", 1)
        port = server.port
        server.restart()
        assert (server.port, client.get("kept")) == (port, "1")


def test_without_it_a_restart_is_empty(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server, server.client() as client:
        client.set("lost", 1)
        server.stop()
        server.start()
        assert client.get("lost") is None


def test_a_paused_server_does_not_answer(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server, redis.Redis.from_url(server.url, socket_timeout=0.05) as client:
        client.ping()
        server.pause()
        with pytest.raises(redis.TimeoutError):
            client.ping()
        server.resume()


def test_a_password_is_in_the_url(tmp_path: Path) -> None:
    with RedisServer(tmp_path, password="pepper", maxmemory=50_000_000) as server, server.client() as client:
        assert client.config_get("maxmemory")["maxmemory"] == "50000000"
        with redis.Redis(port=server.port) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()


def test_keys_without_lifetime_are_found(redis_server: RedisServer) -> None:
    with redis_server.client() as client:
        client.set("short", 1, ex=100)
        client.zadd("bff:open", {"run": 1})
        assert keys_without_lifetime(client) == []
        client.set("for ever", 1)
        assert keys_without_lifetime(client) == ["for ever"]


def test_prompts_of_ended_runs_are_found(redis_server: RedisServer) -> None:
    with redis_server.client() as client:
        for run in ("ended", "running"):
            client.set(f"bff:{{{run}}}:r", "a prompt")
            client.hset(f"bff:{{{run}}}:m", "accepted", "1")
        client.hset("bff:{ended}:m", "end", "5-9")
        assert prompts_of_ended_runs(client) == ["bff:{ended}:r"]
