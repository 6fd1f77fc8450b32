"""Which addresses an agent may have: any but link-local and metadata ones.

Those answer to whoever can make a server ask (cloud credentials at 169.254.169.254), and no agent
lives there. Checked on what a name resolves to, and the connection goes to the address checked.
"""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from shared.errors import AgentRejected

_FORBIDDEN = tuple(
    map(
        ip_network,
        (
            "169.254.0.0/16",
            "192.0.0.192/32",  # Oracle Cloud metadata
            "100.100.100.200/32",  # Alibaba Cloud metadata
            "168.63.129.16/32",  # Azure WireServer
            "fe80::/10",
            "fd00:ec2::/32",  # AWS metadata
            "fd20:ce::254/128",  # Google Cloud metadata
        ),
    )
)
_NAT64 = ip_network("64:ff9b::/96")


class ForbiddenAddress(OSError):
    """A name leads to an address no agent may have."""


def forbidden(address: str) -> bool:
    """Whether the textual IP `address`, or the IPv4 address inside it, is one no agent may have."""
    parsed = ip_address(address.partition("%")[0])
    return any(candidate in network for candidate in (parsed, _inner(parsed)) for network in _FORBIDDEN)


def check_literal(host: str) -> None:
    """Raises AgentRejected when `host` is itself a forbidden IP address."""
    try:
        refused = forbidden(host.strip("[]"))
    except ValueError:
        return  # a name: checked when it is resolved
    if refused:
        raise AgentRejected("the agent's address is link-local or a metadata service")


class CheckedResolver(AbstractResolver):
    """Resolves names and refuses forbidden addresses; aiohttp connects to exactly what it returns."""

    def __init__(self) -> None:
        self._resolver = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        if any(forbidden(entry["host"]) for entry in found):
            raise ForbiddenAddress("a link-local or metadata address")
        return found

    async def close(self) -> None:
        await self._resolver.close()


def _inner(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address that an IPv6 one stands for: mapped, 6to4, NAT64."""
    if isinstance(address, IPv4Address):
        return address
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address
