"""Shows a run on a terminal: its answer on standard output, everything about it on standard error."""

from __future__ import annotations

import sys
from typing import Any, TextIO

import msgspec

from cli.client import NativeEvent

_CONTROLS = {code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}
"""An agent's text must not steer the terminal (ECMA-48 control functions)."""

_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


class Screen:
    """One run for a person. `exit_code` is 0 once the run has completed."""

    def __init__(self, out: TextIO | None = None, err: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self._err = err or sys.stderr
        self._said = False
        self._open: TextIO | None = None
        self._results: list[tuple[str, Any]] = []
        self.exit_code = 1

    def show(self, event: NativeEvent) -> None:
        """What a person wants to know of one event."""
        data = event.data
        match event.type:
            case "text.delta":
                self._say(data["text"])
            case "text.replace":
                self.note("the answer was replaced by its agent:")
                self._say(data["text"])
            case "reasoning.delta":
                self._think(data["text"])
            case "step":
                self.note(f"{data['status']}: {data.get('title') or data['name']}")
            case "tool.end":
                self.note(f"tool {data['name']} {_json(data['arguments'])}")
            case "tool.result":
                self.note(f"tool result {_json(data['result'])}")
            case "data":
                self._results.append((data["name"], data["value"]))
            case "source" | "file":
                self.note(f"{event.type}: {data.get('url') or data.get('title') or data.get('name') or ''}")
            case "input.required":
                self.note(f"a person must answer: {_json(data['form'])}")
            case "run.accepted":
                for warning in data.get("warnings", ()):
                    self.note(f"warning: {warning}")
            case "run.queued":
                self.note(f"queued behind {data['position']} others")
            case "reset":
                self._reset(data.get("reason", ""))
            case "run.completed":
                self._completed(data)
            case "run.failed":
                self._show_results()
                self.note(f"failed ({data['code']}): {data['message']}")
            case "run.stopped":
                self._show_results()
                self.note(f"stopped by {data['by']}")

    def note(self, text: str) -> None:
        """A line on standard error."""
        self._end_line()
        self._write(self._err, text, dim=True)
        self._end_line()

    def _completed(self, data: dict[str, Any]) -> None:
        self._show_results()
        usage = data.get("usage") or {}
        tokens = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in usage.items())
        self.note(data["finish_reason"] + (f", {tokens}" if tokens else ""))
        self.exit_code = 0

    def _reset(self, reason: str) -> None:
        self._said = False
        self._results.clear()
        self.note(f"the answer begins again ({reason}); what stands above is void")

    def _show_results(self) -> None:
        """Structured output: the answer itself when there was no text, else beside it."""
        for name, value in self._results:
            if self._said:
                self.note(f"{name}: {_json(value)}")
            else:
                self._write(self._out, msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
        self._end_line()

    def _say(self, text: str) -> None:
        self._said = True
        if self._open is self._err:
            self._end_line()
        self._write(self._out, text)

    def _think(self, text: str) -> None:
        if self._open is self._out:
            self._end_line()
        self._write(self._err, text, dim=True)

    def _write(self, stream: TextIO, text: str, *, dim: bool = False) -> None:
        if not text:
            return
        ends_line = text.endswith("\n")
        if stream.isatty():
            text = text.translate(_CONTROLS)
            text = f"{_DIM}{text}{_PLAIN}" if dim else text
        stream.write(text)
        stream.flush()
        self._open = None if ends_line else stream

    def _end_line(self) -> None:
        if self._open is not None:
            self._open.write("\n")
            self._open.flush()
            self._open = None


class JsonLines:
    """One run for a program: each event as a line of JSON, as the gateway's NDJSON has it."""

    def __init__(self, out: TextIO | None = None, err: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self._err = err or sys.stderr
        self.exit_code = 1

    def show(self, event: NativeEvent) -> None:
        """The event on a line."""
        line = {"type": event.type, **event.data}
        if event.id is not None:
            line = {"id": event.id, **line}
        self._out.write(_json(line) + "\n")
        self._out.flush()
        if event.type == "run.completed":
            self.exit_code = 0

    def note(self, text: str) -> None:
        """A line on standard error."""
        self._err.write(text + "\n")
        self._err.flush()


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
