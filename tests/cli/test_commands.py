"""The commands as a person runs them: what they print, where, and with which exit code."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import anyio
import pytest
import yaml

from shared import config
from tests.cli.fake_gateway import FakeGateway, event, refusal, serving, stream
from tests.cli.fake_gateway import json as answers_json
from tests.support.procs import ROOT
from tests.support.redis_server import free_port
from tests.support.wait import eventually

COMMAND = [sys.executable, "-m", "cli.main"]
STARTED = answers_json({"id": "r1", "status": "queued"}, 201)
HELLO = event("5-1", "text.delta", block="t1", text="Hello")
END = event("5-2", "run.completed", finish_reason="stop")
FAILED = event("5-2", "run.failed", code="timeout", message="the agent kept silent")


async def run(*arguments: str, **env: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `bff`."""
    done = await anyio.run_process([*COMMAND, *arguments], check=False, cwd=ROOT, env={**os.environ, **env})
    return done.returncode, done.stdout.decode(), done.stderr.decode()


async def test_chat_prints_the_answer_and_exits_0() -> None:
    async with serving(STARTED, stream(HELLO, END)) as gateway:
        code, out, err = await run("chat", "assistant", "Hi", BFF_URL=gateway.url)
    assert (code, out, err) == (0, "Hello\n", "stop\n")
    assert json.loads(gateway.requests[0].body) == {"agent": "assistant", "input": "Hi"}


async def test_chat_takes_json_input_and_a_conversation() -> None:
    async with serving(STARTED, stream(END)) as gateway:
        arguments = ("chat", "planner", "--input", '{"city": "Berlin"}', "--conversation", "c1", "--json")
        code, out, _ = await run(*arguments, BFF_URL=gateway.url)
    assert code == 0
    assert json.loads(out) == {"type": "run.completed", "finish_reason": "stop", "id": "5-2"}
    body = {"agent": "planner", "input": {"city": "Berlin"}, "conversation": "c1"}
    assert json.loads(gateway.requests[0].body) == body


async def test_chat_resumes_by_itself_and_says_so() -> None:
    async with serving(STARTED, stream(HELLO), stream(END)) as gateway:
        code, out, err = await run("chat", "assistant", "Hi", BFF_URL=gateway.url)
    assert (code, out) == (0, "Hello\n")
    assert "resuming" in err


async def test_failed_run_exits_1_with_its_message() -> None:
    async with serving(STARTED, stream(HELLO, FAILED)) as gateway:
        code, out, err = await run("chat", "assistant", "Hi", BFF_URL=gateway.url)
    assert (code, out) == (1, "Hello\n")
    assert "the agent kept silent" in err


async def test_ctrl_c_stops_the_run_and_exits_130() -> None:
    stopped = answers_json({"id": "r1", "status": "stopped"}, 202)
    async with serving(STARTED, stream(HELLO, then="silence"), stopped) as gateway:
        code, out = await _interrupted(gateway, "chat", "assistant", "Hi")
    assert (code, out) == (130, "Hello\n")
    assert (gateway.requests[2].method, gateway.requests[2].path) == ("POST", "/v1/runs/r1/stop")


async def test_ctrl_c_in_tail_leaves_the_run_alone() -> None:
    async with serving(stream(HELLO, then="silence")) as gateway:
        code, _ = await _interrupted(gateway, "tail", "r1")
    assert code == 130
    assert len(gateway.requests) == 1


async def test_tail_begins_behind_a_cursor() -> None:
    async with serving(stream(END)) as gateway:
        code, _, _ = await run("tail", "r1", "--from", "5-1", BFF_URL=gateway.url)
    assert code == 0
    assert gateway.requests[0].headers["last-event-id"] == "5-1"


async def test_stop_tells_the_state() -> None:
    async with serving(answers_json({"id": "r1", "status": "stopped"}, 202)) as gateway:
        assert await run("stop", "r1", BFF_URL=gateway.url) == (0, "r1 stopped\n", "")


