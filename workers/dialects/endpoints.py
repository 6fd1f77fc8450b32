"""Addresses and headers of requests to agents, from their configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping

from pydantic import SecretStr

from shared.errors import ConfigError

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""A token of RFC 9110, section 5.6.2."""


def endpoint(base: str, path: str) -> str:
    """`base` with `path` added in front of its query; a base that ends with it already stays."""
    address, mark, query = base.partition("?")
    address = address.rstrip("/")
    return (address if address.endswith(path) else address + path) + mark + query


def headers(
    configured: Mapping[str, SecretStr],
    key: SecretStr | None,
    *,
    key_header: str = "Authorization",
    accept: str = "text/event-stream",
) -> dict[str, str]:
    """The headers of a request. Raises ConfigError for one that would be more than a header."""
    found = {"Accept": accept}
    if key is not None:
        secret = key.get_secret_value()
        found[key_header] = f"Bearer {secret}" if key_header.lower() == "authorization" else secret
    found.update((name, value.get_secret_value()) for name, value in configured.items())
    for name, text in found.items():
        if _NAME.fullmatch(name) is None or any(mark in text for mark in "\r\n\0"):
            raise ConfigError(f"the header {name!r} has a line break in it or is not a name")
    return found
