"""The ends that a run gets from the system and not from its agent: each has one wording."""

from __future__ import annotations

from shared.events import RunFailed


def interrupted() -> RunFailed:
    """Its worker was lost after something was shown, or it must not be repeated."""
    return RunFailed(code="interrupted", message="The run was interrupted. Start it again.", retryable=True)


def expired() -> RunFailed:
    """It waited for a worker beyond its queue deadline."""
    return RunFailed(code="expired", message="No worker was free in time.", retryable=True)


def overdue() -> RunFailed:
    """It went on beyond its deadline and its worker did not end it."""
    return RunFailed(code="timeout", message="The run was not finished by its deadline.", retryable=True)


def poisoned() -> RunFailed:
    """All its attempts were lost with their workers."""
    return RunFailed(code="poisoned", message="The run was lost with its worker too often.")
