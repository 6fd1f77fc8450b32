"""Who asks: tenants by their keys, one run's viewers by their passes, and the machine's own user.

A key is `bff_<id>_<secret>`; only the keyed hash of its secret is stored, and that hash is no key.
Without `clients:` in the configuration there are no keys: then the gateway listens on loopback only
and refuses whatever a page of another origin or host name could send.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from starlette.requests import Request

from gateway.limits import SlidingWindow
from gateway.tickets import COOKIE, Pass, Tickets
from shared.config import Client, ClientKey, Limits
from shared.errors import ConfigError, RequestError

Scope = Literal["run", "read", "admin"]

LOCAL = "local"
"""The tenant of a gateway without keys."""

FAILURES_PER_MINUTE = 60
"""Wrong keys from one address before it is no longer listened to."""

_KEY_FORM = re.compile(r"bff_([a-z0-9]{8,32})_([A-Za-z0-9_-]{1,256})", re.ASCII)
_LOCAL_HOST = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:[0-9]{1,5})?", re.ASCII | re.IGNORECASE)
_UNKNOWN_KEY = ClientKey(id="00000000", hash="0" * 64)
"""What an unknown key is compared with, so that it takes as long as a known one."""


@dataclass(frozen=True)
class Caller:
    """Whom a request comes from and what it may do. With `run` set: read that run's events, no more."""

    tenant: str
    scopes: frozenset[str]
    agents: tuple[str, ...] = ("*",)
    default_agent: str | None = None
    limits: Limits = field(default_factory=Limits)
    run: str | None = None
    alone: bool = False
    """The gateway has no keys, and so no other tenant."""
    new_pass: Pass | None = None
    """The ticket that was used just now; its cookie is to be set."""

    @property
    def holds_pass(self) -> bool:
        """Whether a signature of ours says that the run is this caller's."""
        return self.run is not None

    def may_ask(self, agent: str) -> bool:
        """Whether the key names this agent."""
        return "*" in self.agents or agent in self.agents

    def need(self, scope: Scope) -> None:
        """Raise RequestError (403) unless the key has `scope`; `admin` has them all."""
        if scope not in self.scopes and "admin" not in self.scopes:
            raise RequestError(403, "scope_missing", f"this key lacks the scope `{scope}`; use another key")


def new_key(name: str, secret: bytes) -> tuple[str, ClientKey]:
    """A new key for the tenant `name`: its text, shown once, and what agents.yaml keeps of it.

    `secret` is the server secret. The key's id begins with letters of the name, to be known by.
    """
    letters = re.sub(r"[^a-z]", "", name.lower())[:16] or "key"
    key_id, text = letters + secrets.token_hex(6), secrets.token_urlsafe(32)
    return f"bff_{key_id}_{text}", ClientKey(id=key_id, hash=_hashed(text, secret))


def check_reach(host: str, clients: Mapping[str, Client]) -> None:
    """Refuse to offer a gateway without keys to a network. Raises ConfigError."""
    if not clients and not _is_loopback(host):
        raise ConfigError(
            f"without `clients:` in the configuration anybody could use this gateway, so it may not listen on"
            f" {host}: make a key with `bff keys new NAME`, or set BFF_HOST=127.0.0.1"
        )


class Keyring:
    """The keys of all tenants, by id."""

    def __init__(self, clients: Mapping[str, Client], secret: bytes) -> None:
        self._secret = secret
        self._keys = {key.id: (tenant, key) for tenant, client in clients.items() for key in client.keys}
        self._limits = {tenant: client.limits for tenant, client in clients.items()}

    def find(self, text: str, now: datetime) -> Caller | None:
        """Whose key this is, None when it is nobody's or has expired."""
        match = _KEY_FORM.fullmatch(text)
        key_id, key_secret = match.groups() if match else ("", text[:256])
        tenant, key = self._keys.get(key_id, ("", _UNKNOWN_KEY))
        same = hmac.compare_digest(_hashed(key_secret, self._secret), key.hash)
        if not same or not tenant or (key.expires is not None and _aware(key.expires) <= now):
            return None
        return Caller(tenant, frozenset(key.scopes), key.agents, key.default_agent, self._limits[tenant])

    def limits(self, tenant: str) -> Limits | None:
        """The limits of a tenant, None when there is none of that name."""
        return self._limits.get(tenant)


