"""One call being answered the way its script says."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from itertools import count

from cli.scripted.http import Connection, head, send_json
from cli.scripted.ledger import Call, Ending
from cli.scripted.script import Script
from cli.scripted.transcripts import frames, recorded, with_prompt
from cli.scripted.vendor import Question, Vendor

_PING_EVERY = 0.02


class _Cut(Exception):
    """Here the script breaks the connection off."""


class Performance:
    """Plays `script` to one caller. `pace` is used when the script names none."""

    def __init__(
        self,
        script: Script,
        vendor: Vendor,
        question: Question,
        call: Call,
        connection: Connection,
        pace: float,
        released: asyncio.Event,
    ) -> None:
        self._script = script
        self._vendor = vendor
        self._question = question
        self._call = call
        self._connection = connection
        self._pace = pace if script.pace is None else script.pace
        self._released = released
        self._playing: asyncio.Task[None] | None = None
        self._stopped = False

    async def play(self) -> Ending:
        """Answer, and tell who ended it. Leaves by CancelledError when the client has gone."""
        await asyncio.sleep(self._script.delay)
        if self._script.status != 200:
            await self._refuse()
            return "refused"
        try:
            return await self._respond()
        except _Cut:
            self._break_off()
            return "fault"

    def stop(self) -> None:
        """The caller has asked to stop: end the answer as the vendor does."""
        self._stopped = True
        if self._playing is not None:
            self._playing.cancel()

    async def _respond(self) -> Ending:
        script, connection = self._script, self._connection
        if script.raw is not None:
            await connection.send(script.raw)
            raise _Cut
        said: Iterable[bytes] = self._frames()
        if not self._question.stream and not script.endless:
            said = [self._vendor.whole(said)]
        if script.framing == "length":
            said = list(said)
        await connection.send(head(200, self._headers(said)))
        ending = await self._say(said)
        if script.reset:
            raise _Cut
        if script.framing == "chunked":
            await connection.send(b"0\r\n\r\n")
        elif script.framing == "close":
            connection.close()
        return ending

    async def _say(self, said: Iterable[bytes]) -> Ending:
        self._playing = asyncio.create_task(self._play_frames(said))
        if self._stopped:
            self._playing.cancel()
        try:
            await self._playing
        except asyncio.CancelledError:
            if not self._stopped or not self._connection.is_open:
                raise
            for frame in self._vendor.stopped(self._question):
                await self._write(frame)
            return "stopped"
        return "agent"

    async def _play_frames(self, said: Iterable[bytes]) -> None:
        played = 0
        for played, frame in enumerate(said, start=1):
            await self._station(played - 1)
            if played > 1:
                await asyncio.sleep(self._pace)
            await self._write(frame)
        await self._station(played)

    async def _station(self, played: int) -> None:
        """Wait where the script says so."""
        script = self._script
        if played == script.hold_after:
            await self._released.wait()
        if played == script.silent_after:
            await asyncio.get_running_loop().create_future()
        while played == script.pings_after:
            await self._write(self._vendor.ping)
            await asyncio.sleep(self._pace or _PING_EVERY)

    async def _write(self, data: bytes) -> None:
        pieces = [data[at : at + 1] for at in range(len(data))] if self._script.one_byte else [data]
        for piece in pieces:
            await self._write_piece(piece)

    async def _write_piece(self, piece: bytes) -> None:
        limit = self._script.cut_after
        room = len(piece) if limit is None else limit - self._call.bytes_sent
        if piece := piece[:room]:
            chunked = self._script.framing == "chunked"
            self._call.bytes_sent += len(piece)
            await self._connection.send(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
        if self._call.bytes_sent == limit:
            raise _Cut
        await asyncio.sleep(0)

    def _break_off(self) -> None:
        if self._script.reset:
            self._connection.reset()
        else:
            self._connection.close()

    async def _refuse(self) -> None:
        script = self._script
        headers = dict(script.headers)
        if script.retry_after is not None:
            headers["retry-after"] = str(script.retry_after)
        if script.content_type is not None:
            headers["content-type"] = script.content_type
        body = self._vendor.refusal(script.status) if script.body is None else script.body
        await send_json(self._connection, script.status, body, headers)

    def _headers(self, said: Iterable[bytes]) -> dict[str, str]:
        stream = self._question.stream or self._script.endless
        content_type = self._vendor.content_type if stream else "application/json"
        headers = {"content-type": self._script.content_type or content_type, "cache-control": "no-cache"}
        match self._script.framing:
            case "chunked":
                headers["transfer-encoding"] = "chunked"
            case "length":
                headers["content-length"] = str(sum(map(len, said)))
            case "close":
                headers["connection"] = "close"
        return headers | self._script.headers

    def _frames(self) -> Iterator[bytes]:
        script, vendor, question = self._script, self._vendor, self._question
        if script.body is not None:
            return iter(frames(script.body))
        if script.transcript is None and (script.endless or script.tokens is not None):
            return vendor.say(self._texts(), question)
        name = script.transcript or vendor.transcript
        if script.exact:
            return iter(frames(recorded(name)))
        return iter(vendor.adapt(frames(with_prompt(name, question.prompt)), question))

    def _texts(self) -> Iterator[str]:
        numbers = count() if self._script.endless else range(self._script.tokens or 0)
        pattern = self._script.pattern.replace("{prompt}", self._question.prompt)
        return (pattern.replace("{n}", str(number)) for number in numbers)
