"""Waiting ends with the condition's value, or says what it waited for."""

from __future__ import annotations

import pytest

from tests.support.wait import eventually, wait_until


def test_the_first_true_value_is_given() -> None:
    values = iter([0, "", None, 7, 8])
    assert wait_until(lambda: next(values)) == 7


async def test_coroutine_functions_are_awaited() -> None:
    values = iter([False, True])

    async def condition() -> bool:
        return next(values)

    assert await eventually(condition)


def test_a_wait_that_fails_says_for_what() -> None:
    with pytest.raises(TimeoutError, match=r"not within 0.02 s: the moon .last value: 0."):
        wait_until(lambda: 0, 0.02, "the moon")
