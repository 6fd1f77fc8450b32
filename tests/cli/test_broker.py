"""The broker of `bff dev`: the one that is told, else one of this machine, else the embedded one."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import redis

from cli import broker
from shared.errors import ConfigError
from tests.support.procs import Child
from tests.support.wait import wait_until


def test_an_address_that_is_told_is_used_as_it_is() -> None:
    with broker.open_broker({"BFF_REDIS_URL": "redis://:secret@host:1/0"}) as opened:
        assert opened.url == "redis://:secret@host:1/0"
        assert "redis://host:1/0" in opened.notice
        assert "secret" not in opened.notice


@pytest.mark.parametrize("path", [os.environ["PATH"], "/nowhere"], ids=["machine", "embedded"])
def test_a_server_of_our_own_runs_for_the_block(path: str) -> None:
    with broker.open_broker({"PATH": path}) as opened, redis.Redis.from_url(opened.url) as client:
        assert client.ping()
        assert client.config_get("port") == {"port": "0"}
        assert "keeps nothing" in opened.notice
        socket = Path(opened.url.removeprefix("unix://"))
        assert socket.parent.stat().st_mode & 0o077 == 0
    assert not socket.parent.exists()


def test_a_program_on_the_path_comes_before_the_embedded_one(tmp_path: Path) -> None:
    program = tmp_path / "valkey-server"
    program.touch(0o755)
    assert broker.find_server({"PATH": str(tmp_path)}).path == program
    assert broker.find_server({"PATH": "/nowhere"}).path.name == "valkey-server"


def test_without_any_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker, "_embedded", lambda: None)
    with pytest.raises(ConfigError, match="set BFF_REDIS_URL, install redis-server"):
        broker.find_server({"PATH": "/nowhere"})


def test_a_server_that_ends_is_reported(tmp_path: Path) -> None:
    program = tmp_path / "redis-server"
    program.write_text("#!/bin/sh\nexit 3\n")
    program.chmod(0o755)
    with pytest.raises(ConfigError, match="status 3"), broker.open_broker({"PATH": str(tmp_path)}):
        pass


def test_it_ends_with_its_parent_also_when_that_is_killed(tmp_path: Path) -> None:
    code = "from cli.broker import open_broker\nwith open_broker() as b: print(b.url, flush=True); input()"
    with Child(
        [sys.executable, "-c", f"import time; input = lambda: time.sleep(600)\n{code}"], tmp_path / "log"
    ) as parent:
        url = parent.wait_for_log("unix://")
        parent.kill()
        with redis.Redis.from_url(url) as client:

            def is_gone() -> bool:
                try:
                    return not client.ping()
                except redis.ConnectionError:
                    return True

            wait_until(is_gone)
    Path(url.removeprefix("unix://")).unlink(missing_ok=True)
    Path(url.removeprefix("unix://")).parent.rmdir()
