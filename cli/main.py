"""The `bff` command. A failure that is foreseen is one sentence and exit code 1, never a traceback.

Commands are imported when they are asked for: `bff chat` need not wait for a gateway's imports.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module

import click

from shared.errors import BffError

COMMANDS = {
    "dev": "everything on this machine, in one terminal",
    "gateway": "one gateway process",
    "worker": "one worker process",
    "check": "is this agents.yaml good?",
    "agents": "who can be asked",
    "chat": "ask an agent and watch the answer",
    "tail": "watch a run from anywhere",
    "stop": "end a run",
    "keys": "keys for clients",
    "adapter": "try an agent dialect on a recorded body",
}
"""Each is the click command of its own name in `cli/<name>.py`."""


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = getattr(import_module(f"cli.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="streaming-bff", prog_name="bff")
def bff() -> None:
    """Any agent in, one durable stream, any front end out.

    Commands that talk to a gateway use BFF_URL (http://127.0.0.1:8000) and BFF_API_KEY.
    """


def main() -> None:
    """The entry point."""
    # The functions that agents.yaml names may stand beside it.
    sys.path.append(os.getcwd())
    try:
        bff(prog_name="bff")
    except BffError as error:
        click.echo(f"bff: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
