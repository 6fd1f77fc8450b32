"""Agents that nobody wrote code for: rules from the configuration over SSE or NDJSON frames.

A word of the configuration stands for a frame: a bare one for its type (the `event:` line, else
`$.event`, else `$.type`), one in brackets for its raw data. Of the rules the first that applies is
used; a frame that `end` names may hold something for a rule as well (usage, mostly).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from shared.config import MappedAgent, Rule
from shared.errors import AgentError, AgentProtocolError, AgentTruncated, at
from shared.events import Event, Json, RunCompleted, RunIds, Step, Usage
from shared.requests import RunRequest
from shared.sse import ServerSentEvent
from workers.dialects.base import AgentRequest
from workers.dialects.blocks import Blocks
from workers.dialects.decoding import FrameJson
from workers.dialects.outputs import Outputs
from workers.dialects.reported import shown
from workers.dialects.templated import TemplatedRequest
from workers.mapping import Path, as_text, compile_data, compile_path

_ACCEPT = {"sse": "text/event-stream", "ndjson": "application/x-ndjson"}


class _Words:
    """Words by what they stand for."""

    def __init__(self, words: Iterable[str]) -> None:
        bracketed = {word for word in words if word.startswith("[") and word.endswith("]")}
        self.raw = frozenset(word.encode() for word in bracketed)
        self.types = frozenset(words) - bracketed


class _CompiledRule:
    def __init__(self, rule: Rule) -> None:
        self.words = _Words([] if rule.word is None else [rule.word])
        conditions = ((path, wanted) for path, wanted in rule.when.items() if path != "event")
        self.when = [(_at("when", path, path), wanted) for path, wanted in conditions]
        self.text = _path("text", rule.text)
        self.whole = _path("whole", rule.whole)
        self.reasoning = _path("reasoning", rule.reasoning)
        with at("data"):
            self.data = compile_data(rule.data)
        self.usage = [(name, _at("usage", name, path)) for name, path in rule.usage.items()]
        self.step = _path("step", rule.step)
        self.conversation = _path("conversation", rule.conversation)
        self.error = _path("error", rule.error)
        self.end = rule.end
        self.ignore = rule.ignore
        self._any_word = rule.word is None

    def applies(self, frame: ServerSentEvent, kind: str, value: Json) -> bool:
        if not (self._any_word or kind in self.words.types or frame.data in self.words.raw):
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
        self._rules = list(_compiled(config.events))
        self._plain = frozenset().union(*(rule.words.raw for rule in self._rules))
        self._end = _Words(config.end)
        self._ignore = _Words(config.ignore)
        self._json = FrameJson()
        self._blocks = Blocks()
        self._whole = ""
        self._usage: Usage | None = None
        self._outputs = Outputs(name for rule in self._rules for name, _ in rule.data)

    def request(self, run: RunRequest) -> AgentRequest:
        """The configured request, filled."""
        return self._request.fill(run)

    def map(self, frame: ServerSentEvent) -> Iterable[Event]:
        """The events of one frame, by the first rule that applies."""
        if self.closed or not (frame.data or frame.event):
            return ()
        if frame.data in self._end.raw:
            self.complete = self.closed = True
            return self._json.mend(self._blocks.close())
        if frame.data in self._ignore.raw or frame.event in self._ignore.types:
            return ()
        return self._json.mend(self._map(frame))

    def finish(self) -> Iterable[Event]:
        """The rest, and the end if the agent told one or needs none."""
        return self._json.mend(self._finish())

    def stop_request(self) -> AgentRequest | None:
        """There is none: closing the connection stops the agent."""
        return None

    def _map(self, frame: ServerSentEvent) -> Iterator[Event]:
        value = self._value(frame)
        kind = frame.event or _type(value)
        if kind in self._ignore.types:
            return
        rule = next((rule for rule in self._rules if rule.applies(frame, kind, value)), None)
        ends = kind in self._end.types
        if rule is None:
            self.unmatched += not ends
        elif not rule.ignore:
            yield from self._apply(rule, value)
        if ends or (rule and rule.end):
            self.complete = True
            yield from self._blocks.close()

    def _value(self, frame: ServerSentEvent) -> Json:
        """What rules see: JSON, or text where the configuration says so. Raises AgentProtocolError."""
        if self._config.content == "text" or frame.data in self._plain:
            return frame.data.decode("utf-8", "replace")
        try:
            return self._json.value(frame.data)
        except AgentProtocolError:
            if frame.data and frame.event not in self._end.types:  # the end may come with any words
                raise
            return None

    def _apply(self, rule: _CompiledRule, value: Json) -> Iterator[Event]:
        if rule.conversation and (conversation := rule.conversation.first(value)):
            yield RunIds(conversation_id=_text(rule.conversation, conversation))
        if not self.complete:
            yield from self._map_text(rule, value)
        if rule.step and (step := rule.step.first(value)):
            yield Step(shown(_text(rule.step, step)), "started")
        yield from self._outputs.take(rule.data, value)
        yield from self._count(rule, value)
        if rule.error and (error := rule.error.first(value)) is not None:
            yield from self._blocks.close()
            raise AgentError(shown(as_text(error)))

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
        yield RunCompleted("stop", self.ended_as, self._usage, self._outputs.whole)


def _compiled(rules: Iterable[Rule]) -> Iterator[_CompiledRule]:
    for place, rule in enumerate(rules):
        with at("events", place):
            yield _CompiledRule(rule)


def _path(field: str, expression: str | None) -> Path | None:
    with at(field):
        return None if expression is None else compile_path(expression)


def _at(field: str, name: str, expression: str) -> Path:
    with at(field, name):
        return compile_path(expression)


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
