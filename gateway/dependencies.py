"""What routes ask for: everything the process opened, and who is calling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from gateway.admission import Admission
from gateway.auth import Authenticator, Caller
from gateway.drain import Drain
from gateway.hub import Hub
from gateway.limits import Slots
from gateway.records import Records
from gateway.tickets import Tickets
from shared.broker import Broker
from shared.config import Config
from shared.index import RunIndex
from shared.settings import Settings
from shared.stopping import Stopper
from shared.stream_log import Log


@dataclass(frozen=True)
class Gateway:
    """What one gateway process has opened."""

    settings: Settings
    config: Config
    broker: Broker
    log: Log
    index: RunIndex
    stopper: Stopper
    hub: Hub
    admission: Admission
    records: Records
    authenticator: Authenticator
    tickets: Tickets
    slots: Slots
    drain: Drain


async def _opened(request: Request) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


Opened = Annotated[Gateway, Depends(_opened)]


async def _reader(request: Request, gateway: Opened) -> Caller:
    caller = gateway.authenticator.caller(request)
    caller.need("read")
    return caller


async def _asker(request: Request, gateway: Opened) -> Caller:
    caller = gateway.authenticator.caller(request)
    caller.need("run")
    return caller


async def _viewer(run: str, request: Request, gateway: Opened) -> Caller:
    caller = await gateway.authenticator.viewer(request, run)
    caller.need("read")
    return caller


Reader = Annotated[Caller, Depends(_reader)]
"""Whose key may read."""

Asker = Annotated[Caller, Depends(_asker)]
"""Whose key may begin and end runs."""

Viewer = Annotated[Caller, Depends(_viewer)]
"""Who may read the events of the run in the path: by key, or by a ticket or cookie for that run."""
