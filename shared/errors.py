"""The exception tree, cut by whose fault it is.

BffError
├── ConfigError            the operator: agents.yaml or the environment
├── BrokerError            Redis
│   ├── BrokerUnavailable  out for the moment: try again
│   ├── BrokerFull         refuses writes for want of memory
│   ├── BrokerUnfit        will never do: version, eviction policy, access
│   └── WrongType          holds something else under one of our keys
├── RequestError           the front end: becomes an HTTP status before the first byte
└── AgentError             the agent: becomes `run.failed`
    ├── AgentUnavailable   refused, unreachable, overloaded: may be tried again
    ├── AgentRejected      answered with an error that a repetition would not change
    ├── AgentTimeout       silent for too long
    ├── AgentProtocolError said something its dialect does not know
    │   └── AgentTruncated ended without its own end marker
    └── AgentTooLarge      said more than a limit allows
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class BffError(Exception):
    """Anything this project raises on purpose."""


class ConfigError(BffError):
    """The configuration cannot be used; the text names the place, the reason and the remedy.

    `place` leads from the entry of an agent to the field that is wrong.
    """

    def __init__(self, reason: str, place: tuple[str | int, ...] = ()) -> None:
        super().__init__(": ".join((".".join(map(str, place)), reason)) if place else reason)
        self.reason = reason
        self.place = place


@contextmanager
def at(*place: str | int) -> Iterator[None]:
    """Names the field in a ConfigError that leaves the block."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(error.reason, (*place, *error.place)) from None


class BrokerError(BffError):
    """Redis did not do what was asked."""


class BrokerUnavailable(BrokerError):
    """Redis is out of reach or not ready for the moment."""


class BrokerFull(BrokerError):
    """Redis refuses writes because its memory is used up."""


class BrokerUnfit(BrokerError):
    """This Redis cannot serve as the broker, now or later."""


class WrongType(BrokerError):
    """Something else stands where a value of ours should."""


class RequestError(BffError):
    """A front end asked for something that cannot be done.

    `status` is the HTTP status, `code` a stable word for programs, `field` the part of the
    request that is wrong, `retry_after` in seconds.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        field: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.field = field
        self.retry_after = retry_after


class AgentError(BffError):
    """The agent failed; the text is safe to show, `code` goes into `run.failed`.

    `agent_code`, `agent_type` and `agent_status` are the agent's own words for it, where it has them;
    `retry_after` in seconds.
    """

    code = "agent_error"
    retryable = False

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        retryable: bool | None = None,
        retry_after: float | None = None,
        agent_code: str | int | None = None,
        agent_type: str | None = None,
        agent_status: int | None = None,
    ) -> None:
        super().__init__(message)
        self.agent_code = agent_code
        self.agent_type = agent_type
        self.agent_status = agent_status
        if code is not None:
            self.code = code
        if retryable is not None:
            self.retryable = retryable
        self.retry_after = retry_after


class AgentUnavailable(AgentError):
    """Not reached, or too busy: the same request may succeed later (`retry_after` in seconds)."""

    code = "agent_unavailable"
    retryable = True


class AgentRejected(AgentError):
    """The agent refused this request for good."""

    code = "agent_rejected"


class AgentTimeout(AgentError):
    """The agent kept silent beyond a deadline."""

    code = "timeout"
    retryable = True


class AgentProtocolError(AgentError):
    """The agent sent something its dialect does not allow."""

    code = "agent_protocol"


class AgentTruncated(AgentProtocolError):
    """The body ended without the dialect's own end marker."""

    code = "interrupted"
    retryable = True


class AgentTooLarge(AgentError):
    """A line, a frame or the whole answer is over its limit."""

    code = "too_large"
