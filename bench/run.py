"""The bench: agent alone, proxy and this project in turns, one run, one table (`make bench`)."""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import uvloop

from bench import hot_spots, table
from bench.load_client import Load, measure
from bench.systems import System, started
from bench.table import Measured

PACE_MS = 20
SETTLE = 0.2
"""Seconds between two loads, so that the end of one is not counted in the next."""


@dataclass(frozen=True)
class Scenario:
    """`load`, `times` over in each round; before it `probes` answers of one token, one by one.

    The probes are for one paced stream, which alone would give one first token in four seconds.
    """

    load: Load
    times: int = 1
    probes: int = 0

    @property
    def title(self) -> str:
        streams = "1 stream" if self.load.streams == 1 else f"{self.load.streams} streams"
        return f"{streams}, " + (f"{self.load.pace_ms} ms a token" if self.load.pace_ms else "full speed")


ONE_PACED = Scenario(Load(1, 200, PACE_MS), probes=100)
MANY_PACED = Scenario(Load(200, 200, PACE_MS, ramp=1.0))
SCENARIOS = (
    ONE_PACED,
    Scenario(Load(50, 200, PACE_MS, ramp=1.0)),
    MANY_PACED,
    Scenario(Load(1, 200, 0), times=20),
    Scenario(Load(50, 200, 0)),
    Scenario(Load(200, 200, 0)),
)
GOALS = (
    (ONE_PACED, 0, 1.0, "first token, one stream, p50"),
    (MANY_PACED, 1, 0.1, "first token, 200 paced streams, p99"),
    (MANY_PACED, 4, 1.0, "CPU per token, 200 paced streams"),
)
"""Scenario, column and the ratio to the proxy that it should not exceed."""

Results = Mapping[Scenario, Mapping[str, Measured]]


def main() -> int:
    """Run the bench. Returns 1 if a stream failed; a goal that is missed is printed, no failure."""
    options = _options()
    gc.disable()  # the client's pauses would be taken for the systems'
    with started() as systems:
        if options.profile:
            return hot_spots.show(systems[-1], lambda: _load(systems[-1], MANY_PACED.load))
        scenarios = [_shortened(each) if options.short else each for each in SCENARIOS]
        results = uvloop.run(_measured(systems, scenarios, rounds=1 if options.short else options.rounds))
    for scenario, measured in zip(SCENARIOS, results, strict=True):
        print("\n".join(table.lines(scenario.title, measured)), end="\n\n")
    for line in _goals(dict(zip(SCENARIOS, results, strict=True))):
        print(line)
    return int(any(each.failures for measured in results for each in measured.values()))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--short", action="store_true", help="one round of shorter streams")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each system (%(default)s)")
    parser.add_argument("--profile", action="store_true", help="where our processes spend their time")
    return parser.parse_args()


def _shortened(scenario: Scenario) -> Scenario:
    load = replace(scenario.load, tokens=100)
    return replace(scenario, load=load, times=min(scenario.times, 5), probes=min(scenario.probes, 30))


async def _measured(
    systems: list[System], scenarios: list[Scenario], rounds: int
) -> list[dict[str, Measured]]:
    """Every scenario with every system, in turns that change direction from round to round."""
    for system in systems:
        await measure(system.port, Load(20, 20, 0))
    results = []
    for scenario in scenarios:
        print(f"measuring {scenario.title} ...", file=sys.stderr, flush=True)
        measured = {system.name: Measured() for system in systems}
        for turn in range(rounds):
            for system in systems[:: -1 if turn % 2 else 1]:
                await _observe(system, scenario, measured[system.name])
        results.append(measured)
    return results


async def _observe(system: System, scenario: Scenario, measured: Measured) -> None:
    """One turn of one system."""
    for _ in range(scenario.probes):
        probe = await measure(system.port, Load(1, 1, 0))
        measured.first += probe.first
        measured.failures += probe.failures
    await asyncio.sleep(SETTLE)
    before = {process.name: process.cpu() for process in system.processes}
    for _ in range(scenario.times):
        answers = await measure(system.port, scenario.load)
        measured.first += answers.first
        measured.ages += answers.ages
        measured.seconds += answers.seconds
        measured.failures += answers.failures
    for process in system.processes:
        spent = process.cpu() - before[process.name]
        measured.cpu[process.name] = measured.cpu.get(process.name, 0.0) + spent
    gc.collect()


def _load(system: System, load: Load) -> None:
    """One turn, of which only failures are told."""
    for failure in uvloop.run(measure(system.port, load)).failures:
        print(f"FAILED: {failure}", file=sys.stderr)


def _goals(results: Results) -> Iterator[str]:
    for scenario, column, limit, what in GOALS:
        ratio = table.ratios(results[scenario])[column]
        verdict = "reached" if ratio <= limit else "MISSED"
        yield f"goal {verdict}: {what}: {ratio:.2f}x of the proxy's, at most {limit:g}x"


if __name__ == "__main__":
    sys.exit(main())
