"""One answer with all that the OpenAI dialect can say, as events; its forms stand in `expected/`."""

from __future__ import annotations

from pathlib import Path

from gateway.dialects.base import ViewOptions
from shared.events import (
    Event,
    ReasoningDelta,
    ReasoningEnd,
    ReasoningStart,
    RunCompleted,
    RunFailed,
    TextDelta,
    TextEnd,
    TextStart,
    ToolDelta,
    ToolEnd,
    ToolStart,
    Usage,
)
from tests.gateway.dialects.log import AGENT, ATTEMPT, RUN

EXPECTED = Path(__file__).with_name("expected")

REASONING: tuple[Event, ...] = (
    ReasoningStart(block="r1"),
    ReasoningDelta(block="r1", text="Need the"),
    ReasoningDelta(block="r1", text=" weather tool."),
    ReasoningEnd(block="r1"),
)
TEXT: tuple[Event, ...] = (
    TextStart(block="t1"),
    *(TextDelta(block="t1", text=text) for text in ("It is ", "18 °C", " in Paris", ". 🌦")),
    TextEnd(block="t1"),
)
COMPLETED = RunCompleted(
    finish_reason="stop", usage=Usage(input_tokens=42, output_tokens=17, total_tokens=59)
)
ANSWER = (*REASONING, *TEXT, COMPLETED)
WHOLE_TEXT = "It is 18 °C in Paris. 🌦"

TOOL: tuple[Event, ...] = (
    ToolStart(call="call_1", name="get_weather"),
    ToolDelta(call="call_1", text='{"city":"Par'),
    ToolDelta(call="call_1", text='is"}'),
    ToolEnd(call="call_1", name="get_weather", arguments={"city": "Paris"}),
    RunCompleted(finish_reason="tool_calls"),
)
FAILED: tuple[Event, ...] = (
    TextStart(block="t1"),
    TextDelta(block="t1", text="It is"),
    RunFailed(code="upstream_error", message="upstream agent failed"),
)


def options(*, usage: bool = False, reasoning: bool = True, safe: bool = False) -> ViewOptions:
    """How the expected files see the run."""
    return ViewOptions(
        run=RUN, agent=AGENT, created=ATTEMPT // 1000, usage=usage, reasoning=reasoning, safe=safe
    )
