"""Every command in README.md does what stands there, against a running `bff dev`."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.procs import ROOT, Child, python
from tests.support.redis_server import free_port

README = (ROOT / "README.md").read_text("utf-8")
BLOCKS: list[tuple[str, str]] = re.findall(r"^```([a-z]+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
COMMANDS = [line for language, text in BLOCKS if language == "sh" for line in text.splitlines()]
SHOWN = {text.strip(): answer for (_, text), (_, answer) in itertools.pairwise(BLOCKS)}
ADDRESS = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A `bff dev` of its own."""
    directory, port = tmp_path_factory.mktemp("dev"), free_port()
    unset = dict.fromkeys(("OPENAI_API_KEY", "DIFY_URL", "BFF_REDIS_URL", "BFF_SECRET", "BFF_API_KEY"), "")
    env = {**unset, "BFF_HOST": "127.0.0.1", "BFF_PORT": str(port), "TMPDIR": str(directory)}
    with Child(python("cli.main", "dev"), directory / "dev.log", env=env) as dev:
        dev.wait_for_log("Ctrl-C ends everything", 30)
        yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("make ")])
def test_make_targets_exist(command: str) -> None:
    done = subprocess.run(["make", "--dry-run", command.split()[1]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [line for line in COMMANDS if not line.startswith("make ")])
def test_command_runs(url: str, command: str) -> None:
    assert _run(url, command)


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("curl ")])
def test_answer_is_the_one_shown(url: str, command: str) -> None:
    assert _without_ids(_run(url, command)) == _without_ids(SHOWN[command])


@pytest.mark.parametrize("program", [text for language, text in BLOCKS if language == "python"])
def test_program_runs(url: str, program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", program.replace(ADDRESS, url)],
        env={**os.environ, "NO_PROXY": "*"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "How many days?" in done.stdout, done.stderr


def _run(url: str, command: str) -> str:
    """What the command prints, sent to this gateway."""
    bff = f"{shlex.quote(sys.executable)} -m cli.main "
    done = subprocess.run(
        ["sh", "-c", command.replace(ADDRESS, url).replace(".venv/bin/bff ", bff)],
        cwd=ROOT,
        env={**os.environ, "BFF_URL": url, "NO_PROXY": "*", "BFF_API_KEY": ""},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _without_ids(output: str) -> list[object]:
    """The lines without what differs from run to run; objects whatever the order of their fields."""
    output = re.sub(r"\b[0-9]{13}\b", "<attempt>", output)
    output = re.sub(r"\b([0-9a-f]{32}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})\b", "<id>", output)
    lines = output.replace('"attempt":<attempt>', '"attempt":0').strip().splitlines()
    return [json.loads(line) if line.startswith("{") else line for line in lines]
