"""`bff adapter test`: what a dialect makes of a recorded body, without network or broker."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
import orjson
from pydantic import TypeAdapter

from shared import config as configuration
from shared.config import Agent
from shared.errors import AgentError, AgentTruncated, ConfigError
from shared.events import Event, Json, RunCompleted, RunFailed, RunStopped, Terminal, dump, with_type
from shared.sse import FRAMINGS, FrameTooLarge, ServerSentEvent
from shared.summary import Summary, ToolCall
from workers.dialects import AGENT_DIALECTS
from workers.dialects.base import AgentDialect

_AGENT: TypeAdapter[Agent] = TypeAdapter(Agent)
_SUFFIXES = {".sse": "sse", ".ndjson": "ndjson"}
_AUDIO_FORMATS = {"audio/mpeg": "mp3"}

_BARE: dict[str, dict[str, Any]] = {
    "openai-chat": {"url": "http://127.0.0.1", "model": "any"},
    "dify-completion": {"url": "http://127.0.0.1"},
    "dify-chat": {"url": "http://127.0.0.1"},
    "dify-workflow": {"url": "http://127.0.0.1"},
    "rest": {"url": "http://127.0.0.1"},
    "function": {"function": "recorded:body"},
}
"""Configuration of a dialect that is only read with; `mapped` is nothing without its rules."""


class Replay:
    """A body read through a dialect, as a worker would, and on behind an error to see its end."""

    def __init__(self, dialect: AgentDialect) -> None:
        self.error: AgentError | None = None
        self._dialect = dialect

    def events(self, frames: Iterator[ServerSentEvent]) -> Iterator[Event]:
        """The events, the terminal one last."""
        try:
            for frame in frames:
                yield from self._heard(frame)
            if self.error is None:
                yield from self._dialect.finish()
        except AgentError as error:
            self.error = error
        except FrameTooLarge as error:
            self.error = AgentError(str(error), code="too_large")
        if self.error is not None:
            yield _failure(self.error)

    def _heard(self, frame: ServerSentEvent) -> Iterator[Event]:
        try:
            for event in self._dialect.map(frame):
                if self.error is None:
                    yield event
        except AgentError as error:
            self.error = self.error or error


@click.group()
def adapter() -> None:
    """Try how agents' formats are read."""


@adapter.command()
@click.argument("dialect", type=click.Choice(sorted(AGENT_DIALECTS)))
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--summary", is_flag=True, help="Print what the answer comes to, as one JSON object.")
@click.option("--chunk", type=click.IntRange(min=1), help="Feed so many bytes at a time.")
@click.option("--agent", help="Use this agent of the configuration.")
@click.option(
    "--config",
    "config_path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The configuration that --agent is in.",
)
def test(
    dialect: str, file: Path, summary: bool, chunk: int | None, agent: str | None, config_path: Path | None
) -> None:
    """Feed a recorded body FILE to DIALECT and print its events as NDJSON."""
    try:
        made = AGENT_DIALECTS[dialect](_agent(dialect, agent, config_path))
    except ConfigError as error:
        raise click.ClickException(str(error)) from None
    framing = _SUFFIXES.get(file.suffix, made.framing)
    replay = Replay(made)
    total = Summary()
    for event in replay.events(frames(file.read_bytes(), framing, chunk)):
        total.feed(event)
        if not summary:
            click.echo(with_type(event.type, dump(event)))
    if summary:
        click.echo(orjson.dumps(summarised(total, made, replay.error), option=orjson.OPT_INDENT_2))


def frames(body: bytes, framing: str, chunk: int | None = None) -> Iterator[ServerSentEvent]:
    """The frames of a body, fed whole or `chunk` bytes at a time."""
    decoder = FRAMINGS[framing]()
    step = chunk or max(len(body), 1)
    for start in range(0, len(body), step):
        yield from decoder.feed(body[start : start + step])
    yield from decoder.end()


def summarised(total: Summary, dialect: AgentDialect, error: AgentError | None) -> dict[str, Json]:
    """The whole answer as one object. What an agent may not have is there only when it had it."""
    reason, raw = _ending(total.end, dialect)
    ids = msgspec.to_builtins(total.ids)
    found: dict[str, Json] = {
        "text": total.text,
        "reasoning": total.reasoning,
        "tool_calls": [_tool_call(call) for call in total.tools.values() if call.complete],
        "outputs": total.outputs,
        "usage": _usage(total),
        "finish_reason": reason,
        "finish_reason_raw": raw,
        "error": _error(error),
        "complete": dialect.complete,
        "ids": ids,
    }
    return found | {name: value for name, value in _extras(total).items() if value}


def _agent(dialect: str, name: str | None, path: Path | None) -> Agent:
    if name is None:
        if dialect not in _BARE:
            raise ConfigError(f"{dialect} needs its rules: give --agent NAME --config agents.yaml")
        return _AGENT.validate_python({"dialect": dialect, **_BARE[dialect]})
    loaded = configuration.load(path or Path("agents.yaml"), os.environ)
    agent = loaded.agents.get(name)
    if agent is None:
        raise ConfigError(loaded.unavailable.get(name) or f"there is no agent {name}")
    if agent.dialect != dialect:
        raise ConfigError(f"the agent {name} speaks {agent.dialect}, not {dialect}")
    return agent


def _failure(error: AgentError) -> RunFailed:
    code = None if error.agent_code is None else str(error.agent_code)
    return RunFailed(error.code, str(error), error.retryable, code)


def _ending(end: Terminal | None, dialect: AgentDialect) -> tuple[str, str | None]:
    match end:
        case RunCompleted(finish_reason=reason, finish_reason_raw=raw):
            return reason, raw
        case RunStopped():
            return "cancelled", dialect.ended_as
        case _:
            return "error", dialect.ended_as


def _tool_call(call: ToolCall) -> dict[str, Json]:
    found = {"id": call.id, "name": call.name, "arguments": call.arguments}
    return found | {"result": call.result} if call.answered else found


def _usage(total: Summary) -> dict[str, Json] | None:
    usage = total.usage
    if usage is None:
        return None
    found = {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
    }
    return found if usage.reasoning_tokens is None else found | {"reasoning_tokens": usage.reasoning_tokens}


def _error(error: AgentError | None) -> dict[str, Json] | None:
    if error is None:
        return None
    if isinstance(error, AgentTruncated):
        return {"message": str(error), "code": "upstream_truncated", "synthetic": True}
    named = {"type": error.agent_type, "status": error.agent_status}
    told = {name: word for name, word in named.items() if word is not None}
    return {"message": str(error), "code": error.agent_code, **told}


def _extras(total: Summary) -> dict[str, Json]:
    form = total.form
    return {
        "refusal": total.refusal,
        "sources": [
            {"document_name": source.title, "dataset_name": source.dataset, "score": source.score}
            if source.url is None
            else {"title": source.title, "url": source.url}
            for source in total.sources
        ],
        "files": [{"type": file.kind, "url": file.url, "id": file.id} for file in total.files],
        "audio": {
            "format": _AUDIO_FORMATS.get(total.audio_type or "", total.audio_type),
            "base64_chunks": total.audio_chunks,
            "sha256_of_concatenated_bytes": total.audio_sha256,
        }
        if total.audio_chunks
        else None,
        "human_input": form
        and {"form_token": form.token, "actions": list(form.actions), "expiration_time": form.expires},
        "streamed_before_replace": total.before_replace,
    }
