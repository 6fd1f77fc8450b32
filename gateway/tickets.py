"""Passes to the events of one run, for EventSource, which cannot send a key.

A ticket is asked for with a key, stands in a URL, lives 30 seconds and works once. Its first use
sets a cookie that is valid for the same run's events as long as the run can be read, so that the
browser's own reconnects are authorised. Both are signed with the server secret over everything
they say and over the run, which stands in the URL only.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
import time
from dataclasses import dataclass

from shared import keys
from shared.broker import Broker

COOKIE = "bff_run"
"""One name for all runs: the cookie's Path tells them apart."""

TICKET_SECONDS = 30

_FORM = re.compile(
    r"(ticket|cookie)\.([0-9]{1,12})\.([A-Za-z0-9_-]{22})\.([A-Za-z0-9_-]*)\.([0-9a-f]{64})", re.ASCII
)


@dataclass(frozen=True)
class Pass:
    """A pass that was signed by us and has not expired; `expires` in Unix seconds."""

    tenant: str
    expires: int
    nonce: str


class Tickets:
    """Issues and checks passes."""

    def __init__(self, secret: bytes, broker: Broker) -> None:
        self._secret = secret
        self._broker = broker

    def ticket(self, run: str, tenant: str) -> str:
        """A ticket for one use within 30 seconds."""
        return self._signed("ticket", run, tenant, TICKET_SECONDS)

    def cookie(self, run: str, tenant: str, seconds: int) -> str:
        """The value of the cookie that a ticket's first use sets."""
        return self._signed("cookie", run, tenant, seconds)

    async def use(self, text: str, run: str) -> Pass | None:
        """The ticket's pass if this is its first use, else None. Raises BrokerError."""
        found = self._read("ticket", text, run)
        if found is None:
            return None
        digest = hashlib.sha256(found.nonce.encode()).hexdigest()[:32]
        first = await self._broker.call("SET", keys.ticket(digest), 1, "NX", "EX", TICKET_SECONDS + 1)
        return found if first else None

    def check_cookie(self, text: str, run: str) -> Pass | None:
        """The cookie's pass, or None when it is not valid for this run now."""
        return self._read("cookie", text, run)

    def _signed(self, kind: str, run: str, tenant: str, seconds: int) -> str:
        expires, nonce = int(time.time()) + seconds, secrets.token_urlsafe(16)
        name = base64.urlsafe_b64encode(tenant.encode()).decode().rstrip("=")
        return f"{kind}.{expires}.{nonce}.{name}.{self._mac(kind, run, name, expires, nonce)}"

    def _read(self, kind: str, text: str, run: str) -> Pass | None:
        match = _FORM.fullmatch(text) if len(text) <= 512 else None
        if match is None or match[1] != kind:
            return None
        expires, nonce, name, mac = int(match[2]), match[3], match[4], match[5]
        if not hmac.compare_digest(mac, self._mac(kind, run, name, expires, nonce)) or expires <= time.time():
            return None
        try:
            tenant = base64.urlsafe_b64decode(name + "=" * (-len(name) % 4)).decode()
        except (binascii.Error, UnicodeDecodeError):
            return None
        return Pass(tenant, expires, nonce)

    def _mac(self, kind: str, run: str, name: str, expires: int, nonce: str) -> str:
        said = "\0".join(("pass", kind, run, name, str(expires), nonce))
        return hmac.new(self._secret, said.encode(), hashlib.sha256).hexdigest()
