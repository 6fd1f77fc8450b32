"""The lock files: every package with its hashes, no registry address, made from pyproject.toml alone.

`python scripts/lock.py` writes them and keeps what is pinned; `--upgrade` takes the newest;
`--check` says what is wrong with them and needs no network.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LOCKS = {
    "requirements-build.lock": ("build",),
    "requirements.lock": ("runtime", "broker"),
    "requirements-dev.lock": ("runtime", "broker", "dev", "build"),
}
COMPILE = (
    *("uv", "pip", "compile", "--quiet", "--universal", "--python-version", "3.11"),
    *("--generate-hashes", "--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links"),
)


def main() -> int:
    """Write the lock files, or check them. Returns the exit status."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    if "--check" in sys.argv[1:]:
        complaints = [complaint for lock in LOCKS for complaint in wrong_with(lock, project)]
        print(
            "\n".join(complaints) or "lock files: in step with pyproject.toml, every package has its hashes"
        )
        return bool(complaints)
    for lock in LOCKS:
        write(lock, project, upgrade="--upgrade" in sys.argv[1:])
    return 0


def wanted(lock: str, project: dict[str, Any]) -> str:
    """The requirements that `lock` has to satisfy, one a line."""
    groups = {
        "build": project["build-system"]["requires"],
        "runtime": project["project"]["dependencies"],
        **project["project"]["optional-dependencies"],
    }
    return "\n".join(line for group in LOCKS[lock] for line in groups[group])


def title(lock: str, project: dict[str, Any]) -> str:
    """The first line of `lock`, which changes with what is wanted."""
    digest = hashlib.sha256(wanted(lock, project).encode()).hexdigest()[:16]
    return f"# Made by `make lock` for the requirements {digest} of pyproject.toml; do not edit."


def write(lock: str, project: dict[str, Any], *, upgrade: bool) -> None:
    """Resolve and write one lock file. Raises CalledProcessError when that cannot be done."""
    path = ROOT / lock
    command = [sys.executable, "-m", *COMPILE, "--output-file", lock, *["--upgrade"] * upgrade, "-"]
    if lock == "requirements-dev.lock":  # what is tested is what the image holds
        command += ["--constraint", "requirements.lock"]
    wants = wanted(lock, project)
    subprocess.run(command, cwd=ROOT, input=wants, text=True, check=True, stdout=subprocess.DEVNULL)
    path.write_text(f"{title(lock, project)}\n{path.read_text('utf-8')}", "utf-8")


def wrong_with(lock: str, project: dict[str, Any]) -> list[str]:
    """What is wrong with one lock file, a line each."""
    path = ROOT / lock
    text = path.read_text("utf-8") if path.exists() else ""
    complaints = []
    if not text.startswith(title(lock, project)):
        complaints.append(f"{lock}: does not belong to the requirements of pyproject.toml; run `make lock`")
    complaints += [f"{lock}: holds an address: {line.strip()}" for line in text.splitlines() if "://" in line]
    complaints += [
        f"{lock}: has no hash for {name}"
        for name in re.findall(r"^([\w.-]+)==(?![^\n]*\\\n +--hash=)", text, re.M)
    ]
    return complaints


if __name__ == "__main__":
    sys.exit(main())