async def test_agents_are_a_table() -> None:
    entries = [
        {"name": "assistant", "dialect": "openai-chat", "available": True, "description": "a model"},
        {"name": "planner", "dialect": "dify-workflow", "available": False, "reason": "DIFY_URL is not set"},
    ]
    async with serving(answers_json({"agents": entries})) as gateway:
        code, out, _ = await run("agents", BFF_URL=gateway.url)
    assert code == 0
    assert out.splitlines() == [
        "AGENT      DIALECT        AVAILABLE  DESCRIPTION",
        "assistant  openai-chat    yes        a model",
        "planner    dify-workflow  no         DIFY_URL is not set",
    ]


@pytest.mark.parametrize("arguments", [("chat", "nobody", "Hi"), ("tail", "r1"), ("stop", "r1"), ("agents",)])
async def test_refusal_is_the_gateways_own_sentence(arguments: tuple[str, ...]) -> None:
    async with serving(refusal(404, "there is no such thing")) as gateway:
        result = await run(*arguments, BFF_URL=gateway.url)
    assert result == (1, "", "bff: there is no such thing\n")


@pytest.mark.parametrize("arguments", [("chat", "assistant", "Hi"), ("stop", "r1"), ("agents",)])
async def test_missing_gateway_is_a_sentence(arguments: tuple[str, ...]) -> None:
    code, out, err = await run(*arguments, BFF_URL=f"http://127.0.0.1:{free_port()}")
    assert (code, out) == (1, "")
    assert "no gateway answers" in err
    assert "Traceback" not in err


async def test_check_tells_what_is_unavailable_by_the_variables_name(tmp_path: Path) -> None:
    file = tmp_path / "agents.yaml"
    entry = "{dialect: openai-chat, url: 'http://127.0.0.1/v1', model: m, api_key: '${NOT_SET_HERE}'}"
    file.write_text(f"agents:\n  a: {entry}\n")
    code, out, _ = await run("check", str(file))
    assert code == 0
    assert "unavailable: a: the environment variable NOT_SET_HERE is not set" in out


