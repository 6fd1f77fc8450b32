"""Conversations as front ends send them: the form that the native and the OpenAI API share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag
from starlette.requests import Request

from shared.errors import RequestError
from shared.events import Json
from shared.requests import Message, Role

LONGEST_CONVERSATION_ID = 256


def _kind_of_content(value: Any) -> str:
    return "<parts>" if isinstance(value, list) else "<text>"


Content = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[list[dict[str, Any]], Tag("<parts>")],
    Discriminator(_kind_of_content),
]


class Turn(BaseModel):
    """One message. `content` is text, or a list of parts as the OpenAI chat format has them."""

    model_config = ConfigDict(extra="forbid")

    role: Role
    content: Content | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[dict[str, Any]] | None = None

    def to_message(self) -> Message:
        """The same for agents."""
        return Message(self.role, self.content, self.name, self.tool_call_id, self.tool_calls)


ConversationId = Field(None, min_length=1, max_length=LONGEST_CONVERSATION_ID)


def to_messages(turns: Sequence[Turn]) -> tuple[Message, ...]:
    """All turns for agents."""
    return tuple(turn.to_message() for turn in turns)


def conversation_of(request: Request, in_body: str | None, metadata: Mapping[str, Json]) -> str | None:
    """The front end's own id of the conversation: body, then header, then metadata. Raises RequestError."""
    found = in_body or request.headers.get("x-conversation-id") or metadata.get("conversation")
    if found is None or (isinstance(found, str) and 0 < len(found) <= LONGEST_CONVERSATION_ID):
        return found
    raise RequestError(
        422,
        "invalid_conversation",
        f"a conversation's id is a text of at most {LONGEST_CONVERSATION_ID} characters",
        field="conversation",
    )
