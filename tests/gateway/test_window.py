"""What a gateway keeps of a run."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from gateway.window import Limits, Window
from shared.cursor import Cursor
from shared.stream_log import Entry


def texts(numbers: Iterable[int], size: int = 10) -> list[Entry]:
    """Entries before any attempt."""
    return [Entry(Cursor(0, number), "text.delta", b"x" * size) for number in numbers]


async def test_no_more_events_are_kept_than_allowed() -> None:
    window = Window("r", Limits(1 << 20, 256))
    for number in range(1, 1000):
        assert window.offer(texts([number]))
        await asyncio.sleep(0)
        assert len(window.track.entries) <= 256
    assert window.track.end == 999
    assert window.newest == texts([999])[0]


async def test_no_more_bytes_are_kept_than_allowed_but_for_the_last_event() -> None:
    window = Window("r", Limits(1000, 256))
    for number in range(1, 100):
        assert window.offer(texts([number]))
        await asyncio.sleep(0)
        assert window.track.size <= 1000
    assert window.offer(texts([100], 5000))
    await asyncio.sleep(0)
    assert window.track.entries == texts([100], 5000)


async def test_who_waits_for_more_sees_all_of_it_before_it_is_trimmed() -> None:
    window = Window("r", Limits(1 << 20, 256))
    seen: list[int] = []

    async def wait() -> None:
        await window.changed()
        seen.append(len(window.track.entries))

    waiting = asyncio.create_task(wait())
    await asyncio.sleep(0)
    window.offer(texts(range(1, 600)))
    await waiting
    assert seen == [599]
    await asyncio.sleep(0)
    assert len(window.track.entries) == 128
