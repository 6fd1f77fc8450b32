"""Fail points do nothing unless they are armed."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from shared.errors import ConfigError
from shared.failpoints import FailPointHit, armed


def test_nothing_happens_unless_the_place_is_armed() -> None:
    armed("")("after_accept")
    armed("elsewhere:raise")("after_accept")


def test_an_armed_place_raises() -> None:
    with pytest.raises(FailPointHit):
        armed("elsewhere:kill,after_accept:raise")("after_accept")


def test_a_mistake_is_refused() -> None:
    with pytest.raises(ConfigError, match="after_accept:explode"):
        armed("after_accept:explode")


@pytest.mark.parametrize(("action", "status"), [("kill", -signal.SIGKILL), ("exit", 70)])
def test_a_process_ends_where_it_was_told_to(action: str, status: int) -> None:
    program = "from shared.failpoints import failpoint; failpoint('here'); print('passed')"
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env={"BFF_FAILPOINT": f"here:{action}"},
        capture_output=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (status, b"")
