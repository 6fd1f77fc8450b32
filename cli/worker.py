"""`bff worker`: one worker process."""

from __future__ import annotations

import click
import uvloop

from cli.logs import configure_logging
from cli.settings import read_settings
from shared import config
from workers.main import run_worker


@click.command()
def worker() -> None:
    """Run one worker; settings come from BFF_ variables (docs/configuration.md)."""
    settings = read_settings()
    configure_logging(settings.log_level)
    uvloop.run(run_worker(settings, config.load(settings.config)))
