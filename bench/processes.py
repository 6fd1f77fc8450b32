"""The child processes of a bench: started on free ports, asked for their CPU time, always ended."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cli.lifeline import die_with_parent

START_WITHIN = 20.0
"""Seconds that a process may take until it answers on its port."""
END_WITHIN = 10.0
"""Seconds from SIGTERM to SIGKILL."""


@dataclass(frozen=True)
class Process:
    """A running child."""

    name: str
    pid: int

    def cpu(self) -> float:
        """CPU time used so far by all its threads, in seconds.

        From `/proc/PID/task/TID/schedstat`, whose first field is in nanoseconds (Linux kernel
        `Documentation/scheduler/sched-stats.rst`); `/proc/PID/stat` counts in hundredths only.
        """
        tasks = Path(f"/proc/{self.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


@contextmanager
def running(
    name: str, command: list[str], *, port: int | None = None, env: dict[str, str] | None = None
) -> Iterator[Process]:
    """Start `command`, wait until it listens on `port`, and end it. Raises RuntimeError if it does not.

    The output of a process that ended by itself is shown.
    """
    with tempfile.TemporaryFile("w+") as output:
        child = subprocess.Popen(
            command,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            preexec_fn=die_with_parent(),
        )
        try:
            if port is not None:
                _wait_for(name, child, port)
            yield Process(name, child.pid)
        finally:
            if child.poll() is not None:
                output.seek(0)
                print(
                    f"{name} ended with status {child.returncode}:\n{output.read()[-4000:]}", file=sys.stderr
                )
            _end(child)


def python(*arguments: str) -> list[str]:
    """The command that runs a module with this interpreter."""
    return [sys.executable, "-m", *arguments]


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for(name: str, child: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_WITHIN
    while time.monotonic() < deadline and child.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise RuntimeError(f"{name} does not listen on port {port}")


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(END_WITHIN)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
