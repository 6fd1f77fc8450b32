"""`bff tail`: watch a run from anywhere."""

from __future__ import annotations

import asyncio
import os
import sys

import click

from cli.chat import INTERRUPTED
from cli.client import Address, GatewayClient
from cli.terminal import JsonLines, Screen


@click.command()
@click.argument("run")
@click.option(
    "--from", "cursor", metavar="CURSOR", help="Begin behind this event; from the start if not given."
)
@click.option("--json", "as_json", is_flag=True, help="Print the events, one JSON object a line.")
def tail(run: str, cursor: str | None, as_json: bool) -> None:
    """Watch RUN up to its end; Ctrl-C leaves it running."""
    screen = JsonLines() if as_json else Screen()
    try:
        asyncio.run(_watch(screen, run, cursor))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    sys.exit(screen.exit_code)


async def _watch(screen: Screen | JsonLines, run: str, cursor: str | None) -> None:
    async with GatewayClient(Address.from_env(os.environ), screen.note) as gateway:
        async for event in gateway.events(run, cursor):
            screen.show(event)
