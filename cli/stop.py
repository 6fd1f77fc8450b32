"""`bff stop`: end a run."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import click

from cli.client import Address, GatewayClient


@click.command()
@click.argument("run")
def stop(run: str) -> None:
    """End RUN; everyone who watches it is told."""
    state = asyncio.run(_stop(run))
    click.echo(f"{run} {state.get('status', 'stopped')}")


async def _stop(run: str) -> dict[str, Any]:
    async with GatewayClient(Address.from_env(os.environ)) as gateway:
        return await gateway.stop(run)
