"""`bff adapter test` shows what a dialect makes of a recorded body."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cli.adapter import adapter
from shared import config

TRANSCRIPTS = Path(__file__).parents[1] / "transcripts"
TEXT = TRANSCRIPTS / "dify-workflow" / "text_chunk.sse"


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(adapter, ["test", *map(str, arguments)])


def lines(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.output.splitlines()]


def test_events_are_lines_with_their_type_first() -> None:
    result = run("dify-workflow", TEXT)
    assert all(line.startswith('{"type":"') for line in result.output.splitlines())
    events = lines(result)
    assert "".join(event["text"] for event in events if event["type"] == "text.delta") == "Bonjour le monde"
    assert events[-1]["type"] == "run.completed"


@pytest.mark.parametrize("size", ["1", "7", "100000"])
def test_the_size_of_chunks_changes_nothing(size: str) -> None:
    assert run("dify-workflow", TEXT, "--chunk", size).output == run("dify-workflow", TEXT).output


def test_a_summary_is_one_object_in_the_form_of_the_recordings() -> None:
    found = json.loads(run("dify-workflow", TEXT, "--summary").output)
    expected = json.loads(TEXT.with_suffix(".expected.json").read_text("utf-8"))
    assert found == {name: expected[name] for name in found}


def test_a_failure_is_the_last_event() -> None:
    last = lines(run("openai-chat", TRANSCRIPTS / "openai-chat" / "truncated.sse"))[-1]
    assert (last["type"], last["code"]) == ("run.failed", "interrupted")


def test_rules_come_from_the_configuration(tmp_path: Path) -> None:
    config = tmp_path / "agents.yaml"
    config.write_text(
        """
agents:
  odd:
    dialect: mapped
    url: http://127.0.0.1/x
    framing: sse
    events: [{when: {event: end}, end: true}, {text: $.t}]
"""
    )
    body = tmp_path / "body.ndjson"
    body.write_text('{"t": "a"}\n{"t": "b"}\n{"type": "end"}')
    events = lines(run("mapped", body, "--agent", "odd", "--config", config))
    assert [event["text"] for event in events if event["type"] == "text.delta"] == ["a", "b"]
    for arguments in (("--agent", "other", "--config", config), ()):
        assert run("mapped", body, *arguments).exit_code == 1
    assert run("rest", body, "--agent", "odd", "--config", config).exit_code == 1


EXAMPLE = """
agents:
  writer:   {dialect: openai-chat, url: https://api.openai.com/v1, api_key: ${OPENAI_API_KEY}, model: gpt-5}
  reviewer: {dialect: dify-workflow, url: ${DIFY_URL}, api_key: ${DIFY_REVIEW_KEY}}
  house:    {function: our_agents.summarise:stream}
  legacy:   {dialect: rest, url: http://search.internal/api, body: {q: "{input}"}, text: $.result.summary,
             data: $.result.hits}
  odd:
    dialect: mapped
    url: http://odd.internal/stream
    body: {question: "{input}"}
    events:
      - {when: {event: message}, text: $.answer}
      - {when: {$.type: result}, data: $.data.outputs}
    end: ["[DONE]", message_end, tts_message_end]
    ignore: [ping]
"""

RESULT = '{"type": "result", "data": {"outputs": {"n": 1}}}'
BODIES = {
    "lines.sse": f"""event: ping
data: 12:00

event: message
data: {{"answer": "good", "type": "x"}}

event: message
data: {{"answer": " day"}}

data: {RESULT}

event: message_end
data: {{}}

event: tts_message_end
data: {{}}

""",
    "event.sse": f"""data: {{"event": "ping"}}

data: {{"event": "message", "answer": "good"}}

data:{{"event": "message", "answer": " day", "type": "ping"}}

data: {RESULT}

data: {{"event": "message_end"}}

""",
    "type.sse": f"""data: {{"type": "message", "answer": "good"}}

data: {{"type": "message", "answer": " day"}}

data: {RESULT}

data: [DONE]

data: this is never read

""",
    "lines.ndjson": f"""{{"type": "message", "answer": "good"}}
{{"event": "message", "answer": " day"}}
{{"type": "ping"}}
{RESULT}
{{"type": "message_end"}}
""",
}


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in {"OPENAI_API_KEY": "key", "DIFY_URL": "http://d/v1", "DIFY_REVIEW_KEY": "key"}.items():
        monkeypatch.setenv(name, value)
    file = tmp_path / "agents.yaml"
    file.write_text(EXAMPLE, "utf-8")
    return file


def test_variables_may_stand_in_flow_style(example: Path) -> None:
    loaded = config.load(example)
    assert not loaded.unavailable
    assert loaded.dialects == {name: agent.dialect for name, agent in loaded.agents.items()}
    assert {name: agent.dialect for name, agent in loaded.agents.items()} == {
        "writer": "openai-chat",
        "reviewer": "dify-workflow",
        "house": "function",
        "legacy": "rest",
        "odd": "mapped",
    }


@pytest.mark.parametrize("line_end", ["\n", "\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("body", BODIES)
def test_a_word_finds_its_frames_wherever_their_type_stands(
    tmp_path: Path, example: Path, body: str, line_end: str
) -> None:
    file = tmp_path / body
    file.write_bytes(BODIES[body].replace("\n", line_end).encode())
    for size in ("1", "100000"):
        result = run("mapped", file, "--agent", "odd", "--config", example, "--summary", "--chunk", size)
        found = json.loads(result.output)
        assert (found["text"], found["outputs"], found["error"]) == ("good day", {"n": 1}, None)
        assert (found["complete"], found["finish_reason"]) == (True, "stop")


def test_a_service_is_read_by_its_paths(tmp_path: Path, example: Path) -> None:
    file = tmp_path / "answer.json"
    file.write_text('{"result": {"summary": "short", "hits": [1]}}')
    found = json.loads(run("rest", file, "--agent", "legacy", "--config", example, "--summary").output)
    assert (found["text"], found["outputs"]) == ("short", [1])


def test_another_suffix_is_read_in_the_dialects_own_framing(tmp_path: Path) -> None:
    body = tmp_path / "answer.json"
    body.write_text('{\n\n"a": 1}')
    assert json.loads(run("rest", body, "--summary").output)["outputs"] == {"a": 1}


def test_hostile_bodies_end_in_one_failure(tmp_path: Path) -> None:
    body = tmp_path / "bad.sse"
    for content in (b"data: [1\n\n", b"data: " + b"x" * (2 << 20), b"\0" * 1000, b""):
        body.write_bytes(content)
        assert lines(run("openai-chat", body))[-1]["type"] == "run.failed"
