"""The scripted agent server: real HTTP that plays agents from transcripts, with faults on demand.

Agents are at `/openai/v1`, `/dify/v1` and `/legacy/{sse,ndjson,rest}`. The same paths behind
`/s/NAME` follow the script of that name, so an agent of agents.yaml chooses one by its `url`. With
`control`, tests set scripts and read counts over HTTP:

- `POST /_script` `{"name": ..., "scripts": [...]}`: the n-th call under that name follows the n-th
  script, later ones the last;
- `GET /_stats`: open and largest numbers of calls and connections, each call and how it ended;
- `POST /_release` `{"name": ...}`: what is held goes on (all names without one);
- `POST /_reset`: forget scripts and counts.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec

from cli.scripted.dify import Dify, checked_fields
from cli.scripted.http import Connection, Request, send_json
from cli.scripted.ledger import Ending, Ledger
from cli.scripted.legacy import Legacy
from cli.scripted.openai_chat import MODELS, OpenAIChat, check_key
from cli.scripted.performance import Performance
from cli.scripted.script import SHIPPED, Script
from cli.scripted.transcripts import TRANSCRIPTS
from cli.scripted.vendor import Refusal, Vendor, json_bytes

KEY = "scripted"
"""The key that the played OpenAI and Dify demand unless another is given."""

ROUTES: dict[tuple[str, str], Vendor] = {
    ("POST", "/openai/v1/chat/completions"): OpenAIChat(),
    ("POST", "/dify/v1/completion-messages"): Dify("completion", "dify-completion/plain"),
    ("POST", "/dify/v1/chat-messages"): Dify("chat", "dify-chat/plain"),
    ("POST", "/dify/v1/workflows/run"): Dify("workflow", "dify-workflow/outputs"),
    ("POST", "/legacy/sse"): Legacy("sse"),
    ("GET", "/legacy/sse"): Legacy("sse"),
    ("POST", "/legacy/ndjson"): Legacy("ndjson"),
    ("GET", "/legacy/ndjson"): Legacy("ndjson"),
    ("POST", "/legacy/rest"): Legacy("rest"),
    ("GET", "/legacy/rest"): Legacy("rest"),
}

_SCRIPTED_PATH = re.compile(r"/s/([A-Za-z0-9._-]+)(/.*)")
_STOP_PATH = re.compile(r"/dify/v1/(?:completion-messages|chat-messages|workflows/tasks)/([^/]+)/stop")


class _ScriptOrder(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    scripts: tuple[Script, ...] = msgspec.field(default_factory=lambda: (Script(),))


class _ReleaseOrder(msgspec.Struct, forbid_unknown_fields=True):
    name: str | None = None


Order = TypeVar("Order", _ScriptOrder, _ReleaseOrder)


class ScriptedAgents:
    """`async with ScriptedAgents() as agents:` serves at `agents.url` until the block ends."""

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        key: str = KEY,
        pace: float = 0.0,
        control: bool = False,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._host, self._port = host, port
        self._key, self._pace, self._tls = key, pace, tls
        self._controls = self._control_routes() if control else {}
        self._connections: set[Connection] = set()
        self._performances: dict[Performance, tuple[str, str]] = {}
        self.reset()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            self._connect, self._host, self._port, ssl=self._tls, backlog=1024
        )
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        await asyncio.gather(*(connection.aclose() for connection in self._connections))
        await self._server.wait_closed()

    @property
    def url(self) -> str:
        """Scheme, host and port."""
        return f"{'https' if self._tls else 'http'}://{self._host}:{self._port}"

    def script(self, name: str, *scripts: Script) -> str:
        """Let calls under `name` follow `scripts`, one each and the last for ever; gives the base URL.

        Raises ValueError for a transcript that is not shipped.
        """
        for script in scripts:
            if script.transcript is not None and script.transcript not in TRANSCRIPTS:
                raise ValueError(f"no transcript {script.transcript}; there are {', '.join(TRANSCRIPTS)}")
        self._scripts[name] = list(scripts)
        self._released[name] = asyncio.Event()
        return f"{self.url}/s/{name}"

    def release(self, name: str | None = None) -> None:
        """Let what is held under `name`, or under any name, go on."""
        for held in self._released if name is None else (name,):
            self._released.setdefault(held, asyncio.Event()).set()

    def stats(self) -> dict[str, Any]:
        """The counts, as `GET /_stats` gives them."""
        return self._ledger.stats()

    def reset(self) -> None:
        """Forget scripts and counts; what is held goes on."""
        for released in getattr(self, "_released", {}).values():
            released.set()
        self._scripts: dict[str, list[Script]] = {name: list(scripts) for name, scripts in SHIPPED.items()}
        self._scripts[""] = [Script()]
        self._released: dict[str, asyncio.Event] = {}
        self._ledger = Ledger()

    def _connect(self) -> Connection:
        self._connections = {connection for connection in self._connections if connection.is_open}
        connection = Connection(self._respond)
        self._connections.add(connection)
        return connection

    async def _respond(self, request: Request, connection: Connection) -> None:
        scripted = _SCRIPTED_PATH.fullmatch(request.path)
        name, path = scripted.groups() if scripted else ("", request.path)
        try:
            if stop := _STOP_PATH.fullmatch(path):
                self._stop(stop[1], request)
                await send_json(connection, 200, b'{"result":"success"}')
            elif (request.method, path) == ("GET", "/openai/v1/models"):
                check_key(request, self._key)
                await send_json(connection, 200, MODELS)
            elif control := self._controls.get((request.method, path)):
                await control(request, connection)
            elif (vendor := ROUTES.get((request.method, path))) and self._scripts.get(name):
                await self._answer(vendor, name, path, request, connection)
            else:
                raise Refusal(404, json_bytes({"error": f"nothing at {request.method} {request.path}"}))
        except Refusal as refusal:
            await send_json(connection, refusal.status, refusal.body)

    async def _answer(
        self, vendor: Vendor, name: str, path: str, request: Request, connection: Connection
    ) -> None:
        ledger = self._ledger
        call = ledger.begin(name, path, connection)
        ending: Ending = "client"
        performance: Performance | None = None
        try:
            question = vendor.admit(request, self._key)
            call.ask(question)
            released = self._released.setdefault(name, asyncio.Event())
            script = self._next_script(name)
            performance = Performance(script, vendor, question, call, connection, self._pace, released)
            self._performances[performance] = (question.task, question.user)
            ending = await performance.play()
        except Refusal:
            ending = "refused"
            raise
        finally:
            if performance is not None:
                del self._performances[performance]
            ledger.end(call, ending)

    def _next_script(self, name: str) -> Script:
        scripts = self._scripts[name]
        return scripts.pop(0) if len(scripts) > 1 else scripts[0]

    def _stop(self, task: str, request: Request) -> None:
        """As Dify does: another user's task is left alone, and the answer is success all the same."""
        user = checked_fields(request, self._key)["user"]
        self._ledger.stops += 1
        for performance, started_as in self._performances.items():
            if started_as == (task, user):
                performance.stop()

    def _control_routes(self) -> dict[tuple[str, str], Callable[[Request, Connection], Awaitable[None]]]:
        return {
            ("POST", "/_script"): self._take_script,
            ("GET", "/_stats"): self._tell_stats,
            ("POST", "/_release"): self._take_release,
            ("POST", "/_reset"): self._take_reset,
        }

    async def _take_script(self, request: Request, connection: Connection) -> None:
        order = _order(request, _ScriptOrder)
        try:
            url = self.script(order.name, *order.scripts)
        except ValueError as error:
            raise Refusal(400, json_bytes({"error": str(error)})) from None
        await send_json(connection, 200, json_bytes({"url": url}))

    async def _tell_stats(self, request: Request, connection: Connection) -> None:
        await send_json(connection, 200, json_bytes(self.stats()))

    async def _take_release(self, request: Request, connection: Connection) -> None:
        self.release(_order(request, _ReleaseOrder).name)
        await send_json(connection, 200, b"{}")

    async def _take_reset(self, request: Request, connection: Connection) -> None:
        self.reset()
        await send_json(connection, 200, b"{}")


def _order(request: Request, kind: type[Order]) -> Order:
    try:
        return msgspec.json.decode(request.body, type=kind)
    except msgspec.DecodeError as error:
        raise Refusal(400, json_bytes({"error": str(error)})) from None
