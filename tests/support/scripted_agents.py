"""The scripted agent server as a child process, told what to play over HTTP."""

from __future__ import annotations

import base64
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from tests.support.procs import Child, python
from tests.support.wait import wait_until


class AgentProcess:
    """`with AgentProcess(directory) as agents:` gives `agents.url`; options are those of
    `python -m cli.scripted`."""

    def __init__(self, directory: Path, *options: str) -> None:
        self._child = Child(python("cli.scripted", "--control", *options), directory / "agents.log")

    def __enter__(self) -> Self:
        self._child.start()
        self.url = self._child.wait_for_log("http").strip()
        self._client = httpx.Client(base_url=self.url, trust_env=False, verify=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()
        self._child.__exit__(kind, error, trace)

    def script(self, name: str, *scripts: dict[str, Any]) -> str:
        """Set what calls under `name` do (fields of `cli.scripted.Script`); gives the base URL for them."""
        order = {"name": name, "scripts": [_with_base64(script) for script in scripts or ({},)]}
        return str(self._post("/_script", order)["url"])

    def stats(self) -> dict[str, Any]:
        answer: dict[str, Any] = self._client.get("/_stats").raise_for_status().json()
        return answer

    def calls(self, script: str) -> list[dict[str, Any]]:
        """The calls under that name so far."""
        return [call for call in self.stats()["calls"] if call["script"] == script]

    def wait_for_calls(self, script: str, count: int = 1, deadline: float = 10.0) -> list[dict[str, Any]]:
        """The calls under that name as soon as there are `count`."""

        def enough() -> list[dict[str, Any]]:
            calls = self.calls(script)
            return calls if len(calls) >= count else []

        return wait_until(enough, deadline, f"{count} calls under {script}")

    def release(self, name: str | None = None) -> None:
        self._post("/_release", {"name": name})

    def reset(self) -> None:
        """Forget scripts and counts."""
        self._post("/_reset", {})

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = self._client.post(path, json=body).raise_for_status().json()
        return answer


def _with_base64(script: dict[str, Any]) -> dict[str, Any]:
    return {
        name: base64.b64encode(value).decode() if isinstance(value, bytes) else value
        for name, value in script.items()
    }
