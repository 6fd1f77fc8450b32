"""Agents that nobody wrote code for: rules from the configuration over SSE or NDJSON frames."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from shared.config import MappedAgent, Rule
from shared.errors import AgentError, AgentProtocolError, AgentTruncated
from shared.events import Data, Event, Json, RunCompleted, RunIds, Step, Usage
from shared.requests import RunRequest
from shared.sse import ServerSentEvent
from workers.dialects.base import AgentRequest
from workers.dialects.blocks import Blocks
from workers.dialects.decoding import FrameJson
from workers.dialects.reported import shown
from workers.dialects.templated import TemplatedRequest
from workers.mapping import Path, as_text, compile_path

_ACCEPT = {"sse": "text/event-stream", "ndjson": "application/x-ndjson"}


class _CompiledRule:
    def __init__(self, rule: Rule) -> None:
        self.event = rule.event
        self.when = [(compile_path(path), value) for path, value in rule.when.items()]
        self.text = _path(rule.text)
        self.whole = _path(rule.whole)
        self.reasoning = _path(rule.reasoning)
        self.data = [(name, compile_path(path)) for name, path in rule.data.items()]
        self.usage = [(name, compile_path(path)) for name, path in rule.usage.items()]
        self.step = _path(rule.step)
        self.conversation = _path(rule.conversation)
        self.error = _path(rule.error)
        self.end = rule.end
        self.ignore = rule.ignore

    def applies(self, name: str, value: Json) -> bool:
        if self.event is not None and self.event != name:
            return False
        return all(any(_equal(found, wanted) for found in path.find(value)) for path, wanted in self.when)


class Mapped:
    """One answer of an agent described by rules. `unmatched` counts frames that no rule applied to."""

    def __init__(self, config: MappedAgent) -> None:
        self.framing: str = config.framing
        self.complete = False
        self.closed = False
        self.ended_as: str | None = None
        self.unmatched = 0
        self._config = config
        self._request = TemplatedRequest(config, _ACCEPT[config.framing])
        self._rules = [_CompiledRule(rule) for rule in config.rules]
        self._done = None if config.done is None else config.done.encode()
        self._json = FrameJson()
        self._blocks = Blocks()
        self._whole = ""
        self._usage: Usage | None = None
        self._outputs: Json = None

    def request(self, run: RunRequest) -> AgentRequest:
        """The configured request, filled."""
        return self._request.fill(run)

    def map(self, frame: ServerSentEvent) -> Iterable[Event]:
        """The events of one frame, by the first rule that applies."""
        if self.closed or not frame.data:
            return ()
        if self._done is not None and frame.data == self._done:
            self.complete = self.closed = True
            return self._json.mend(self._blocks.close())
        return self._json.mend(self._map(frame))

    def finish(self) -> Iterable[Event]:
        """The rest, and the end if the agent told one or needs none."""
        return self._json.mend(self._finish())

    def stop_request(self) -> AgentRequest | None:
        """There is none: closing the connection stops the agent."""
        return None

    def _map(self, frame: ServerSentEvent) -> Iterator[Event]:
        text = self._config.content == "text"
        value = frame.data.decode("utf-8", "replace") if text else self._json.value(frame.data)
        name = frame.event or _type(value)
        rule = next((rule for rule in self._rules if rule.applies(name, value)), None)
        if rule is None:
            self.unmatched += 1
        elif not rule.ignore:
            yield from self._apply(rule, value)

    def _apply(self, rule: _CompiledRule, value: Json) -> Iterator[Event]:
        if rule.conversation and (conversation := rule.conversation.first(value)):
            yield RunIds(conversation_id=_text(rule.conversation, conversation))
        if not self.complete:
            yield from self._map_text(rule, value)
        if rule.step and (step := rule.step.first(value)):
            yield Step(shown(_text(rule.step, step)), "started")
        for name, path in rule.data:
            if (found := path.all(value)) is not None:
                self._outputs = found if name == "outputs" else self._outputs
                yield Data(name, found)
        yield from self._count(rule, value)
        if rule.error and (error := rule.error.first(value)) is not None:
            yield from self._blocks.close()
            raise AgentError(shown(as_text(error)))
        if rule.end:
            self.complete = True
            yield from self._blocks.close()

    def _map_text(self, rule: _CompiledRule, value: Json) -> Iterator[Event]:
        if rule.reasoning:
            yield from self._blocks.reasoning(_joined(rule.reasoning, value))
        if rule.text:
            yield from self._blocks.text(_joined(rule.text, value))
        if rule.whole and rule.whole.find(value):
            whole, before = _joined(rule.whole, value), self._whole
            self._whole = whole
            extends = whole.startswith(before)
            yield from self._blocks.text(whole[len(before) :]) if extends else self._blocks.replace(whole)

    def _count(self, rule: _CompiledRule, value: Json) -> Iterator[Event]:
        counts = {name: path.first(value) for name, path in rule.usage}
        told = {name: count for name, count in counts.items() if type(count) is int and count >= 0}
        if told:
            self._usage = Usage(**told)
            yield self._usage

    def _finish(self) -> Iterator[Event]:
        yield from self._blocks.close()
        if not (self.complete or self._config.end_of_body_completes):
            raise AgentTruncated("the agent closed the stream before its end marker")
        self.complete = True
        yield RunCompleted("stop", self.ended_as, self._usage, self._outputs)


def _path(expression: str | None) -> Path | None:
    return None if expression is None else compile_path(expression)


def _type(value: Json) -> str:
    """A frame's type where it has no `event:` line: `$.event`, else `$.type`."""
    names = (value.get("event"), value.get("type")) if isinstance(value, dict) else ()
    return next((name for name in names if isinstance(name, str)), "")


def _equal(found: Json, wanted: Json) -> bool:
    """Equality as JSON has it, where true is not 1."""
    return bool(found == wanted) and isinstance(found, bool) == isinstance(wanted, bool)


def _joined(path: Path, value: Json) -> str:
    return "".join(_text(path, found) for found in path.find(value))


def _text(path: Path, found: Json) -> str:
    if isinstance(found, dict | list):
        raise AgentProtocolError(f"{path.expression} leads to a {type(found).__name__}, not to text")
    return as_text(found)
