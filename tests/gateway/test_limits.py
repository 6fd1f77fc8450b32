"""Windows that slide, and slots."""

from __future__ import annotations

import pytest

from gateway.limits import SlidingWindow, Slots
from shared.errors import RequestError


class Clock:
    def __init__(self) -> None:
        self.now = 600.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("start", [0.0, 0.5, 30.0, 59.9])
def test_waiting_as_long_as_told_makes_room(start: float) -> None:
    clock = Clock()
    window = SlidingWindow(60.0, clock)
    clock.now += start
    for _ in range(5):
        while wait := window.wait("a", 3):
            assert 0 < wait <= 120
            clock.now += wait + 1e-6
        window.add("a")


def test_no_more_than_the_limit_pass_in_any_window() -> None:
    clock = Clock()
    window = SlidingWindow(60.0, clock)
    passed = []
    for _ in range(2000):
        if not window.wait("a", 10):
            window.add("a")
            passed.append(clock.now)
        clock.now += 0.37
    busiest = max(sum(1 for other in passed if 0 <= other - one < 60) for one in passed)
    assert busiest <= 20
    assert len(passed) >= 100


def test_keys_do_not_share_a_window_and_are_forgotten() -> None:
    window = SlidingWindow(60.0, Clock())
    window.add("a")
    assert window.wait("a", 1) > 0
    assert window.wait("b", 1) == 0
    for number in range(10_000):
        window.add(str(number))
    assert window.wait("a", 1) == 0


def test_a_slot_is_free_again_when_its_block_is_left() -> None:
    slots = Slots()
    with slots.hold("a", 1):
        with pytest.raises(RequestError), slots.hold("a", 1):
            pass
        with slots.hold("b", 1):
            pass
    with slots.hold("a", 1):
        pass
