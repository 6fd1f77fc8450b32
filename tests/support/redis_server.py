"""Real Redis servers on free ports, which can be killed, paused and started again."""

from __future__ import annotations

import contextlib
import random
import signal
import socket
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

import redis

from cli.broker import await_pong, end, find_server
from cli.lifeline import die_with_parent
from shared.errors import ConfigError
from tests.support.wait import wait_until

_TRIES = 5


def free_port() -> int:
    """A port that was free a moment ago, below those that outgoing connections take, so that it can be
    taken again after a restart."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class RedisServer:
    """One server. It keeps its port and directory over `kill`, `stop` and `start`.

    `maxmemory` is in bytes; any option of redis.conf can be given as `extra`, as `("--name", "value")`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        appendonly: bool = False,
        maxmemory: int = 0,
        password: str | None = None,
        extra: tuple[str, ...] = (),
    ) -> None:
        self._directory = directory
        self._password = password
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._options = ["--dir", str(directory), "--save", "", "--bind", "127.0.0.1"]
        self._options += ["--appendonly", "yes" if appendonly else "no"]
        self._options += ["--maxmemory", str(maxmemory), "--maxmemory-policy", "noeviction"]
        self._options += ["--requirepass", password or "", *extra]

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        return self.url_at(self._port)

    @property
    def port(self) -> int:
        return self._port

    @property
    def running(self) -> bool:
        return self._process is not None

    @property
    def log(self) -> str:
        return (self._directory / "redis.log").read_text("utf-8", "replace")

    def url_at(self, port: int) -> str:
        """The same server behind another port, such as a proxy's."""
        secret = f":{self._password}@" if self._password else ""
        return f"redis://{secret}127.0.0.1:{port}/0"

    def client(self) -> redis.Redis:
        """A blocking client, for looking at what is there; close it."""
        return redis.Redis.from_url(self.url, decode_responses=True)

    def start(self) -> Self:
        """Start, or start again on the same port; returns when it answers."""
        assert self._process is None, "runs already"
        for attempt in range(_TRIES):
            port = self._port or free_port()
            try:
                self._launch(port)
            except ConfigError:
                if self._port or attempt == _TRIES - 1:
                    raise
            else:
                self._port = port
                break
        return self

    def stop(self) -> None:
        """An orderly end."""
        end(self._running())
        self._process = None

    def kill(self) -> None:
        """SIGKILL."""
        process = self._running()
        process.kill()
        process.wait()
        self._process = None

    def restart(self) -> None:
        """Kill and start again."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        process = self._running()
        process.send_signal(signal.SIGSTOP)
        stat = Path(f"/proc/{process.pid}/stat")
        wait_until(
            lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", description="Redis is stopped"
        )

    def resume(self) -> None:
        """SIGCONT."""
        self._running().send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End it in whatever state it is."""
        if self._process is not None:
            self.resume()
            self.kill()

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "does not run"
        return self._process

    def _launch(self, port: int) -> None:
        command = [str(find_server().path), "--port", str(port), *self._options]
        with (self._directory / "redis.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent(signal.SIGKILL),
            )
        try:
            await_pong(process, socket.AF_INET, ("127.0.0.1", port))
        except ConfigError:
            process.kill()
            process.wait()
            raise
        self._process = process
