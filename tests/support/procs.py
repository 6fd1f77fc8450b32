"""Child processes of a test: own process group, log in a file, gone when the test run is gone."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from cli.lifeline import die_with_parent
from tests.support.wait import wait_until

ROOT = Path(__file__).resolve().parents[2]

_LOG_TAIL = 8000


class Child:
    """A process, started by `with` or `start()`. Its log is shown when a test leaves by an exception."""

    def __init__(
        self,
        argv: Sequence[str | Path],
        log: Path,
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path = ROOT,
    ) -> None:
        self._argv = [str(part) for part in argv]
        self._log = log
        self._env = {**os.environ, **(env or {})}
        self._cwd = cwd
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self if self.running else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if error is not None:
            print(f"--- log of {' '.join(self._argv)}\n{self.log[-_LOG_TAIL:]}")

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "not started"
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """What it has printed so far, over all its starts."""
        return self._log.read_text("utf-8", "replace") if self._log.exists() else ""

    def start(self) -> Self:
        """Start it, or start it again."""
        assert not self.running, "runs already"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._env,
                cwd=self._cwd,
                start_new_session=True,
                preexec_fn=die_with_parent(signal.SIGKILL),
            )
        return self

    def wait_for_log(self, text: str, deadline: float = 15.0) -> str:
        """The first log line that has `text` in it. Raises at once when the process ends without it."""

        def line() -> str | None:
            ended = not self.running
            found = next((line for line in self.log.split("\n")[:-1] if text in line), None)
            if ended and found is None:
                raise RuntimeError(f"{self._argv[0]} ended without {text!r}:\n{self.log[-_LOG_TAIL:]}")
            return found

        found = wait_until(line, deadline, f"{text!r} in the log of {' '.join(self._argv)}")
        assert found is not None
        return found

    def terminate(self, deadline: float = 15.0) -> int:
        """SIGTERM, then wait; gives its status."""
        self.process.terminate()
        return self.process.wait(deadline)

    def kill(self) -> None:
        """SIGKILL to this process alone."""
        self.process.kill()
        self.process.wait()

    def pause(self) -> None:
        """SIGSTOP, and wait until the kernel shows it as stopped."""
        self.process.send_signal(signal.SIGSTOP)
        wait_until(lambda: self._state() in "Tt", description=f"process {self.pid} stopped")

    def resume(self) -> None:
        """SIGCONT."""
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End its whole process group, also when it is stopped or does not listen."""
        if self._process is None:
            return
        if self.running:
            self.resume()
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()

    def _state(self) -> str:
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]


def python(module: str, *arguments: str) -> list[str]:
    """The command line that runs a module with this interpreter."""
    return [sys.executable, "-m", module, *arguments]


def processes_with(variable: str, value: str) -> list[int]:
    """Ids of the processes that were started with this environment variable."""
    wanted = f"{variable}={value}".encode()
    found = []
    for place in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # gone by now, or somebody else's
            if wanted in place.read_bytes().split(b"\0"):
                found.append(int(place.parent.name))
    return found
