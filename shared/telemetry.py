"""Logs: one line per step of a run's life, the run's id on each, never what it says."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any


class _RunLog(logging.LoggerAdapter[logging.Logger]):
    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        assert self.extra is not None
        return f"{self.extra['run']} {msg}", kwargs


def run_log(log: logging.Logger, run: str) -> logging.LoggerAdapter[logging.Logger]:
    """`log` with the run's id in front of each line."""
    return _RunLog(log, {"run": run})