MISTAKES = {
    "an address that is none": (
        "agents:\n  a:\n    dialect: openai-chat\n    url: nowhere\n    model: m\n",
        ":4:",
        "http",
    ),
    "an unknown dialect": ("agents:\n  a:\n    dialect: telepathy\n", ":2:", "telepathy"),
    "a name that stands twice": (
        "agents:\n  a: {function: 'cli.examples:greet'}\n  a: {function: 'cli.examples:greet'}\n",
        ":3:",
        "a is there twice",
    ),
    "not YAML": ("agents:\n  a: {dialect: function\n", ":3:", "not YAML"),
    "an unknown field of an agent that is unavailable": (
        "agents:\n  a: {dialect: rest, url: '${NOT_SET_HERE}', metod: GET}\n",
        ":2:",
        "metod",
    ),
    "a path that is none": (
        "agents:\n  a:\n    dialect: mapped\n    url: http://h/\n    end: [x]\n    events:\n"
        "      - {when: {event: a}, text: $.a}\n      - when: {event: b}\n        text: $.[\n",
        ":9: agents.a.events.1.text: ",
        "not a JSONPath",
    ),
    "an unknown template": (
        "agents:\n  a:\n    dialect: rest\n    url: http://h/\n"
        "    body:\n      all: ['{input}', '{promt}']\n",
        ":6: agents.a.body.all.1: ",
        "unknown placeholder {promt}; known are {input}",
    ),
    "a function that is not there": (
        "agents:\n  a:\n    function: cli.examples:nobody\n",
        ":3: agents.a.function: ",
        "cli.examples:nobody",
    ),
    "a function that is no name of one": (
        "agents:\n  a:\n    description: x\n    function: cli.examples\n",
        ":4: agents.a.function: ",
        "pattern",
    ),
    "an old name of a field": (
        "agents:\n  a:\n    dialect: mapped\n    url: http://h/\n    end: [x]\n    rules: [{text: $.a}]\n",
        ":6: agents.a.rules: ",
        "no such field",
    ),
    "rules that nothing can end": (
        "agents:\n  a:\n    dialect: mapped\n    url: http://h/\n    events: [{text: $.a}]\n",
        ":2: agents.a: ",
        "nothing ends an answer",
    ),
    "no word of how it speaks": ("agents:\n  a:\n    url: http://h/\n", ":2: agents.a: ", "`dialect`"),
    "a key in the file": (
        "agents:\n  a:\n    dialect: rest\n    url: http://h/\n    api_key: sk-canary\n",
        ":5:",
        "must not stand in the file",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
async def test_check_names_the_line_and_the_reason(tmp_path: Path, mistake: str) -> None:
    text, place, reason = MISTAKES[mistake]
    file = tmp_path / "agents.yaml"
    file.write_text(text)
    code, _, err = await run("check", str(file))
    assert code == 1
    assert f"agents.yaml{place}" in err
    assert reason in err
    assert "Traceback" not in err
    assert "canary" not in err


async def test_check_of_what_is_no_text_is_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "agents.yaml"
    file.write_bytes(b"agents: \xac")
    code, _, err = await run("check", str(file))
    assert code == 1
    assert "no UTF-8" in err


async def test_check_prints_a_schema() -> None:
    code, out, _ = await run("check", "--schema")
    assert code == 0
    schema = json.loads(out)
    (agent,) = schema["properties"]["agents"]["patternProperties"].values()
    assert {"$ref": "#/$defs/FunctionAgent"} in agent["oneOf"]
    assert schema["$defs"]["FunctionAgent"]["required"] == ["function"]


async def test_shipped_configuration_is_good() -> None:
    code, out, _ = await run("check", "agents.yaml")
    assert code == 0
    assert "good" in out


async def test_new_key_is_shown_once_and_its_yaml_is_good() -> None:
    options = ("--scopes", "run,read", "--agents", "assistant", "--expires", "2030-01-01")
    code, out, _ = await run("keys", "new", "portal", *options, BFF_SECRET="s" * 32)
    assert code == 0
    key, _, rest = out.partition("\n")
    assert key.startswith("bff_portal")
    text = rest.partition("agents.yaml:\n")[2]
    assert key.rpartition("_")[2] not in text
    loaded = config.parse(text, {})
    (made,) = loaded.clients["portal"].keys
    assert made.agents == ("assistant",)
    assert made.expires is not None
    assert yaml.safe_load(text)["clients"]["portal"]["keys"][0]["id"] == made.id


async def test_key_needs_the_servers_secret() -> None:
    for secret in ("", "short"):
        code, _, err = await run("keys", "new", "portal", BFF_SECRET=secret)
        assert code == 1
        assert "BFF_SECRET" in err


async def test_wrong_setting_is_named_without_its_value() -> None:
    code, _, err = await run("keys", "new", "portal", BFF_PORT="canary")
    assert code == 1
    assert "BFF_PORT" in err
    assert "canary" not in err


async def test_every_command_explains_itself() -> None:
    code, out, _ = await run("--help")
    assert code == 0
    for name in ("dev", "gateway", "worker", "check", "agents", "chat", "tail", "stop", "keys", "adapter"):
        assert name in out


async def _interrupted(gateway: FakeGateway, *arguments: str) -> tuple[int, str]:
    """Exit code and output of a command that got Ctrl-C once it had shown something."""
    async with await anyio.open_process(
        [*COMMAND, *arguments], cwd=ROOT, env={**os.environ, "BFF_URL": gateway.url}
    ) as process:
        assert process.stdout is not None
        out = await process.stdout.receive()
        process.send_signal(signal.SIGINT)
        out += b"".join([chunk async for chunk in process.stdout])
        await eventually(lambda: process.returncode is not None, 10, "the command has ended")
        assert process.returncode is not None
        return process.returncode, out.decode()