class Authenticator:
    """Tells who a request comes from, or refuses it with a RequestError."""

    def __init__(
        self, clients: Mapping[str, Client], secret: bytes, tickets: Tickets, origins: tuple[str, ...]
    ) -> None:
        self._keyring = Keyring(clients, secret) if clients else None
        self._tickets = tickets
        self._origins = frozenset(origins)
        self._failures = SlidingWindow()
        self._requests = SlidingWindow()

    def caller(self, request: Request) -> Caller:
        """Whose request this is: 401, 403 or 429 when it is refused."""
        caller = self._local(request) if self._keyring is None else self._by_key(self._keyring, request)
        return self._counted(caller)

    async def viewer(self, request: Request, run: str) -> Caller:
        """The same for the events of one run, which a pass opens too."""
        if self._keyring is None or _credentials(request):
            return self.caller(request)
        caller = await self._by_pass(self._keyring, request, run)
        if caller is None:
            return self.caller(request)
        self._refuse_foreign_origin(request)
        return self._counted(caller)

    def _counted(self, caller: Caller) -> Caller:
        limit = caller.limits.requests_per_minute
        if wait := self._requests.wait(caller.tenant, limit):
            raise RequestError(
                429,
                "too_many_requests",
                f"this client may send {limit} requests a minute to one gateway",
                retry_after=int(wait) + 1,
            )
        self._requests.add(caller.tenant)
        return caller

    def _by_key(self, keyring: Keyring, request: Request) -> Caller:
        address = request.client.host if request.client else ""
        if wait := self._failures.wait(address, FAILURES_PER_MINUTE):
            raise RequestError(
                429, "too_many_failures", "too many wrong keys from this address", retry_after=int(wait) + 1
            )
        given = _credentials(request)
        if not given:
            raise RequestError(
                401,
                "key_missing",
                "send a key as `Authorization: Bearer <key>` or `X-Api-Key: <key>`; never in the address",
            )
        caller = keyring.find(given.pop(), datetime.now(UTC)) if len(given) == 1 else None
        if caller is None:
            self._failures.add(address)
            raise RequestError(401, "key_unknown", "this key is unknown or has expired; ask for a new one")
        return caller

    async def _by_pass(self, keyring: Keyring, request: Request, run: str) -> Caller | None:
        cookie, ticket = request.cookies.get(COOKIE), request.query_params.get("ticket")
        found = self._tickets.check_cookie(cookie, run) if cookie else None
        used = await self._tickets.use(ticket, run) if found is None and ticket else None
        either = found or used
        limits = keyring.limits(either.tenant) if either else None
        if either is None or limits is None:
            return None
        return Caller(either.tenant, frozenset(("read",)), (), None, limits, run, new_pass=used)

    def _local(self, request: Request) -> Caller:
        """The user of this machine: not a page of a foreign origin, nor one behind a name that was
        made to point here (DNS rebinding)."""
        if not _LOCAL_HOST.fullmatch(request.headers.get("host", "")):
            raise RequestError(
                403,
                "host_refused",
                "without keys this gateway answers to 127.0.0.1, localhost and [::1] only;"
                " configure `clients:` to serve other names",
                field="Host",
            )
        self._refuse_foreign_origin(request)
        if request.method == "POST" and _media_type(request) != "application/json" and _has_body(request):
            raise RequestError(
                415,
                "json_expected",
                "without keys every body needs `Content-Type: application/json`",
                field="Content-Type",
            )
        return Caller(LOCAL, frozenset(("run", "read", "admin")), alone=True)

    def _refuse_foreign_origin(self, request: Request) -> None:
        origin = request.headers.get("origin")
        own = f"{request.url.scheme}://{request.headers.get('host', '')}"
        if origin is not None and origin.lower() != own.lower() and origin not in self._origins:
            raise RequestError(
                403,
                "origin_refused",
                "pages of this origin may not call; add it to BFF_CORS_ORIGINS if they should",
                field="Origin",
            )


def _credentials(request: Request) -> set[str]:
    """The keys that the headers carry: one, or more when they contradict each other."""
    given = set(request.headers.getlist("x-api-key"))
    for value in request.headers.getlist("authorization"):
        scheme, _, text = value.partition(" ")
        given.add(text.strip() if scheme.lower() == "bearer" else value)
    return given - {""}


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _has_body(request: Request) -> bool:
    """Whether a body, or a form without fields, was sent."""
    headers = request.headers
    length = headers.get("content-length", "0")
    return length != "0" or "transfer-encoding" in headers or "content-type" in headers


def _hashed(key_secret: str, secret: bytes) -> str:
    return hmac.new(secret, key_secret.encode(), hashlib.sha256).hexdigest()


def _aware(time: datetime) -> datetime:
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"
