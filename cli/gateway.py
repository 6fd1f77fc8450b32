"""`bff gateway`: one gateway process."""

from __future__ import annotations

import contextlib
import sys

import click
import uvloop

from cli.logs import configure_logging
from cli.settings import read_settings
from gateway.drain import Drain
from gateway.main import build_app
from gateway.server import listen, serve
from shared import config
from shared.broker import Broker, check
from shared.config import Config
from shared.errors import BrokerUnavailable, ConfigError
from shared.settings import Settings

INTERRUPTED = 130


@click.command()
def gateway() -> None:
    """Run one gateway; settings come from BFF_ variables (docs/configuration.md)."""
    settings = read_settings()
    configure_logging(settings.log_level)
    try:
        uvloop.run(_serve(settings, config.load(settings.config)))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


async def _serve(settings: Settings, loaded: Config) -> None:
    drain = Drain()
    app = build_app(settings, loaded, drain)
    await _refuse_unfit(settings)
    try:
        listener = listen(settings.host, settings.port)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {settings.host} port {settings.port} (BFF_HOST, BFF_PORT): {error.strerror}"
        ) from None
    await serve(app, settings, drain, listener=listener)


async def _refuse_unfit(settings: Settings) -> None:
    """Raise BrokerUnfit here, as a sentence: the server would log it as a failed start."""
    broker = Broker.open(settings.redis_url, settings.redis_timeout)
    with contextlib.suppress(BrokerUnavailable):
        try:
            await check(broker)
        finally:
            await broker.close()
