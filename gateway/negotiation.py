"""Which of the formats we have a client wants (RFC 9110 section 12.5.1), and its `Prefer: wait`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from shared.errors import RequestError

_WAIT = re.compile(r"(?:^|[,;])\s*wait\s*=\s*\"?([0-9]{1,6})\"?", re.IGNORECASE)


def preferred(accept: str, offers: Sequence[str]) -> str | None:
    """The media type among `offers` that an `Accept` header likes best, None when it likes none.

    A type that is named wins over a wildcard of the same weight; then the client's order counts, then
    ours. An absent header likes all.
    """
    ranges = _ranges(accept or "*/*")
    best: tuple[float, int, int] | None = None
    chosen = None
    for offer in offers:
        named, place, weight = max((_match(wanted, offer), -at, w) for at, (wanted, w) in enumerate(ranges))
        score = (weight, named, place)
        if named and weight > 0 and (best is None or score > best):
            best, chosen = score, offer
    return chosen


def wait_seconds(prefer: str) -> int | None:
    """The N of `Prefer: wait=N` (RFC 7240 section 4.3), None when it is not asked for."""
    match = _WAIT.search(prefer)
    return int(match[1]) if match else None


def not_acceptable(offers: Sequence[str]) -> RequestError:
    """What a client hears that wants none of `offers`."""
    return RequestError(
        406, "not_acceptable", f"this can be had as {', '.join(offers)}; name one of them", field="Accept"
    )


def _ranges(accept: str) -> list[tuple[str, float]]:
    ranges = []
    for part in accept.split(",")[:32]:
        name, *parameters = part.split(";")
        ranges.append((name.strip().lower(), _weight(parameters)))
    return ranges


def _weight(parameters: Sequence[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "q":
            try:
                return min(max(float(value), 0.0), 1.0)
            except ValueError:
                return 1.0
    return 1.0


def _match(wanted: str, offer: str) -> int:
    """3 for the type itself, 2 for `text/*`, 1 for `*/*`, 0 for no match."""
    if wanted == offer:
        return 3
    if wanted == "*/*":
        return 1
    return 2 if wanted == offer.partition("/")[0] + "/*" else 0
