"""`bff agents`: who can be asked."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import click

from cli.client import Address, GatewayClient

_HEAD = ("AGENT", "DIALECT", "AVAILABLE", "DESCRIPTION")


@click.command()
def agents() -> None:
    """List the agents that can be asked."""
    for line in table(asyncio.run(_agents())):
        click.echo(line)


async def _agents() -> list[dict[str, Any]]:
    async with GatewayClient(Address.from_env(os.environ)) as gateway:
        return await gateway.agents()


def table(entries: list[dict[str, Any]]) -> list[str]:
    """The entries of `GET /v1/agents` in columns."""
    rows = [_HEAD, *(_row(entry) for entry in entries)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    available = "yes" if entry.get("available", True) else "no"
    text = entry.get("description") or entry.get("reason") or ""
    return str(entry["name"]), str(entry.get("dialect", "")), available, str(text)
