"""`bff dev`: everything on one machine and in one terminal.

The broker, a server that plays agents, a gateway and a worker start together and end together,
whether by Ctrl-C, by the death of one of them, or by the death of this process.
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
import httpx

from cli.banner import banner
from cli.broker import Broker, open_broker
from cli.check import checked
from cli.processes import Child, end_all
from cli.scripted import KEY, ScriptedAgents
from cli.settings import read_settings
from shared import config
from shared.broker import Broker as Redis
from shared.broker import check
from shared.config import Config
from shared.errors import BrokerUnavailable, ConfigError
from shared.settings import Settings

_PACE_SECONDS = 0.03
"""Between two pieces of a played answer, so that a person sees it stream."""
_READY_SECONDS = 30.0
_POLL_SECONDS = 0.05
_BROKER_LOOK_SECONDS = 0.5
_DIFY_KEYS = ("DIFY_COMPLETION_KEY", "DIFY_CHAT_KEY", "DIFY_WORKFLOW_KEY")
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - read, never bound
"""Addresses to listen on, and where they are reached from this machine."""


@click.command()
def dev() -> None:
    """Run everything on this machine: broker, played agents, gateway, worker. Ctrl-C ends it all."""
    sys.exit(asyncio.run(_dev(read_settings())))


async def _dev(settings: Settings) -> int:
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    port = claim_port(settings.host, settings.port)
    async with ScriptedAgents(pace=_PACE_SECONDS) as agents:
        with open_broker() as broker:
            await _refuse_absent(settings, broker)
            env = child_env(os.environ, settings.host, port, broker.url, agents.url)
            checked(settings.config, env)
            return await _run(env, config.load(settings.config, env), broker, stopping)


async def _refuse_absent(settings: Settings, broker: Broker) -> None:
    """Say at once that BFF_REDIS_URL leads nowhere: gateway and worker would wait for it. Raises
    ConfigError, BrokerError."""
    if broker.process is not None:
        return
    redis = Redis.open(broker.url, settings.redis_timeout)
    try:
        await check(redis)
    except BrokerUnavailable as error:
        raise ConfigError(
            f"{broker.notice}: {error}; start that Redis, or unset BFF_REDIS_URL to be given one"
        ) from None
    finally:
        await redis.close()


async def _run(env: Mapping[str, str], loaded: Config, broker: Broker, stopping: asyncio.Event) -> int:
    """Start the children and stay until told to stop; 1 when something ended by itself before."""
    url = address(env["BFF_HOST"], int(env["BFF_PORT"]))
    logs = Path(tempfile.mkdtemp(prefix="bff-dev-"))
    children = [
        Child(name, (sys.executable, "-m", "cli.main", name), logs / f"{name}.log", click.echo)
        for name in ("gateway", "worker")
    ]
    try:
        for child in children:
            await child.start(env)
        death = asyncio.create_task(_first_death(children, broker))
        death.add_done_callback(lambda _: stopping.set())
        missing = await _missing(url, stopping)
        if not missing:
            click.echo("\n".join(banner(url, env, loaded, broker.notice)))
            await stopping.wait()
        failure = death.result() if death.done() else None
        if not stopping.is_set():
            failure = f"the gateway was not ready within {_READY_SECONDS:.0f} s: {missing}"
        death.cancel()
    finally:
        await end_all(children)
    if failure is None:
        shutil.rmtree(logs, ignore_errors=True)
        return 0
    click.echo(f"{failure}\nfull logs: {logs}", err=True)
    return 1


async def _missing(url: str, stopping: asyncio.Event) -> str:
    """Wait until the gateway can serve; gives "" then, or what is missing when time is up or something
    has ended."""
    deadline = time.monotonic() + _READY_SECONDS
    missing = "it does not answer"
    async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
        while not stopping.is_set() and time.monotonic() < deadline:
            try:
                answer = await client.get("/readyz")
            except httpx.TransportError:
                await asyncio.sleep(_POLL_SECONDS)
                continue
            if answer.is_success:
                return ""
            missing = answer.text
            await asyncio.sleep(_POLL_SECONDS)
    return missing


async def _first_death(children: Sequence[Child], broker: Broker) -> str:
    """Wait until a process ends by itself; gives what to say of it."""
    ends = [asyncio.create_task(_child_death(child)) for child in children]
    ends.append(asyncio.create_task(_broker_death(broker)))
    try:
        done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        # Whoever falls with the broker is not the cause.
        return _fallen(broker) or done.pop().result()
    finally:
        for end in ends:
            end.cancel()


async def _child_death(child: Child) -> str:
    code = await child.ended()
    return "\n".join([*child.unseen, f"the {child.name} ended by itself with exit code {code}"])


async def _broker_death(broker: Broker) -> str:
    while not (fallen := _fallen(broker)):  # noqa: ASYNC110 - a Popen has no event to wait for
        await asyncio.sleep(_BROKER_LOOK_SECONDS)
    return fallen


def _fallen(broker: Broker) -> str:
    """What to say of a broker of our own that has ended, "" while it runs."""
    code = broker.process.poll() if broker.process is not None else None
    return "" if code is None else f"the broker ended by itself with exit code {code}"


def claim_port(host: str, port: int) -> int:
    """The port to listen on, a free one for 0. Raises ConfigError when it cannot be had."""
    try:
        family, _, _, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(target)
            return int(listener.getsockname()[1])
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port {port} of {host} is taken; choose another with BFF_PORT, such as BFF_PORT={port + 1}"
            ) from None
        raise ConfigError(
            f"cannot listen on {host} port {port} (BFF_HOST, BFF_PORT): {error.strerror}"
        ) from None


def child_env(
    env: Mapping[str, str], host: str, port: int, redis_url: str, agents_url: str
) -> dict[str, str]:
    """What gateway and worker are told. Services whose account is not in `env` are the played ones."""
    defaults = {"BFF_SECRET": secrets.token_hex(16), "BFF_DRAIN": "1", "BFF_GRACE": "1"}
    told = {
        **env,
        **{name: value for name, value in defaults.items() if not env.get(name)},
        "BFF_HOST": host,
        "BFF_PORT": str(port),
        "BFF_REDIS_URL": redis_url,
        "BFF_SCRIPTED_URL": agents_url,
        "BFF_SCRIPTED_KEY": KEY,
        "PYTHONUNBUFFERED": "1",
    }
    if not env.get("OPENAI_API_KEY"):
        told |= {"OPENAI_BASE_URL": f"{agents_url}/openai/v1", "OPENAI_API_KEY": KEY}
    if not env.get("DIFY_URL"):
        told |= {"DIFY_URL": f"{agents_url}/dify/v1", **dict.fromkeys(_DIFY_KEYS, KEY)}
    return told


def address(host: str, port: int) -> str:
    """Where this machine reaches a gateway that listens on `host`."""
    reached = _EVERYWHERE.get(host, host)
    return f"http://[{reached}]:{port}" if ":" in reached else f"http://{reached}:{port}"
