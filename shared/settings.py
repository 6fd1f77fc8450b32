"""Process settings from the environment (prefix `BFF_`), read once at the root and frozen."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Durations are in seconds, sizes in bytes. `docs/configuration.md` is generated from here."""

    model_config = SettingsConfigDict(env_prefix="BFF_", frozen=True, extra="ignore")

    host: str = Field("127.0.0.1", description="address the gateway listens on")
    port: int = Field(8000, ge=0, le=65535, description="port the gateway listens on; 0 takes a free one")
    redis_url: str = Field("redis://127.0.0.1:6379/0", description="where the streams are")
    queue_url: str | None = Field(None, description="where arq's queue is, if not at redis_url")
    config: Path = Field(Path("agents.yaml"), description="agents, clients and their limits")
    secret: SecretStr | None = Field(
        None, description="server secret: key pepper, idempotency, tickets; at least 16 characters"
    )
    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR")
    cors_origins: tuple[str, ...] = Field((), description="exact origins whose pages may call, as JSON list")

    max_runs: int = Field(200, ge=1, description="runs at a time in one worker")
    max_queue: int = Field(1000, ge=0, description="runs that may wait; above it new ones get 429")
    max_connections: int | None = Field(
        None, ge=1, description="open connections of one gateway; at most 80 % of its file limit, the default"
    )
    max_viewers: int = Field(1000, ge=1, description="viewers of one run at one gateway; then 429")
    max_body_bytes: int = Field(1 << 20, ge=1024, description="largest request body")
    max_stream_bytes: int = Field(16 << 20, ge=1024, description="largest stream of a run; then too_large")
    max_frame_bytes: int = Field(1 << 20, ge=1024, description="largest frame or line of an agent")
    window_bytes: int = Field(
        256 << 10, ge=1024, description="recent events of a run kept in a gateway; who is behind reads Redis"
    )
    window_events: int = Field(256, ge=2, description="the same, as their number")
    window_total_bytes: int = Field(256 << 20, ge=1024, description="the same, of all runs together")

    lease: float = Field(5.0, gt=0, description="a worker silent for so long has lost its run")
    renew_every: float = Field(1.5, gt=0, description="how often a worker says that it lives")
    sweep_every: float = Field(0.5, gt=0, description="how often lost and overdue runs are looked for")
    suspect_for: float = Field(1.5, gt=0, description="time between the two looks before a take-over")
    max_attempts: int = Field(3, ge=1, description="attempts of a run before it is given up as poisoned")
    retention: float = Field(3600.0, gt=0, description="how long an ended run can be read")
    heartbeat: float = Field(5.0, gt=0, description="an idle connection gets a sign of life")
    send_timeout: float = Field(20.0, gt=0, description="a client that does not read is dropped")
    redis_timeout: float = Field(3.0, gt=0, description="deadline of one Redis call")
    drain: float = Field(8.0, ge=0, description="how long a gateway that shuts down finishes answers")
    grace: float | None = Field(None, ge=0, description="how long a worker that shuts down finishes runs")
