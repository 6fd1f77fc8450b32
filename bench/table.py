"""What was measured, as a table of differences to the agent alone and ratios to the proxy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

_COLUMNS = ("first +p50", "first +p99", "token +p50", "token +p99", "CPU us/token", "tokens/s")


@dataclass
class Measured:
    """All rounds of one system in one scenario. Times in milliseconds, CPU by process in seconds."""

    first: list[float] = field(default_factory=list)
    ages: list[float] = field(default_factory=list)
    seconds: float = 0.0
    cpu: dict[str, float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    @property
    def figures(self) -> tuple[float, ...]:
        """The columns, absolute."""
        cpu = sum(self.cpu.values())
        return (
            _quantile(self.first, 0.5),
            _quantile(self.first, 0.99),
            _quantile(self.ages, 0.5),
            _quantile(self.ages, 0.99),
            1e6 * cpu / max(1, len(self.ages)),
            len(self.ages) / self.seconds,
        )

    @property
    def cpu_by_process(self) -> str:
        each = (f"{name} {1e6 * cpu / max(1, len(self.ages)):.1f}" for name, cpu in self.cpu.items())
        return ", ".join(each)


def added(system: Measured, direct: Measured) -> tuple[float, ...]:
    """The columns of `system`, with the times as differences to `direct`."""
    times = tuple(mine - bare for mine, bare in zip(system.figures[:4], direct.figures[:4], strict=True))
    return times + system.figures[4:]


def ratios(scenario: Mapping[str, Measured]) -> tuple[float, ...]:
    """Each column of ours over the proxy's; not a number where the proxy adds nothing measurable."""
    ours, proxys = (added(scenario[name], scenario["direct"]) for name in ("bff", "proxy"))
    return tuple(
        mine / theirs if theirs > 0 else float("nan") for mine, theirs in zip(ours, proxys, strict=True)
    )


def lines(title: str, scenario: Mapping[str, Measured]) -> Iterable[str]:
    """One scenario's part of the table."""
    direct = scenario["direct"]
    yield _row(title, _COLUMNS)
    yield _row("  direct (absolute)", map(_number, direct.figures), direct.cpu_by_process)
    for name in ("proxy", "bff"):
        system = scenario[name]
        yield _row(f"  {name}", map(_number, added(system, direct)), system.cpu_by_process)
    yield _row("  bff / proxy", (f"{ratio:.2f}x" for ratio in ratios(scenario)))
    for name, system in scenario.items():
        if system.failures:
            yield f"  FAILED: {name}: {len(system.failures)} streams, the first: {system.failures[0]}"


def _row(title: str, cells: Iterable[str], remark: str = "") -> str:
    return f"{title:<32}" + "".join(f"{cell:>14}" for cell in cells) + f"   {remark}".rstrip()


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.2f}"


def _quantile(values: list[float], share: float) -> float:
    """The nearest-rank quantile; not a number without values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")
