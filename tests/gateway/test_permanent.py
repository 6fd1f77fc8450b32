"""Work that goes on, whatever happens to it."""

from __future__ import annotations

import asyncio

import pytest

from gateway.permanent import permanent
from tests.support.wait import eventually


@pytest.mark.parametrize("fails", [True, False])
async def test_work_that_ends_is_logged_and_begins_again(
    fails: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("gateway.permanent.PAUSE", 0.01)
    begun: list[int] = []

    async def work() -> None:
        begun.append(1)
        if fails:
            raise RuntimeError("unforeseen")

    async with permanent("the work", work):
        await eventually(lambda: len(begun) > 2, 5, "it began again")
    assert "the work" in caplog.text


async def test_it_ends_with_its_block() -> None:
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with permanent("the work", work):
        await asyncio.sleep(0)
    assert ended.is_set()
