"""`bff chat`: ask an agent and watch the answer."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

import click
import msgspec

from cli.client import Address, GatewayClient
from cli.terminal import JsonLines, Screen
from shared.errors import BffError

INTERRUPTED = 130
"""Exit code of a command that Ctrl-C ended, as shells have it."""


@click.command()
@click.argument("agent")
@click.argument("text", required=False)
@click.option("--input", "input_json", metavar="JSON", help="The input as JSON, in place of TEXT.")
@click.option("--conversation", metavar="ID", help="Go on with this conversation.")
@click.option("--json", "as_json", is_flag=True, help="Print the events, one JSON object a line.")
def chat(
    agent: str, text: str | None, input_json: str | None, conversation: str | None, as_json: bool
) -> None:
    """Ask AGENT and stream its answer; Ctrl-C stops the run."""
    if (text is None) == (input_json is None):
        raise click.UsageError("give either TEXT or --input JSON")
    question = text if input_json is None else _parsed(input_json)
    screen = JsonLines() if as_json else Screen()
    try:
        asyncio.run(_ask(screen, agent, question, conversation))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    sys.exit(screen.exit_code)


async def _ask(screen: Screen | JsonLines, agent: str, question: Any, conversation: str | None) -> None:
    async with GatewayClient(Address.from_env(os.environ), screen.note) as gateway:
        run = await gateway.start(agent, question, conversation)
        try:
            async for event in gateway.events(run):
                screen.show(event)
        except asyncio.CancelledError:
            screen.note(await _stopped(gateway, run))
            raise


async def _stopped(gateway: GatewayClient, run: str) -> str:
    """Stop the run; says how that went."""
    try:
        await gateway.stop(run)
    except BffError as error:
        return f"the run could not be stopped: {error}"
    return "stopped"


def _parsed(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise click.BadParameter(f"not JSON: {error}", param_hint="--input") from None
