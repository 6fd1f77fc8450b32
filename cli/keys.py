"""`bff keys new`: a key for a client, and what agents.yaml keeps of it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click
import yaml

from cli.settings import read_settings
from gateway.auth import new_key
from shared.config import ClientKey
from shared.errors import ConfigError

SCOPES = ("run", "read", "admin")
SHORTEST_SECRET = 16


@click.group()
def keys() -> None:
    """Keys for the clients of a gateway."""


@keys.command()
@click.argument("name")
@click.option("--scopes", default="run,read", show_default=True, help="Of run, read and admin, by comma.")
@click.option("--agents", default="*", show_default=True, help="Names of agents it may ask, by comma.")
@click.option("--default-agent", help="Asked when a request names none.")
@click.option("--expires", type=click.DateTime(["%Y-%m-%d"]), help="The day from which it is void (UTC).")
def new(name: str, scopes: str, agents: str, default_agent: str | None, expires: datetime | None) -> None:
    """Make a key for the client NAME with BFF_SECRET. It is shown once and kept nowhere."""
    text, key = new_key(name, _server_secret())
    entry = key_entry(key, _scopes(scopes), _listed(agents), default_agent, expires)
    click.echo(f"{text}\n\nThe key stands above, once. Put this into agents.yaml:\n")
    click.echo(yaml.safe_dump({"clients": {name: {"keys": [entry]}}}, sort_keys=False), nl=False)


def key_entry(
    key: ClientKey,
    scopes: list[str],
    agents: list[str],
    default_agent: str | None = None,
    expires: datetime | None = None,
) -> dict[str, Any]:
    """The key as agents.yaml has it."""
    entry: dict[str, Any] = {"id": key.id, "hash": key.hash, "scopes": scopes, "agents": agents}
    if default_agent is not None:
        entry["default_agent"] = default_agent
    if expires is not None:
        entry["expires"] = expires.replace(tzinfo=UTC)
    return entry


def _server_secret() -> bytes:
    secret = read_settings().secret
    if secret is None or len(secret.get_secret_value()) < SHORTEST_SECRET:
        raise ConfigError(
            f"set BFF_SECRET to the secret that the gateway runs with, at least {SHORTEST_SECRET} characters;"
            " a key is good for that secret only"
        )
    return secret.get_secret_value().encode()


def _scopes(text: str) -> list[str]:
    scopes = _listed(text)
    unknown = [scope for scope in scopes if scope not in SCOPES]
    if unknown or not scopes:
        raise click.BadParameter(f"choose of {', '.join(SCOPES)}", param_hint="--scopes")
    return scopes


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
