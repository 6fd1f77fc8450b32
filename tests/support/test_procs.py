"""Child processes end with their test, whatever state they are in, and with the test run."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from tests.support.procs import Child
from tests.support.wait import wait_until

SLEEPER = "import time; print('up', flush=True); time.sleep(600)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEPER


def child(tmp_path: Path, code: str) -> Child:
    return Child([sys.executable, "-c", code], tmp_path / "log")


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_stopped_process_is_ended_too(tmp_path: Path) -> None:
    with child(tmp_path, SLEEPER) as sleeper:
        sleeper.wait_for_log("up")
        sleeper.pause()
    assert not sleeper.running


def test_termination_gives_the_status(tmp_path: Path) -> None:
    with child(tmp_path, SLEEPER) as sleeper:
        sleeper.wait_for_log("up")
        assert sleeper.terminate() == -signal.SIGTERM
        sleeper.start()
        sleeper.kill()
        assert sleeper.process.returncode == -signal.SIGKILL


def test_a_process_that_ends_early_is_reported_with_its_log(tmp_path: Path) -> None:
    with (
        child(tmp_path, "raise SystemExit('no luck')") as early,
        pytest.raises(RuntimeError, match="no luck"),
    ):
        early.wait_for_log("up")


def test_the_log_is_shown_when_a_test_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sleeper = child(tmp_path, SLEEPER).start()
    sleeper.wait_for_log("up")
    with pytest.raises(ZeroDivisionError), sleeper:
        raise ZeroDivisionError
    assert "\nup\n" in capsys.readouterr().out


def test_children_die_with_a_killed_parent(tmp_path: Path) -> None:
    """Also those that ignore SIGTERM, and with a parent that had no chance to say goodbye."""
    code = f"""
import pathlib, time
from tests.support.procs import Child
import sys
inner = Child([sys.executable, "-c", {STUBBORN!r}], pathlib.Path({str(tmp_path / "inner")!r})).start()
inner.wait_for_log("up")
print("inner", inner.pid, flush=True)
time.sleep(600)
"""
    with child(tmp_path, code) as parent:
        inner = int(parent.wait_for_log("inner").split()[1])
        assert is_alive(inner)
        os.kill(parent.pid, signal.SIGKILL)
        wait_until(lambda: not is_alive(inner))
