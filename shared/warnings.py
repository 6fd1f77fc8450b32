"""What an agent will not do of what it was asked: told in `run.accepted`, so that nothing is dropped
silently. A pure function of the agent's configuration and the request."""

from __future__ import annotations

from collections.abc import Iterator

from shared.config import Agent, DifyAgent, FunctionAgent, MappedAgent, OpenAIChatAgent, RestAgent
from shared.events import Json
from shared.placeholders import names_in
from shared.requests import Message, RunRequest

CHAT_PARAMETERS = frozenset(
    (
        "audio",
        "frequency_penalty",
        "logit_bias",
        "logprobs",
        "max_completion_tokens",
        "max_tokens",
        "metadata",
        "modalities",
        "parallel_tool_calls",
        "prediction",
        "presence_penalty",
        "prompt_cache_key",
        "reasoning_effort",
        "response_format",
        "safety_identifier",
        "seed",
        "service_tier",
        "stop",
        "store",
        "temperature",
        "tool_choice",
        "tools",
        "top_k",
        "top_logprobs",
        "top_p",
        "verbosity",
        "web_search_options",
    )
)
"""Model parameters that are passed on to a Chat Completions server. Not `n`: one run, one answer."""


def warnings(agent: Agent, run: RunRequest) -> tuple[str, ...]:
    """A sentence for each part of `run` that `agent` will not be given."""
    return tuple(_unused(agent, run))


def _unused(agent: Agent, run: RunRequest) -> Iterator[str]:
    if isinstance(agent, OpenAIChatAgent):
        yield from _unknown_parameters(run, CHAT_PARAMETERS)
        if run.inputs and run.messages:
            yield "this agent takes messages only: the named inputs are not used"
        if run.files:
            yield "this agent takes files as parts of messages only: the files are not used"
    elif isinstance(agent, DifyAgent):
        yield from _unknown_parameters(run, frozenset())
        if not all(_expressible(message) for message in run.messages):
            yield "this agent takes text and images by address only: other parts of messages are not used"
    elif isinstance(agent, MappedAgent | RestAgent):
        yield from _unknown_parameters(run, frozenset())
        yield from _unfilled(names_in([agent.url, agent.body]), run)
    elif isinstance(agent, FunctionAgent):
        yield from _unknown_parameters(run, frozenset())
        if run.files:
            yield "this agent takes no files: the files are not used"


def _unknown_parameters(run: RunRequest, known: frozenset[str]) -> Iterator[str]:
    unknown = sorted(set(run.params) - known)
    if unknown:
        yield f"parameters this agent does not know are not used: {', '.join(unknown)}"


def _expressible(message: Message) -> bool:
    if not isinstance(message.content, list):
        return not message.tool_calls
    return all(isinstance(part.get("text"), str) or image_address(part) for part in message.content)


def image_address(part: dict[str, Json]) -> str | None:
    """The http(s) address of an image part (`{"type": "image_url", "image_url": {"url"}}`)."""
    image = part.get("image_url")
    address = image.get("url") if isinstance(image, dict) else None
    return address if isinstance(address, str) and address.startswith(("http://", "https://")) else None


def _unfilled(names: frozenset[str], run: RunRequest) -> Iterator[str]:
    if "messages" not in names:
        if run.messages and "input" not in names:
            yield "this agent's request has no place for messages: they are not used"
        elif len(run.messages) > 1:
            yield "this agent takes the last user message only: earlier messages are not used"
    unused = sorted(name for name in run.inputs if f"inputs.{name}" not in names)
    if unused and "inputs" not in names:
        yield f"this agent's request has no place for these inputs: {', '.join(unused)}"
    if run.files:
        yield "this agent takes no files: the files are not used"
