"""Places where a test makes this process fail: `BFF_FAILPOINT=after_accept:kill,before_finish:raise`.

The variable is read once, when the process starts; without it a fail point is an empty function.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping

from shared.errors import BffError, ConfigError


class FailPointHit(BffError):
    """Raised by a fail point whose action is `raise`."""


def _kill(name: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _exit(name: str) -> None:
    os._exit(70)


def _raise(name: str) -> None:
    raise FailPointHit(f"fail point {name}")


_ACTIONS: Mapping[str, Callable[[str], None]] = {"kill": _kill, "exit": _exit, "raise": _raise}


def _pass(name: str) -> None:
    """Nothing is armed."""


def armed(setting: str) -> Callable[[str], None]:
    """The function that fails at the places that `setting` names. Raises ConfigError."""
    actions: dict[str, Callable[[str], None]] = {}
    for entry in filter(None, setting.split(",")):
        name, _, action = entry.strip().partition(":")
        if action not in _ACTIONS:
            raise ConfigError(f"BFF_FAILPOINT: {entry}: expected name:action with kill, exit or raise")
        actions[name] = _ACTIONS[action]

    def fire(name: str) -> None:
        if action := actions.get(name):
            action(name)

    return fire if actions else _pass


failpoint = armed(os.environ.get("BFF_FAILPOINT", ""))
"""Fail here if this place is armed."""
