"""A child process that cannot outlive its parent, also when that is killed."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


def die_with_parent(number: signal.Signals = signal.SIGTERM) -> Callable[[], None] | None:
    """What to pass as `preexec_fn`: the kernel sends `number` when the thread that started the child
    ends (prctl(2), PR_SET_PDEATHSIG). None where the kernel has no such thing."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()

    def bind() -> None:
        prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # it ended between fork and prctl
            os.kill(os.getpid(), number)

    return bind
