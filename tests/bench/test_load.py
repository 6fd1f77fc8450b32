"""The bench measures what it says: its agent and client agree, its table computes."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest

from bench.load_client import Load, measure
from bench.processes import Process, free_port, python, running
from bench.table import Measured, added, lines, ratios


@pytest.fixture(scope="module")
def agent() -> Iterator[tuple[int, Process]]:
    """A load agent: its port and its process."""
    port = free_port()
    with running("agent", python("bench.load_agent", str(port)), port=port) as process:
        yield port, process


@pytest.mark.parametrize("pace_ms", [0, 1])
async def test_every_token_of_every_stream_is_counted(agent: tuple[int, Process], pace_ms: int) -> None:
    """Five streams of thirty tokens: nothing lost, each token's age known, a first token for each."""
    answers = await measure(agent[0], Load(streams=5, tokens=30, pace_ms=pace_ms))
    assert answers.failures == []
    assert len(answers.ages) == 150
    assert len(answers.first) == 5
    assert min(answers.ages) >= 0


async def test_a_pace_is_kept(agent: tuple[int, Process]) -> None:
    """Twenty tokens 5 ms apart take at least the nineteen pauses."""
    answers = await measure(agent[0], Load(streams=1, tokens=20, pace_ms=5))
    assert answers.seconds >= 19 * 0.005


async def test_a_stream_that_is_refused_is_a_failure(agent: tuple[int, Process]) -> None:
    """An order for no token at all is not answered with the one that was sent."""
    answers = await measure(agent[0], Load(streams=1, tokens=-1, pace_ms=0))
    assert answers.failures == ["status 400"]


async def test_cpu_time_grows_with_work(agent: tuple[int, Process]) -> None:
    """The agent's CPU time after two thousand tokens is more than before."""
    port, process = agent
    before = process.cpu()
    await measure(port, Load(streams=10, tokens=200, pace_ms=0))
    assert process.cpu() > before


def test_a_process_that_does_not_listen_is_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    """It is named, and what it said is shown."""
    command = python("bench.load_agent", "no-port")
    with (
        pytest.raises(RuntimeError, match="agent does not listen"),
        running("agent", command, port=free_port()),
    ):
        pass
    assert "ValueError" in capfd.readouterr().err


def test_times_are_differences_and_ratios_go_to_the_proxy() -> None:
    """Twice the proxy's added time is 2x; where the proxy adds nothing there is no ratio."""
    direct = Measured(first=[1.0], ages=[0.5], seconds=1.0, cpu={"agent": 1e-6})
    proxy = Measured(first=[3.0], ages=[0.5], seconds=1.0, cpu={"proxy": 10e-6})
    bff = Measured(first=[5.0], ages=[0.7], seconds=1.0, cpu={"gateway": 2e-6, "worker": 3e-6})
    scenario = {"direct": direct, "proxy": proxy, "bff": bff}
    assert added(bff, direct)[0] == pytest.approx(4.0)
    assert ratios(scenario)[0] == pytest.approx(2.0)
    assert math.isnan(ratios(scenario)[2])
    assert ratios(scenario)[4] == pytest.approx(0.5)
    assert "worker 3.0" in "\n".join(lines("one", scenario))


def test_a_failed_stream_is_named_in_the_table() -> None:
    """Nobody takes a table for good that misses answers."""
    good = Measured(first=[1.0], ages=[0.5], seconds=1.0)
    bad = Measured(first=[1.0], ages=[0.5], seconds=1.0, failures=["status 503"])
    table = "\n".join(lines("one", {"direct": good, "proxy": good, "bff": bad}))
    assert "FAILED: bff: 1 streams, the first: status 503" in table
