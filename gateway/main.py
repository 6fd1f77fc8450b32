"""Builds the gateway: what it opens, its routes, and the form of its refusals."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from gateway.admission import Admission
from gateway.auth import Authenticator, check_reach
from gateway.dependencies import Gateway
from gateway.drain import Drain
from gateway.hub import Hub, StreamGone
from gateway.limits import Slots
from gateway.permanent import permanent
from gateway.problems import problem
from gateway.records import Records
from gateway.routes import agents, health, openai, runs, streams, tickets
from gateway.routes.openapi import describe
from gateway.tickets import Tickets
from gateway.watching import come_back_later, is_event_source
from shared import garbage
from shared.broker import Broker, check
from shared.config import Config
from shared.conversations import Conversations
from shared.errors import BrokerError, BrokerFull, BrokerUnavailable, ConfigError, RequestError
from shared.index import RunIndex
from shared.jobs import Queue
from shared.settings import Settings
from shared.stopping import Stopper
from shared.stream_log import StreamLog
from shared.sweep import Sweep

log = logging.getLogger(__name__)

SHORTEST_SECRET = 16

_EXPOSED = ("X-Run-Id", "Location", "Stream-Resumed-From", "Retry-After")
_ALLOWED = (
    "Authorization",
    "X-Api-Key",
    "Content-Type",
    "Last-Event-ID",
    "Idempotency-Key",
    "Prefer",
    "X-Conversation-Id",
    "X-Bff-Profile",
)


def build_app(settings: Settings, config: Config, drain: Drain) -> FastAPI:
    """The application; it opens its connections when it is started.

    Raises ConfigError when it may not be offered like this.
    """
    secret = _secret(settings)
    check_reach(settings.host, config.clients)
    if "*" in settings.cors_origins:
        raise ConfigError("BFF_CORS_ORIGINS: name the origins; * would let every page use a viewer's cookie")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_gateway(settings, config, secret, drain) as gateway:
            app.state.gateway = gateway
            garbage.settle()
            yield

    app = FastAPI(
        title="Streaming BFF",
        description="Any agent in, one durable stream, any front end out.",
        lifespan=lifespan,
        redoc_url=None,
    )
    for module in (runs, streams, tickets, agents, openai, health):
        app.include_router(module.router)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=settings.cors_origins,
        allow_methods=("GET", "POST", "DELETE"),
        allow_headers=_ALLOWED,
        allow_credentials=True,
        expose_headers=_EXPOSED,
    )
    for kind in (RequestError, BrokerError, StreamGone, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, _refuse)
    describe(app)
    return app


@asynccontextmanager
async def open_gateway(
    settings: Settings, config: Config, secret: bytes, drain: Drain
) -> AsyncIterator[Gateway]:
    """Everything a gateway process holds open, until the block is left."""
    async with AsyncExitStack() as stack:
        broker = _opened(stack, settings.redis_url, settings)
        queue_broker = _opened(stack, settings.queue_url, settings) if settings.queue_url else broker
        await _check(broker)
        stream_log = StreamLog(
            broker, lease=settings.lease, suspect_for=settings.suspect_for, max_attempts=settings.max_attempts
        )
        queue = Queue(queue_broker)
        index = RunIndex(broker, round(settings.retention * 1000))
        stopper = Stopper(stream_log, index, queue, broker)
        hub = Hub(
            stream_log,
            broker,
            f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}",
            redis_timeout=settings.redis_timeout,
            window_bytes=settings.window_bytes,
            window_events=settings.window_events,
            window_total_bytes=settings.window_total_bytes,
            max_viewers=settings.max_viewers,
        )
        sweep = Sweep(stream_log, index, queue, stopper, broker, every=settings.sweep_every)
        await stack.enter_async_context(hub)
        await stack.enter_async_context(permanent("the sweep", sweep.run))
        stack.enter_context(drain.watched(partial(setattr, hub, "draining", True)))
        tickets = Tickets(secret, broker)
        yield Gateway(
            settings=settings,
            config=config,
            broker=broker,
            log=stream_log,
            index=index,
            stopper=stopper,
            hub=hub,
            admission=Admission(
                config,
                secret,
                stream_log,
                index,
                queue,
                Conversations(broker),
                max_queue=settings.max_queue,
                retention=settings.retention,
            ),
            records=Records(stream_log),
            authenticator=Authenticator(config.clients, secret, tickets, settings.cors_origins),
            tickets=tickets,
            slots=Slots(),
            drain=drain,
        )


def _secret(settings: Settings) -> bytes:
    secret = settings.secret.get_secret_value() if settings.secret else ""
    if len(secret) < SHORTEST_SECRET:
        raise ConfigError(f"set BFF_SECRET to a random text of at least {SHORTEST_SECRET} characters")
    return secret.encode()


def _opened(stack: AsyncExitStack, url: str, settings: Settings) -> Broker:
    broker = Broker.open(url, settings.redis_timeout)
    stack.push_async_callback(broker.close)
    return broker


async def _check(broker: Broker) -> None:
    """Refuse an unfit Redis. One that is out for the moment may come back; `/readyz` says so."""
    try:
        await check(broker)
    except BrokerUnavailable as error:
        log.warning("starting without Redis: %s", error)


async def _refuse(request: Request, error: Exception) -> Response:
    """Every error before the first byte, in the form of the route's dialect."""
    if isinstance(error, BrokerError):
        log.warning("%s %s: %s", request.method, request.url.path, error)
    if isinstance(error, BrokerUnavailable) and is_event_source(request):
        return come_back_later()
    form = getattr(request.scope.get("route"), "refuse", problem)
    response: Response = form(_as_refusal(error))
    if isinstance(error, HTTPException) and error.headers:
        response.headers.update(error.headers)
    return response


def _as_refusal(error: Exception) -> RequestError:
    match error:
        case RequestError():
            return error
        case BrokerFull():
            return RequestError(
                503, "storage_full", "there is no memory left for new runs; try again later", retry_after=10
            )
        case StreamGone():
            return RequestError(410, "gone", "the stream of this run is no longer there")
        case BrokerUnavailable():
            return RequestError(
                503, "broker_unavailable", "Redis is not available; try again shortly", retry_after=2
            )
        case HTTPException():
            return RequestError(error.status_code, _word(error.status_code), str(error.detail))
        case RequestValidationError():
            first = error.errors()[0]
            field = str(first["loc"][-1])
            return RequestError(422, "invalid_parameter", f"{field}: {first['msg']}", field=field)
    return RequestError(500, "internal", "something went wrong here; it is in the gateway's log")


def _word(status: int) -> str:
    return {404: "not_found", 405: "method_not_allowed"}.get(status, "refused")
