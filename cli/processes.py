"""The child processes of `bff dev`: quiet, logged, and gone when it goes."""

from __future__ import annotations

import asyncio
import re
import signal
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from cli.lifeline import die_with_parent

LAST_LINES = 20
"""How much of a dead child's log is shown."""

_LEVEL = re.compile(rb"\b(DEBUG|INFO|WARNING|ERROR|CRITICAL)\b")
_QUIET = (b"DEBUG", b"INFO")
_LONGEST_LINE_BYTES = 1 << 20


class Child:
    """A command in its own process. `show` is given each line that a person should see; `unseen` are
    the newest of the others."""

    def __init__(self, name: str, command: Sequence[str], log: Path, show: Callable[[str], None]) -> None:
        self.name = name
        self._command = command
        self.log = log
        self.unseen: deque[str] = deque(maxlen=LAST_LINES)
        self._show = show
        self._visible = True
        self._process: asyncio.subprocess.Process
        self._reader: asyncio.Task[None]

    async def start(self, env: Mapping[str, str]) -> None:
        """Run it. A session of its own keeps Ctrl-C from it: its parent ends it, in order."""
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            env=env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=_LONGEST_LINE_BYTES,
            start_new_session=True,
            preexec_fn=die_with_parent(signal.SIGKILL),
        )
        self._reader = asyncio.create_task(self._read())

    async def ended(self) -> int:
        """Wait for its end; gives the exit code once all it said has been read."""
        code = await self._process.wait()
        await asyncio.shield(self._reader)
        return code

    def terminate(self) -> None:
        """Ask it to end."""
        with suppress(ProcessLookupError):
            self._process.terminate()

    def kill(self) -> None:
        """End it."""
        with suppress(ProcessLookupError):
            self._process.kill()

    async def _read(self) -> None:
        assert self._process.stdout is not None
        with self.log.open("ab") as log:
            while line := await _line(self._process.stdout):
                log.write(line)
                log.flush()
                self._hear(line)

    def _hear(self, line: bytes) -> None:
        """Show warnings and worse; a line without a level belongs to the one before it."""
        text = line.decode("utf-8", "replace").rstrip()
        if level := _LEVEL.search(line[:80]):
            self._visible = level[1] not in _QUIET
        if self._visible:
            self._show(f"[{self.name}] {text}")
        else:
            self.unseen.append(text)


async def end_all(children: Sequence[Child], patience: float = 5.0) -> None:
    """Terminate together, then kill what does not listen within `patience` seconds."""
    for child in children:
        child.terminate()
    ends = [asyncio.create_task(child.ended()) for child in children]
    if not ends:
        return
    _, late = await asyncio.wait(ends, timeout=patience)
    if late:
        for child in children:
            child.kill()
        await asyncio.wait(late)


async def _line(stream: asyncio.StreamReader) -> bytes:
    """The next line; a part of it when it is over the limit; empty at the end."""
    try:
        return await stream.readuntil(b"\n")
    except asyncio.IncompleteReadError as error:
        return error.partial
    except asyncio.LimitOverrunError as error:
        return await stream.read(error.consumed)
