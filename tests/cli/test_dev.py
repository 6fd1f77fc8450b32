"""`bff dev`, for real: it starts in time, every shipped agent answers, and nothing is left behind."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from cli.banner import curl
from cli.dev import address, child_env, claim_port
from shared.errors import ConfigError
from tests.support.procs import ROOT, Child, python
from tests.support.redis_server import free_port
from tests.support.wait import wait_until

AGENTS = (
    *("assistant", "thinker", "copywriter", "helpdesk", "planner"),
    *("offices", "tickets", "handbook", "greeter"),
)
UNSET = dict.fromkeys(("OPENAI_API_KEY", "DIFY_URL", "BFF_API_KEY", "BFF_SECRET", "BFF_REDIS_URL"), "")


READY_SECONDS = 10
"""What a newcomer may have to wait; three times as much on a busy machine."""


class Dev:
    """A running `bff dev` on a free port."""

    def __init__(self, directory: Path, **env: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        env = {**UNSET, "BFF_HOST": "127.0.0.1", "BFF_PORT": str(self.port), "TMPDIR": str(directory), **env}
        self.child = Child(python("cli.main", "dev"), directory / "dev.log", env=env)

    def ready(self) -> None:
        self.child.wait_for_log("Ctrl-C ends everything", 3 * READY_SECONDS)

    def descendants(self) -> set[int]:
        """The processes below it."""
        return set(_below(self.child.pid))


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    dev = Dev(tmp_path_factory.mktemp("dev"))
    with dev.child:
        dev.ready()
        yield dev


@pytest.mark.parametrize("agent", AGENTS)
def test_every_shipped_agent_is_ready_to_be_asked(dev: Dev, agent: str) -> None:
    done = bff("chat", agent, "What about Tuesday?", url=dev.url)
    assert done.returncode == 0, done.stderr
    assert "What about Tuesday?" in done.stdout + done.stderr


def test_all_agents_are_listed(dev: Dev) -> None:
    done = bff("agents", url=dev.url)
    assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == list(AGENTS)
    assert {line.split()[2] for line in done.stdout.splitlines()[1:]} == {"yes"}


def test_printed_curl_line_works_when_pasted(dev: Dev) -> None:
    line = next(line.strip() for line in dev.child.log.splitlines() if line.strip().startswith("curl -N"))
    done = subprocess.run(
        ["sh", "-c", f"{line} --silent --noproxy '*'"], capture_output=True, text=True, timeout=30
    )
    assert done.stdout.rstrip().splitlines()[-1].startswith('data: {"type":"run.completed"')


def test_tail_shows_a_run_again(dev: Dev) -> None:
    answer = httpx.post(f"{dev.url}/v1/runs", json={"agent": "greeter", "input": "again"}, trust_env=False)
    done = bff("tail", answer.json()["id"], url=dev.url)
    assert done.stdout == "Hello from a Python function. You said: again\n"


def test_run_that_ended_cannot_be_stopped_any_more(dev: Dev) -> None:
    answer = httpx.post(
        f"{dev.url}/v1/runs",
        json={"agent": "greeter", "input": "x"},
        headers={"prefer": "wait=10"},
        trust_env=False,
        timeout=20,
    )
    done = bff("stop", answer.json()["id"], url=dev.url)
    assert (done.returncode, done.stdout.split()[-1]) == (0, "completed")


def test_output_is_quiet_and_has_no_key(dev: Dev) -> None:
    assert "INFO" not in dev.child.log
    assert "broker:" in dev.child.log


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_ends_all(tmp_path: Path, number: signal.Signals) -> None:
    dev = Dev(tmp_path)
    with dev.child:
        dev.ready()
        below = dev.descendants()
        assert len(below) >= 3
        dev.child.process.send_signal(number)
        assert dev.child.process.wait(15) == 0
    assert not _alive(below)
    assert [path.name for path in tmp_path.iterdir()] == ["dev.log"]


def test_nothing_survives_when_it_is_killed(tmp_path: Path) -> None:
    dev = Dev(tmp_path)
    with dev.child:
        dev.ready()
        below = dev.descendants()
        dev.child.kill()
        wait_until(lambda: not _alive(below), 10, "all its processes are gone")


def test_ctrl_c_in_chat_stops_the_run(tmp_path: Path) -> None:
    file = tmp_path / "slow.yaml"
    file.write_text(
        "agents:\n  slow: {dialect: openai-chat, url: '${BFF_SCRIPTED_URL}/s/long/openai/v1',"
        " api_key: '${BFF_SCRIPTED_KEY}', model: m}\n"
    )
    dev = Dev(tmp_path, BFF_CONFIG=str(file))
    chat = Child(
        python("cli.main", "chat", "slow", "Hello", "--json"), tmp_path / "chat.log", env={"BFF_URL": dev.url}
    )
    with dev.child:
        dev.ready()
        with chat:
            chat.wait_for_log("text.delta")
            chat.process.send_signal(signal.SIGINT)
            assert chat.process.wait(15) == 130
        (run,) = httpx.get(f"{dev.url}/v1/runs", trust_env=False).json()["runs"]
        assert run["status"] == "stopped"


PARTS = {"worker": "cli.main worker", "gateway": "cli.main gateway", "broker": "-server"}


@pytest.mark.parametrize("name", PARTS)
def test_death_of_a_part_is_told_and_ends_all(tmp_path: Path, name: str) -> None:
    dev = Dev(tmp_path)
    with dev.child:
        dev.ready()
        below = dev.descendants()
        os.kill(next(pid for pid in below if PARTS[name] in _command(pid)), signal.SIGKILL)
        assert dev.child.process.wait(15) == 1
        assert f"the {name} ended by itself" in dev.child.log
        logs = re.findall(r"full logs: (\S+)", dev.child.log)
        assert Path(logs[0], "worker.log").exists()
    assert not _alive(below)


def test_taken_port_is_named_with_its_variable(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        dev = Dev(tmp_path, BFF_PORT=str(port))
        with dev.child:
            assert dev.child.process.wait(15) == 1
    assert f"port {port} of 127.0.0.1 is taken" in dev.child.log
    assert "BFF_PORT" in dev.child.log
    assert "Traceback" not in dev.child.log


@pytest.mark.parametrize("url", ["redis://:canary@127.0.0.1:{port}/0", "redis://:canary@127.0.0.1:port/0"])
def test_redis_that_is_not_there_is_told_at_once(tmp_path: Path, url: str) -> None:
    dev = Dev(tmp_path, BFF_REDIS_URL=url.format(port=free_port()))
    with dev.child:
        assert dev.child.process.wait(15) == 1
    assert "BFF_REDIS_URL" in dev.child.log
    assert "Traceback" not in dev.child.log
    assert "canary" not in dev.child.log


def test_bad_configuration_is_told_before_anything_starts(tmp_path: Path) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text("agents:\n  a: {dialect: telepathy}\n")
    dev = Dev(tmp_path, BFF_CONFIG=str(file))
    with dev.child:
        assert dev.child.process.wait(15) == 1
    assert "broken.yaml:2" in dev.child.log
    assert "Traceback" not in dev.child.log


def test_without_an_account_services_are_played() -> None:
    told = child_env({}, "127.0.0.1", 8000, "redis://r", "http://played")
    assert told["OPENAI_BASE_URL"] == "http://played/openai/v1"
    assert told["DIFY_URL"] == "http://played/dify/v1"
    assert told["DIFY_CHAT_KEY"]


def test_with_an_account_the_real_service_is_asked() -> None:
    own = {"OPENAI_API_KEY": "k", "DIFY_URL": "https://dify", "DIFY_CHAT_KEY": "c", "BFF_SECRET": "s"}
    told = child_env(own, "127.0.0.1", 8000, "redis://r", "http://played")
    assert {name: told[name] for name in own} == own
    assert "OPENAI_BASE_URL" not in told
    assert "DIFY_WORKFLOW_KEY" not in told


def test_free_port_is_found_for_0() -> None:
    assert claim_port("127.0.0.1", 0) > 0


def test_host_that_is_not_ours_is_named_with_its_variable() -> None:
    with pytest.raises(ConfigError, match="BFF_HOST"):
        claim_port("192.0.2.1", 8000)


def test_address_is_one_that_can_be_reached() -> None:
    assert address("0.0.0.0", 80) == "http://127.0.0.1:80"
    assert address("::", 80) == "http://[::1]:80"
    assert address("127.0.0.2", 80) == "http://127.0.0.2:80"


def test_curl_line_has_a_key_only_where_one_is_needed() -> None:
    assert "$BFF_API_KEY" in curl("http://h", "a", with_key=True)
    assert "BFF_API_KEY" not in curl("http://h", "a", with_key=False)


def bff(*arguments: str, url: str) -> subprocess.CompletedProcess[str]:
    """A command against a gateway."""
    return subprocess.run(
        python("cli.main", *arguments),
        cwd=ROOT,
        env={**os.environ, **UNSET, "BFF_URL": url},
        capture_output=True,
        text=True,
        timeout=60,
    )


def _below(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            yield child
            yield from _below(child)


def _alive(pids: set[int]) -> set[int]:
    return {pid for pid in pids if _state(pid) not in ("", "Z")}


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
