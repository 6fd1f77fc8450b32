"""What a front end asks of an agent, whatever dialect it asked in."""

from __future__ import annotations

from typing import Literal

import msgspec

from shared.events import Json

Role = Literal["system", "developer", "user", "assistant", "tool"]


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One turn. `content` is text, or a list of parts as the OpenAI chat format has them."""

    role: Role
    content: str | list[dict[str, Json]] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[dict[str, Json]] | None = None

    @property
    def text(self) -> str:
        """The text of all parts, without the rest."""
        if isinstance(self.content, list):
            texts = (part.get("text") for part in self.content)
            return "".join(text for text in texts if isinstance(text, str))
        return self.content or ""


class RunRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """Everything an agent is given. Kept under the run's `r` key until the run ends.

    `messages` is the conversation so far, `inputs` the named inputs, `params` model parameters
    of the front end's dialect, `conversation` the front end's own id of the conversation.
    """

    messages: tuple[Message, ...] = ()
    inputs: dict[str, Json] = {}
    conversation: str | None = None
    user: str | None = None
    metadata: dict[str, Json] = {}
    params: dict[str, Json] = {}
    files: tuple[dict[str, Json], ...] = ()

    @property
    def prompt(self) -> str:
        """The text of the last user message, or "" when there is none."""
        return next((m.text for m in reversed(self.messages) if m.role == "user"), "")


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(RunRequest)


def dump(request: RunRequest) -> bytes:
    """The request as JSON."""
    return _encoder.encode(request)


def load(data: bytes) -> RunRequest:
    """Read what `dump` wrote. Raises msgspec.ValidationError."""
    return _decoder.decode(data)
