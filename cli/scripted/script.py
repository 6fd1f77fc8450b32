"""What the scripted agent server does in one call: what it says, how fast, and how it breaks."""

from __future__ import annotations

import msgspec

from cli.scripted.http import Framing


class Script(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One answer. In JSON (`POST /_script`) the same names are used and bytes are base64.

    What is said is the first of `body`, `transcript` and `tokens` (or `endless`) that is given, else
    the route's own transcript. Times are in seconds; `hold_after` and `silent_after` count frames,
    `cut_after` counts bytes of the body.
    """

    body: bytes | None = None
    """Said as it is, whatever it is."""
    transcript: str | None = None
    """Name of a shipped transcript, such as `openai-chat/usage`."""
    tokens: int | None = None
    """Number of text deltas made in the route's own format."""
    pattern: str = "tok{n} "
    """Text of each of them."""
    endless: bool = False
    """Deltas that never end."""
    exact: bool = False
    """The transcript byte for byte: no piece of the prompt, no fresh task id."""

    pace: float | None = None
    """Between two frames; the server's pace when not given."""
    delay: float = 0.0
    """Before the first byte of the response."""
    one_byte: bool = False
    """A packet for each byte."""
    hold_after: int | None = None
    """After so many frames wait for `/_release`."""
    silent_after: int | None = None
    """After so many frames say nothing more and keep the connection open."""
    pings_after: int | None = None
    """After so many frames send keep-alives only, for ever."""

    status: int = 200
    """Any other is answered with an error in the route's own form."""
    retry_after: int | None = None
    content_type: str | None = None
    headers: dict[str, str] = {}
    framing: Framing = "chunked"
    raw: bytes | None = None
    """Sent in place of a whole HTTP response; then the connection ends."""
    cut_after: int | None = None
    """The connection ends after so many bytes of the body."""
    reset: bool = False
    """The connection ends with RST in place of FIN; without `cut_after`, at the end of the body."""


SHIPPED: dict[str, tuple[Script, ...]] = {
    "plain": (Script(transcript="openai-chat/plain"),),
    "tool_calls": (Script(transcript="openai-chat/tool_calls"),),
    "deepseek_reasoning": (Script(transcript="openai-chat/deepseek_reasoning"),),
    "chatflow": (Script(transcript="dify-chat/chatflow"),),
    "text_chunk": (Script(transcript="dify-workflow/text_chunk"),),
    "long": (Script(tokens=300),),
    "overloaded": (Script(status=503, retry_after=1),),
}
"""Scripts that every server knows: `/s/long/openai/v1` and so on."""
