"""`bff check`: is this agents.yaml good?"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import click

from shared import config
from shared.config import Agent, Config, FunctionAgent, located
from shared.errors import ConfigError, at
from workers.agents.function import load_function
from workers.dialects import AGENT_DIALECTS
from workers.mapping import compile_path

_WITHOUT_DEFAULT = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_PLAUSIBLE = "http://unset.invalid"
"""Stands for a variable that is not set: good as an address, a key or a name (RFC 2606)."""


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path), envvar="BFF_CONFIG")
@click.option("--schema", is_flag=True, help="Print the JSON Schema of the file instead, for editors.")
def check(file: Path | None, schema: bool) -> None:
    """Check FILE (agents.yaml): every mistake with its line and reason."""
    if schema:
        click.echo(json.dumps(config.json_schema(), indent=2))
        return
    for line in checked(file or Path("agents.yaml"), os.environ):
        click.echo(line)


def checked(path: Path, env: Mapping[str, str]) -> list[str]:
    """What the good file at `path` holds. Raises ConfigError with a line for each mistake.

    Agents whose variables are not set are checked as if they were.
    """
    loaded = config.load(path, env)
    text = path.read_text("utf-8")
    unset = dict.fromkeys(_WITHOUT_DEFAULT.findall(text), _PLAUSIBLE)
    whole = config.parse(text, {**unset, **{name: value for name, value in env.items() if value}}, str(path))
    if mistakes := _mistakes(whole, text, str(path)):
        raise ConfigError("\n".join(mistakes))
    return _summary(path, loaded)


def _summary(path: Path, loaded: Config) -> list[str]:
    lines = [f"{path}: {len(loaded.dialects)} agents, {len(loaded.clients)} clients: good"]
    return lines + [f"unavailable: {name}: {reason}" for name, reason in loaded.unavailable.items()]


def _mistakes(whole: Config, text: str, where: str) -> list[str]:
    """What only the dialects know to be wrong: paths, templates, functions."""
    root = config.compose(text)
    mistakes = []
    for name, agent in whole.agents.items():
        try:
            _compile(agent)
        except ConfigError as error:
            mistakes.append(str(located(error, root, where, name)))
    return mistakes


def _compile(agent: Agent) -> None:
    AGENT_DIALECTS[agent.dialect](agent)
    with at("text"):
        if agent.text is not None:
            compile_path(agent.text)
    with at("function"):
        if isinstance(agent, FunctionAgent):
            load_function(agent.function)
