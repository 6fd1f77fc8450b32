"""The recorded answers shipped with this package, and the place in each where the prompt goes."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import NamedTuple


class Transcript(NamedTuple):
    """A recorded body. A piece of the prompt goes behind every `mark`; `depth` is how many JSON
    strings lie around that place."""

    file: str
    mark: bytes
    depth: int = 1


TRANSCRIPTS = {
    "openai-chat/plain": Transcript("openai-chat/plain.sse", b'" long'),
    "openai-chat/usage": Transcript("openai-chat/usage.sse", b'"a worker'),
    "openai-chat/tool_calls": Transcript("openai-chat/tool_calls.sse", b'"arguments":"Berlin', depth=2),
    "openai-chat/deepseek_reasoning": Transcript("openai-chat/deepseek_reasoning.sse", b" greater"),
    "dify-completion/plain": Transcript("dify-completion/plain.sse", b" ready"),
    "dify-chat/plain": Transcript("dify-chat/plain.sse", b" year"),
    "dify-chat/chatflow": Transcript("dify-chat/chatflow.sse", b"can I help"),
    "dify-workflow/outputs": Transcript("dify-workflow/outputs.sse", b'"title":"Ship it'),
    "dify-workflow/text_chunk": Transcript("dify-workflow/text_chunk.sse", b" monde"),
    "legacy/sse": Transcript("legacy/search.sse", b" on Saturday"),
    "legacy/ndjson": Transcript("legacy/search.ndjson", b" yesterday"),
    "legacy/rest": Transcript("legacy/search.json", b" chapter 4"),
}

_PIECE_CHARACTERS = 60


@cache
def recorded(name: str) -> bytes:
    """The transcript as it was recorded. Raises KeyError for a name that is not shipped."""
    return files(__package__).joinpath("transcripts", TRANSCRIPTS[name].file).read_bytes()


def with_prompt(name: str, prompt: str) -> bytes:
    """The transcript with a piece of `prompt` in its text, so that no answer can come from a file."""
    transcript = TRANSCRIPTS[name]
    piece = f" ({' '.join(prompt.split())[:_PIECE_CHARACTERS]})"
    for _ in range(transcript.depth):
        piece = json.dumps(piece, ensure_ascii=False)[1:-1]
    safe = piece.encode("utf-8", "replace")
    return recorded(name).replace(transcript.mark, transcript.mark + safe)


def frames(body: bytes) -> list[bytes]:
    """`body` cut behind each blank line, or behind each line when it has no blank ones."""
    end = b"\n\n" if b"\n\n" in body else b"\n"
    pieces = [piece + end for piece in body.split(end)]
    return [piece for piece in (*pieces[:-1], pieces[-1].removesuffix(end)) if piece]
