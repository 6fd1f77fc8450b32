"""The deployment file: what must hold for every service, whoever edits it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from shared import config

ROOT = Path(__file__).resolve().parent.parent
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
ours = pytest.mark.parametrize("name", ["gateway", "worker"])
every = pytest.mark.parametrize("name", sorted(SERVICES))


def test_the_services_are_redis_gateway_and_worker() -> None:
    """Three services, and nothing that only a demo needs."""
    assert set(SERVICES) == {"redis", "gateway", "worker"}


@every
def test_a_service_cannot_write_or_gain_rights(name: str) -> None:
    """Read-only root, no capabilities, no new privileges, not root."""
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["user"].split(":")[0] not in ("", "0", "root")
    assert not service.get("privileged")


@every
def test_a_service_tells_its_health(name: str) -> None:
    """A health check with a limit on its time."""
    check = SERVICES[name]["healthcheck"]
    assert check["test"][0] in ("CMD", "CMD-SHELL")
    assert {"interval", "timeout", "retries"} <= set(check)


@every
def test_a_service_cannot_use_up_the_machine(name: str) -> None:
    """A limit on memory and on processes."""
    assert {"mem_limit", "pids_limit"} <= set(SERVICES[name])


@every
def test_a_service_can_be_scaled(name: str) -> None:
    """No fixed name, and no single host port that two containers would fight for."""
    assert "container_name" not in SERVICES[name]
    for port in SERVICES[name].get("ports", []):
        host = port.rpartition(":")[0]
        assert "-" in host.rpartition(":")[2], f"{port} is one port"


def test_redis_keeps_what_it_was_told() -> None:
    """Append-only file on a volume, noeviction with a limit, reached by our services only."""
    redis = SERVICES["redis"]
    command = " ".join(redis["command"])
    assert "--appendonly yes" in command
    assert "--maxmemory-policy noeviction" in command
    assert "--maxmemory " in command
    assert redis["volumes"] == ["redis-data:/data"]
    assert "redis-data" in COMPOSE["volumes"]
    assert "ports" not in redis
    assert redis["networks"] == ["store"]
    assert COMPOSE["networks"]["store"]["internal"] is True


def test_redis_password_is_no_argument_of_a_process() -> None:
    """It goes in by standard input; the arguments of a process can be read by others."""
    arguments, _, standard_input = SERVICES["redis"]["command"][-1].partition("<<END")
    assert "REDIS_PASSWORD" not in arguments
    assert "requirepass $$REDIS_PASSWORD" in standard_input


def test_no_secret_has_a_default() -> None:
    """Without `.env` compose refuses to start."""
    for service, variable in (
        ("redis", "REDIS_PASSWORD"),
        ("gateway", "BFF_SECRET"),
        ("worker", "BFF_SECRET"),
    ):
        assert SERVICES[service]["environment"][variable].startswith("${" + variable + ":?")
    for service in ("gateway", "worker"):
        assert "${REDIS_PASSWORD:?" in SERVICES[service]["environment"]["BFF_REDIS_URL"]


@ours
def test_our_services_wait_for_redis_and_share_one_image(name: str) -> None:
    """They start when Redis is healthy."""
    assert SERVICES[name]["depends_on"]["redis"]["condition"] == "service_healthy"
    assert SERVICES[name]["image"] == SERVICES["gateway"]["image"]
    assert SERVICES[name]["command"] == [name]


def test_a_worker_may_finish_its_runs() -> None:
    """The grace time is longer than the longest run by default."""
    minutes = int(SERVICES["worker"]["stop_grace_period"].removesuffix("m"))
    assert minutes * 60 > config.Timeouts().run


def test_the_image_does_not_run_as_root_and_installs_by_hash() -> None:
    """The last stage names a numeric user; every package comes from a lock file."""
    text = (ROOT / "Dockerfile").read_text("utf-8")
    last_stage = text.rpartition("\nFROM ")[2]
    assert "\nUSER 10001:10001\n" in last_stage
    assert text.count("--require-hashes") == 2


def test_made_secrets_are_new_private_and_not_overwritten(tmp_path: Path) -> None:
    """`make compose-env` twice: the second time it refuses, and two folders share nothing."""
    first, second = _made(tmp_path / "first"), _made(tmp_path / "second")
    assert not set(first.values()) & set(second.values())
    assert (tmp_path / "first" / ".env").stat().st_mode & 0o777 == 0o600
    assert _compose_env(tmp_path / "first").returncode == 1


def test_the_made_configuration_knows_the_made_key(tmp_path: Path) -> None:
    """The client's key id is in agents.compose.yaml, its secret is not."""
    env = _made(tmp_path / "made")
    _, key_id, secret = env["BFF_API_KEY"].split("_", 2)
    path = tmp_path / "made" / "agents.compose.yaml"
    assert [key.id for key in config.load(path, {}).clients["compose"].keys] == [key_id]
    assert secret not in path.read_text("utf-8")


def _made(folder: Path) -> dict[str, str]:
    """Run the script in a fresh folder; what `.env` says."""
    folder.mkdir()
    (folder / "agents.yaml").write_bytes((ROOT / "agents.yaml").read_bytes())
    done = _compose_env(folder)
    assert done.returncode == 0, done.stderr
    lines = (folder / ".env").read_text("utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines)


def _compose_env(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "compose_env.py")]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60)
