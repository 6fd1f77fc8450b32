"""`python -m cli.scripted`: the scripted agent server as a process; prints its URL as one line."""

from __future__ import annotations

import asyncio
import signal
import ssl
from pathlib import Path

import click

from cli.scripted.server import KEY, ScriptedAgents


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=0, show_default=True, help="0 takes a free one.")
@click.option("--key", default=KEY, show_default=True, help="The API key to demand.")
@click.option("--pace", default=0.0, show_default=True, help="Seconds between two frames.")
@click.option("--control", is_flag=True, help="Let callers set scripts and read counts.")
@click.option("--tls-certificate", type=click.Path(path_type=Path), help="Serve HTTPS with this certificate.")
@click.option("--tls-key", type=click.Path(path_type=Path), help="Its private key.")
def main(
    host: str,
    port: int,
    key: str,
    pace: float,
    control: bool,
    tls_certificate: Path | None,
    tls_key: Path | None,
) -> None:
    """Play agents until told to end."""
    tls = None
    if tls_certificate is not None:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(tls_certificate, tls_key)
    asyncio.run(_serve(ScriptedAgents(host, port, key=key, pace=pace, control=control, tls=tls)))


async def _serve(agents: ScriptedAgents) -> None:
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    async with agents:
        print(agents.url, flush=True)
        await ended.wait()


if __name__ == "__main__":
    main()
