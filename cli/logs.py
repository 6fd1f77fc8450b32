"""How a process of ours logs: one line each on standard error, the level where `bff dev` looks for it."""

from __future__ import annotations

import logging

_FORM = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


def configure_logging(level: str) -> None:
    """Log from `level` on; libraries that log every request from WARNING on."""
    logging.basicConfig(level=level.upper(), format=_FORM)
    for chatty in ("httpx", "asyncio", "arq"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.getLogger().level))
