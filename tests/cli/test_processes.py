"""Children of `bff dev`: quiet unless something is wrong, and gone when they should be."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from cli.processes import Child, end_all
from tests.support.wait import eventually

LINES = """\
2026-11-22 10:00:00,000 INFO    gateway: all is well
2026-11-22 10:00:01,000 WARNING gateway: not so well
and why
2026-11-22 10:00:02,000 DEBUG   gateway: a detail
of the detail
2026-11-22 10:00:03,000 ERROR   gateway: broken
Traceback (most recent call last):
"""


def python(tmp_path: Path, code: str, shown: list[str]) -> Child:
    return Child("gateway", (sys.executable, "-uc", code), tmp_path / "gateway.log", shown.append)


async def test_warnings_and_what_belongs_to_them_are_shown_and_everything_is_logged(tmp_path: Path) -> None:
    shown: list[str] = []
    child = python(tmp_path, f"print({LINES!r}, end='')", shown)
    await child.start(os.environ)
    assert await child.ended() == 0
    assert [line.partition("] ")[2] for line in shown] == [
        "2026-11-22 10:00:01,000 WARNING gateway: not so well",
        "and why",
        "2026-11-22 10:00:03,000 ERROR   gateway: broken",
        "Traceback (most recent call last):",
    ]
    assert all(line.startswith("[gateway] ") for line in shown)
    assert (tmp_path / "gateway.log").read_text() == LINES


async def test_newest_lines_that_were_not_shown_are_kept(tmp_path: Path) -> None:
    child = python(tmp_path, "for n in range(100): print('INFO', n)", [])
    await child.start(os.environ)
    await child.ended()
    assert list(child.unseen)[-1] == "INFO 99"
    assert len(child.unseen) == 20


async def test_line_without_an_end_is_read_in_parts(tmp_path: Path) -> None:
    child = python(tmp_path, "import sys; sys.stdout.write('x' * 3_000_000)", [])
    await child.start(os.environ)
    assert await child.ended() == 0
    assert (tmp_path / "gateway.log").stat().st_size == 3_000_000


async def test_child_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    shown: list[str] = []
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up'); time.sleep(60)"
    child = python(tmp_path, deaf, shown)
    await child.start(os.environ)
    await eventually(lambda: shown, 10, "the child is up")
    await end_all([child], patience=0.1)
    assert await child.ended() == -9


async def test_children_die_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    parent = f"""
import asyncio, os, sys
from pathlib import Path
from cli.processes import Child
async def main():
    child = Child("c", (sys.executable, "-uc", "import os, time; print(os.getpid()); time.sleep(60)"),
                  Path({str(tmp_path / "c.log")!r}), lambda line: print(line.split()[-1], flush=True))
    await child.start(os.environ)
    await child.ended()
asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", parent, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    grandchild = int(await process.stdout.readline())
    process.kill()
    await process.wait()
    await eventually(lambda: not _lives(grandchild), 10, "the grandchild is gone")


def _lives(pid: int) -> bool:
    """Whether the process runs; one that has ended and waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
