"""The worker process: builds everything, runs it, and shuts it down in order."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any

from shared import garbage, keys, requests
from shared.broker import Broker, check, patiently
from shared.config import Config, secrets_of
from shared.conversations import Conversations
from shared.errors import BrokerUnavailable
from shared.events import RunIds
from shared.index import RunIndex
from shared.jobs import Queue
from shared.settings import Settings
from shared.stopping import Stopper
from shared.stream_log import Claim, StreamLog
from shared.subscription import Subscription
from shared.sweep import Sweep
from workers.agents import open_agent
from workers.agents.client import HttpAgents
from workers.dialects import AGENT_DIALECTS
from workers.intake import Intake
from workers.relay import Line
from workers.runs import Aside, RunningSet
from workers.slots import Slots

log = logging.getLogger(__name__)

BROKER_PATIENCE = 60.0
"""Seconds for which a worker that starts waits for Redis."""


async def run_worker(settings: Settings, config: Config) -> None:
    """Carry runs until SIGTERM or SIGINT, then finish what is under way; a second signal hands it back.

    Raises BrokerUnfit when this Redis cannot be used, BrokerUnavailable when there is none.
    """
    stop, hurry = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: hurry.set() if stop.is_set() else stop.set())
    async with AsyncExitStack() as stack:
        broker = Broker.open(settings.redis_url, settings.redis_timeout)
        stack.push_async_callback(broker.close)
        queue_broker = Broker.open(settings.queue_url or settings.redis_url, settings.redis_timeout)
        stack.push_async_callback(queue_broker.close)
        await _fit(broker)
        agents = await stack.enter_async_context(HttpAgents(frame_limit=settings.max_frame_bytes))
        log_ = StreamLog(
            broker,
            lease=settings.lease,
            suspect_for=settings.suspect_for,
            max_attempts=settings.max_attempts,
        )
        index = RunIndex(broker, round(settings.retention * 1000))
        queue = Queue(queue_broker)
        stopper = Stopper(log_, index, queue, broker)
        slots = Slots(settings.max_runs)
        running = RunningSet(
            log_,
            index,
            stopper,
            Conversations(broker),
            _lines(config, agents),
            slots,
            renew_every=settings.renew_every,
            max_stream_bytes=settings.max_stream_bytes,
        )
        ends = Subscription(
            broker,
            lambda _, run: running.hear_end(run.decode()),
            lambda: None,
            sharded=False,
        )
        sweep = Sweep(log_, index, queue, stopper, broker, every=settings.sweep_every)
        intake = Intake(queue_broker, slots, running.start)
        tasks = [asyncio.create_task(work) for work in (running.run(), ends.run(), sweep.run(), intake.run())]
        await ends.add(keys.STOPS, settings.redis_timeout)
        garbage.settle()
        log.info("worker ready, %d slots", settings.max_runs)
        await _until_stopped(stop, tasks)
        log.info("no new runs; %d to finish", len(running))
        await _end(tasks.pop())
        await _drain(running, _grace(settings, config), hurry)
        for task in tasks:
            await _end(task)
    log.info("worker ended")


async def _fit(broker: Broker) -> None:
    """Wait for Redis. Raises BrokerUnfit, or BrokerUnavailable when patience is over."""
    try:
        await check(broker)
    except BrokerUnavailable as error:
        log.warning("waiting up to %.0f s for Redis: %s", BROKER_PATIENCE, error)
        await patiently(lambda: check(broker), time.monotonic() + BROKER_PATIENCE)


def _lines(
    config: Config, agents: HttpAgents
) -> Callable[[Claim, Callable[[RunIds], None], Aside], Line | None]:
    """How the agent of a claimed run is reached, by this configuration."""

    def line(claim: Claim, remember: Callable[[RunIds], None], aside: Aside) -> Line | None:
        agent = config.agents.get(claim.meta["agent"])
        if agent is None:
            return None
        request = requests.load(claim.request)
        return Line(
            dialect=lambda: AGENT_DIALECTS[agent.dialect](agent),
            connect=lambda dialect: open_agent(agents, agent, dialect, request),
            timeouts=agent.timeouts,
            repeatable=agent.repeatable,
            secrets=secrets_of(agent),
            remember=remember,
            aside=aside,
        )

    return line


def _grace(settings: Settings, config: Config) -> float:
    """How long to finish: as long as the longest run may take, unless it is set."""
    if settings.grace is not None:
        return settings.grace
    return max((agent.timeouts.run for agent in config.agents.values()), default=0.0)


async def _until_stopped(stop: asyncio.Event, tasks: list[asyncio.Task[None]]) -> None:
    """Wait for a signal; a task that ends by itself is an error, which is raised."""
    waiting = asyncio.create_task(stop.wait())
    done, _ = await asyncio.wait([waiting, *tasks], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    for task in done - {waiting}:
        await task


async def _drain(running: RunningSet, grace: float, hurry: asyncio.Event) -> None:
    draining = asyncio.create_task(running.drain(grace))
    hurrying = asyncio.create_task(hurry.wait())
    await asyncio.wait([draining, hurrying], return_when=asyncio.FIRST_COMPLETED)
    hurrying.cancel()
    if not draining.done():
        await _end(draining)
        await running.drain(0)


async def _end(task: Coroutine[Any, Any, None] | asyncio.Task[None]) -> None:
    task = asyncio.ensure_future(task)
    task.cancel()
    await asyncio.wait([task])
