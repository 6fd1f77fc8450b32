"""`bff adapter test` shows what a dialect makes of a recorded body."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cli.adapter import adapter

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
    rules: [{text: $.t}, {event: end, end: true}]
"""
    )
    body = tmp_path / "body.ndjson"
    body.write_text('{"t": "a"}\n{"t": "b"}\n{"type": "end"}')
    events = lines(run("mapped", body, "--agent", "odd", "--config", config))
    assert [event["text"] for event in events if event["type"] == "text.delta"] == ["a", "b"]
    for arguments in (("--agent", "other", "--config", config), ()):
        assert run("mapped", body, *arguments).exit_code == 1
    assert run("rest", body, "--agent", "odd", "--config", config).exit_code == 1


def test_another_suffix_is_read_in_the_dialects_own_framing(tmp_path: Path) -> None:
    body = tmp_path / "answer.json"
    body.write_text('{\n\n"a": 1}')
    assert json.loads(run("rest", body, "--summary").output)["outputs"] == {"a": 1}


def test_hostile_bodies_end_in_one_failure(tmp_path: Path) -> None:
    body = tmp_path / "bad.sse"
    for content in (b"data: [1\n\n", b"data: " + b"x" * (2 << 20), b"\0" * 1000, b""):
        body.write_bytes(content)
        assert lines(run("openai-chat", body))[-1]["type"] == "run.failed"
