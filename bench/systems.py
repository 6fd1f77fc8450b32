"""What is compared: the agent itself, the pass-through proxy in front of it, and this project."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.processes import Process, free_port, python, running
from cli.broker import find_server

_AGENTS = "agents:\n  load: {{dialect: openai-chat, url: 'http://127.0.0.1:{port}/v1', model: load}}\n"


@dataclass(frozen=True)
class System:
    """Something that answers `/v1/chat/completions` at `port`, and the processes that do its work."""

    name: str
    port: int
    processes: tuple[Process, ...]


@contextmanager
def started() -> Iterator[list[System]]:
    """All three, over one load agent, ended together."""
    with ExitStack() as stack:
        port = free_port()
        agent = stack.enter_context(running("agent", python("bench.load_agent", str(port)), port=port))
        direct = System("direct", port, (agent,))
        yield [direct, stack.enter_context(_proxy(direct)), stack.enter_context(_bff(direct))]


@contextmanager
def _proxy(agent: System) -> Iterator[System]:
    port = free_port()
    server = python("uvicorn", "bench.passthrough_proxy:app", "--port", str(port))
    quiet = ("--no-access-log", "--log-level", "warning")
    env = {"AGENT_URL": f"http://127.0.0.1:{agent.port}/v1"}
    with running("proxy", [*server, *quiet], port=port, env=env) as process:
        yield System("proxy", port, (process,))


@contextmanager
def _bff(agent: System) -> Iterator[System]:
    redis_port, port = free_port(), free_port()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        config = Path(folder) / "agents.yaml"
        config.write_text(_AGENTS.format(port=agent.port), "utf-8")
        env = {
            "BFF_REDIS_URL": f"redis://127.0.0.1:{redis_port}/0",
            "BFF_CONFIG": str(config),
            "BFF_HOST": "127.0.0.1",
            "BFF_PORT": str(port),
            "BFF_SECRET": "only-for-the-bench-on-loopback",
            "BFF_MAX_RUNS": "400",  # the 200 streams and those of the round before that are ending
            "BFF_LOG_LEVEL": "WARNING",
        }
        memory_only = ("--save", "", "--appendonly", "no", "--bind", "127.0.0.1", "--dir", folder)
        redis_command = [str(find_server().path), "--port", str(redis_port), *memory_only]
        processes = (
            stack.enter_context(running("redis", redis_command, port=redis_port)),
            stack.enter_context(running("worker", python("cli.main", "worker"), env=env)),
            stack.enter_context(running("gateway", python("cli.main", "gateway"), port=port, env=env)),
        )
        yield System("bff", port, processes[::-1])
