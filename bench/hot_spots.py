"""Where our processes spend their time under load, sampled by py-spy."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.processes import Process
from bench.systems import System

_SECONDS = 5
_RATE = 200
_SHOWN = 15


def show(system: System, load: Callable[[], None]) -> int:
    """Sample every Python process of `system` while `load` runs, and print its busiest functions."""
    py_spy = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
    if py_spy is None:
        print("py-spy is not installed", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        samplers = {
            process.name: _sampler(py_spy, process, Path(folder) / process.name)
            for process in system.processes
            if process.name != "redis"
        }
        load()
        for name, sampler in samplers.items():
            if sampler.wait():
                print(f"py-spy may not look into {name}: root, or ptrace_scope 0, is needed", file=sys.stderr)
                return 1
            print("\n".join(_busiest(name, (Path(folder) / name).read_text("utf-8"))), end="\n\n")
    return 0


def _sampler(py_spy: str, process: Process, output: Path) -> subprocess.Popen[bytes]:
    how = ("--format", "raw", "--rate", str(_RATE), "--duration", str(_SECONDS), "--output", str(output))
    command = [py_spy, "record", "--pid", str(process.pid), *how]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _busiest(name: str, stacks: str) -> Iterator[str]:
    """Functions by their own share of the samples. Each line of `stacks` is `outer;...;inner count`."""
    own: Counter[str] = Counter()
    for line in stacks.splitlines():
        stack, _, count = line.rpartition(" ")
        own[stack.rpartition(";")[2]] += int(count)
    yield f"{name}: busy in {own.total()} of {_SECONDS * _RATE} samples"
    for function, samples in own.most_common(_SHOWN):
        yield f"  {100 * samples / own.total():5.1f} %  {function}"
