"""What `bff dev` tells a newcomer once it is ready, with lines to paste."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from cli.client import DEFAULT_URL
from shared.config import Config


def banner(url: str, env: Mapping[str, str], loaded: Config, broker_notice: str) -> list[str]:
    """The lines. `env` is that of the children."""
    lines = [f"Streaming BFF is ready at {url} (API: {url}/docs)", "", broker_notice]
    if played := _played(env):
        lines.append(f"played, not real: {', '.join(played)}")
    if not os.environ.get("BFF_SECRET"):
        lines.append(f"BFF_SECRET={env['BFF_SECRET']} (made for this run; set your own to keep keys valid)")
    lines += ["", "agents:", *_agent_lines(loaded)]
    if loaded.agents:
        agent = next(iter(loaded.agents))
        lines += ["", "try:", f"  {curl(url, agent, bool(loaded.clients))}", f"  {_chat(url, agent)}"]
    return [*lines, "", "Ctrl-C ends everything."]


def curl(url: str, agent: str, with_key: bool) -> str:
    """A command that starts a run and shows its stream."""
    key = ' -H "Authorization: Bearer $BFF_API_KEY"' if with_key else ""
    body = f'{{"agent": "{agent}", "input": "Say hello"}}'
    headers = "-H 'Content-Type: application/json' -H 'Accept: text/event-stream'"
    return f"curl -N {url}/v1/runs{key} {headers} -d '{body}'"


def _played(env: Mapping[str, str]) -> list[str]:
    """The services that are played, and how to have the real ones."""
    addresses = {
        "OpenAI (set OPENAI_API_KEY)": env.get("OPENAI_BASE_URL", ""),
        "Dify (set DIFY_URL and the apps' keys)": env["DIFY_URL"],
    }
    return [name for name, url in addresses.items() if url.startswith(env["BFF_SCRIPTED_URL"])]


def _agent_lines(loaded: Config) -> list[str]:
    width = max(map(len, loaded.dialects), default=0)
    lines = []
    for name, dialect in loaded.dialects.items():
        agent = loaded.agents.get(name)
        text = (agent.description or "") if agent else f"unavailable: {loaded.unavailable.get(name)}"
        lines.append(f"  {name:{width}}  {dialect:15}  {text}".rstrip())
    return lines


def _chat(url: str, agent: str) -> str:
    """The same with `bff`."""
    told = "" if url == DEFAULT_URL else f"BFF_URL={url} "
    return f"{told}{_command()} chat {agent} 'Say hello'"


def _command() -> str:
    """How this terminal calls `bff`: by name, by its place beside this Python, or as a module."""
    beside = Path(sys.executable).with_name("bff")
    if not beside.exists():
        return f"{shlex.quote(os.path.relpath(sys.executable))} -m cli.main"
    found = shutil.which("bff")
    return "bff" if found and Path(found) == beside else shlex.quote(os.path.relpath(beside))
