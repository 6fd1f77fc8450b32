"""agents.yaml: agents, clients and their limits, validated once and frozen.

Secrets stand in the file only as `${NAME}`; an agent whose variable is unset is listed as
unavailable with the variable's name, and the others run. Durations are in seconds.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    SecretStr,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from shared.errors import ConfigError, at
from shared.placeholders import names_in

SHORTEST_SECRET = 6
"""Characters below which a header's value is a word like any other."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$")]
OnDisconnect = Literal["continue", "cancel", "linger"]
OnInterrupt = Literal["fail", "restart"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Timeouts(_Model):
    """The four deadlines of a run, and the one to connect."""

    queue: float = Field(60.0, gt=0, description="from acceptance to the first attempt")
    connect: float = Field(10.0, gt=0, description="to reach the agent")
    first_event: float = Field(
        60.0, gt=0, description="from the request to the first event; pings do not count"
    )
    progress: float = Field(120.0, gt=0, description="between two events; pings do not count")
    run: float = Field(600.0, gt=0, description="the whole run, from its first attempt to its end")


class _Agent(_Model):
    description: str | None = None
    timeouts: Timeouts = Timeouts()
    on_disconnect: OnDisconnect = "continue"
    linger: float = Field(
        30.0, ge=0, description="with on_disconnect linger: seconds after the last viewer left"
    )
    on_interrupt: OnInterrupt = "fail"
    repeatable: bool = Field(True, description="false: never call this agent a second time for one run")
    text: str | None = Field(
        None, description="JSONPath of the text in structured output, for text-only front ends"
    )


class _HttpAgent(_Agent):
    url: str
    api_key: SecretStr | None = None
    headers: dict[str, SecretStr] = {}
    body: dict[str, Any] = Field({}, description="fields added to every request body")
    user: str = Field("streaming-bff", description="user id told to the agent when the front end names none")

    @field_validator("url")
    @classmethod
    def _http(cls, url: str) -> str:
        if not re.match(r"https?://[^/\s?#@\\]+([/?][^\s\\]*)?$", url):
            raise ValueError("must be an http:// or https:// address without user name or spaces")
        return url.rstrip("/")


class OpenAIChatAgent(_HttpAgent):
    """Chat Completions and its look-alikes. `url` is the base; `/chat/completions` is added."""

    dialect: Literal["openai-chat"]
    model: str
    usage: bool = Field(True, description="ask for token counts (`stream_options.include_usage`)")
    split_think: bool = Field(False, description="take <think>...</think> out of the text as reasoning")
    api_key_header: str = Field("Authorization", description="`api-key` on Azure")


class DifyAgent(_HttpAgent):
    """A Dify app. `url` is the base, which ends in `/v1`."""

    dialect: Literal["dify-completion", "dify-chat", "dify-workflow"]
    history: Literal["last", "transcript"] = "last"
    input_name: str = Field("query", description="named input that takes the text of a plain request")


Method = Literal["GET", "POST", "PUT"]
JsonPath = Annotated[str, Field(min_length=1, max_length=256)]
DataName = Annotated[str, Field(min_length=1, max_length=64)]
TokenCount = Literal["input_tokens", "output_tokens", "total_tokens", "reasoning_tokens"]


def _one_complaint(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    try:
        return validate(value)
    except ValidationError:
        raise ValueError("must be a JSONPath, or a mapping of names to JSONPaths") from None


DataPaths = Annotated[JsonPath | dict[DataName, JsonPath], WrapValidator(_one_complaint)]
"""One path, whose last field is the name of what it leads to, or a name for each path."""


def _words(value: Any) -> Any:
    if isinstance(value, str):
        raise ValueError("must be a list of words, in brackets")
    if isinstance(value, list | tuple) and any(isinstance(word, list) for word in value):
        raise ValueError('a word in brackets needs quotes: "[DONE]"')
    return value


Word = Annotated[str, Field(min_length=1, max_length=256)]
"""Bare: a frame's type, from its `event:` line, else `$.event`, else `$.type`. In brackets: its raw data."""

Words = Annotated[tuple[Word, ...], BeforeValidator(_words)]


class Rule(_Model):
    """One mapping rule: when it applies, and what it takes by JSONPath. Rules are tried in order and
    the first that applies is used. A path that finds nothing gives nothing."""

    when: dict[str, JsonValue] = Field(
        {}, description="`event` to a word, and JSONPath to value: applies when all are equal"
    )
    text: JsonPath | None = None
    whole: JsonPath | None = Field(None, description="the whole text so far, for agents that repeat it")
    reasoning: JsonPath | None = None
    data: DataPaths | None = Field(
        None, description="structured output: a JSONPath, whose last field is the name, or name to JSONPath"
    )
    usage: dict[TokenCount, JsonPath] = {}
    step: JsonPath | None = Field(None, description="JSONPath of a step's name")
    conversation: JsonPath | None = Field(None, description="JSONPath of the agent's own conversation id")
    error: JsonPath | None = Field(None, description="JSONPath of an error's text: the run fails when found")
    end: bool = Field(False, description="the agent's end marker")
    ignore: bool = False

    @property
    def word(self) -> str | None:
        """The word that its frames have, if it is for some only."""
        event = self.when.get("event")
        return event if isinstance(event, str) else None

    @field_validator("when")
    @classmethod
    def _conditions(cls, when: dict[str, JsonValue]) -> dict[str, JsonValue]:
        for key, value in when.items():
            if key == "event" and not (isinstance(value, str) and value):
                raise ValueError(
                    "`event` must be a word; one that YAML takes for something else needs quotes"
                )
            if key != "event" and not key.startswith("$"):
                raise ValueError(f"{key!r} must be `event` or a JSONPath that begins with $")
        return when

    @model_validator(mode="after")
    def _takes_something(self) -> Self:
        if not self.model_fields_set - {"when"}:
            raise ValueError("takes nothing from its frames; name `text`, `data`, ..., or say `ignore: true`")
        return self


class _TemplatedAgent(_HttpAgent):
    """`{input}`, `{messages}`, `{conversation}`, `{user}`, `{inputs.NAME}` and `{metadata.NAME}` fill
    values of the body, path segments and query values of the address; `{{` and `}}` are braces."""

    method: Method = "POST"
    body: Any = Field({"input": "{input}"}, description="request body; not sent with GET")

    @field_validator("url")
    @classmethod
    def _fixed_host(cls, url: str) -> str:
        if "{" in re.split(r"[/?#]", url.partition("://")[2], maxsplit=1)[0]:
            raise ValueError("a placeholder must not stand in the scheme, host or port")
        with at("url"):
            names_in(url)
        return url

    @field_validator("body")
    @classmethod
    def _known_placeholders(cls, body: Any) -> Any:
        with at("body"):
            names_in(body)
        return body


class MappedAgent(_TemplatedAgent):
    """An agent nobody wrote code for: JSONPath rules over its frames."""

    dialect: Literal["mapped"]
    framing: Literal["sse", "ndjson"] = "sse"
    content: Literal["json", "text"] = Field("json", description="what the data of a frame is")
    events: tuple[Rule, ...]
    end: Words = Field(
        (), description="words of the frames that end the answer; `[DONE]` in brackets ends it at once"
    )
    ignore: Words = Field((), description="words of the frames that are passed over")
    end_of_body_completes: bool = Field(False, description="the agent has no end marker of its own")

    @field_validator("events")
    @classmethod
    def _reachable(cls, rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
        if not rules:
            raise ValueError("needs at least one rule")
        conditions = [
            {(key, json.dumps(value, sort_keys=True)) for key, value in rule.when.items()} for rule in rules
        ]
        for later, wanted in enumerate(conditions):
            first = next((place for place in range(later) if conditions[place] <= wanted), None)
            if first is not None:
                raise ValueError(
                    f"rule {later + 1} is never reached, as rule {first + 1} applies to the same frames;"
                    " make one of the two, or put the one with more conditions first"
                )
        return rules

    @model_validator(mode="after")
    def _words_agree(self) -> Self:
        if not (self.end or self.end_of_body_completes or any(rule.end for rule in self.events)):
            raise ValueError(
                "nothing ends an answer; name the end marker in `end`, in a rule with `end: true`,"
                " or say `end_of_body_completes: true`"
            )
        used = {*self.end, *(rule.word for rule in self.events if rule.word is not None)}
        if ignored := sorted(used.intersection(self.ignore)):
            raise ValueError(f"{ignored[0]} stands in `ignore`, so nothing else can be done with such frames")
        return self


class RestAgent(_TemplatedAgent):
    """An old service: one JSON answer. What is not JSON is text."""

    dialect: Literal["rest"]
    text: JsonPath | None = Field(
        None, description="JSONPath of the text; without it and `data` the whole answer is structured output"
    )
    data: DataPaths | None = Field(
        None, description="structured output: a JSONPath, whose last field is the name, or name to JSONPath"
    )
    error: JsonPath | None = Field(None, description="JSONPath of an error's text: the run fails when found")


class FunctionAgent(_Agent):
    """A Python function of your own: async generator, generator, coroutine or plain function."""

    dialect: Literal["function"] = "function"
    function: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$", description="package.module:function")


def _with_dialect(entry: Any) -> Any:
    """`entry` with the dialect that the key `function` stands for."""
    if not isinstance(entry, dict) or "dialect" in entry:
        return entry
    if "function" in entry:
        return {"dialect": "function", **entry}
    raise ValueError("how does it speak? name a `dialect`, or a `function` of your own")


Agent = Annotated[
    OpenAIChatAgent | DifyAgent | MappedAgent | RestAgent | FunctionAgent,
    Field(discriminator="dialect"),
    BeforeValidator(_with_dialect),
]


class ClientKey(_Model):
    """A key of a tenant. Only its id and the keyed hash of its secret are kept (`bff keys new`)."""

    id: str = Field(pattern=r"^[a-z0-9]{8,32}$")
    hash: str = Field(pattern=r"^[0-9a-f]{64}$")
    expires: datetime | None = None
    scopes: tuple[Literal["run", "read", "admin"], ...] = ("run", "read")
    agents: tuple[str, ...] = ("*",)
    default_agent: str | None = None


class Limits(_Model):
    running: int = Field(1000, ge=0, description="runs of this tenant that have not ended")
    streams: int = Field(1000, ge=0, description="open streams of this tenant on one gateway")
    requests_per_minute: int = Field(6000, ge=1, description="requests of this tenant to one gateway")


class Client(_Model):
    """A tenant."""

    keys: tuple[ClientKey, ...] = ()
    limits: Limits = Limits()


class _File(_Model):
    agents: dict[Name, Any] = {}
    clients: dict[Name, Client] = {}


@dataclass(frozen=True)
class Config:
    """What the file says. `unavailable` maps the name of an agent to why it cannot be asked."""

    agents: Mapping[str, Agent] = field(default_factory=dict)
    unavailable: Mapping[str, str] = field(default_factory=dict)
    dialects: Mapping[str, str] = field(default_factory=dict)
    clients: Mapping[str, Client] = field(default_factory=dict)
    digest: str = ""


_AGENT: TypeAdapter[Agent] = TypeAdapter(Agent)
_WRITTEN = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*(?::-[^}\n]*)?)\}")
_VARIABLE = re.compile("\ue000([A-Za-z_][A-Za-z0-9_]*)(?::-([^\ue001]*))?\ue001")
"""The same once read: braces of a variable would end a plain scalar in `{flow: ${STYLE}}`."""

_SECRET_FIELDS = ("api_key",)


class _Unset(Exception):
    """A variable without a default is not set."""


def load(path: Path, env: Mapping[str, str] = os.environ) -> Config:
    """Read and check the file. Raises ConfigError with the line and the reason."""
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); write one or set BFF_CONFIG to its place"
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not YAML: the file is no UTF-8 text") from None
    return parse(text, env, str(path))


def parse(text: str, env: Mapping[str, str], where: str = "agents.yaml") -> Config:
    """The same for text. `where` names it in errors."""
    try:
        root = compose(text)
        raw = (yaml.SafeLoader("").construct_document(root) if root else None) or {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{where}{line}: not YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{where}:1: expected a mapping with `agents:`")
    _refuse_literal_secrets(raw, root, where)
    try:
        file = _File.model_validate(raw)
    except ValidationError as error:
        raise _explained(error, root, where, ()) from None
    agents: dict[str, Agent] = {}
    unavailable: dict[str, str] = {}
    for name, entry in file.agents.items():
        try:
            agents[name] = _AGENT.validate_python(_filled(entry, env))
        except _Unset as unset:
            unavailable[name] = f"the environment variable {unset} is not set"
        except ValidationError as error:
            raise _explained(error, root, where, ("agents", name)) from None
        except ConfigError as error:
            raise located(error, root, where, name) from None
    dialects = {name: _dialect(entry) for name, entry in file.agents.items() if isinstance(entry, dict)}
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return Config(agents, unavailable, dialects, file.clients, digest)


def compose(text: str) -> yaml.Node | None:
    """The nodes of the file, for the lines they stand in. Raises yaml.YAMLError."""
    return yaml.compose(_WRITTEN.sub("\ue000\\1\ue001", text), _UniqueKeys)


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping (YAML 1.2, 3.2.1.3): the last one would win unseen."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value} is there twice", problem_mark=key.start_mark)
            seen.add(str(key.value))
        return node


def secrets_of(agent: Agent) -> tuple[str, ...]:
    """The key and the longer header values that this agent is given, the longest first."""
    if isinstance(agent, FunctionAgent):
        return ()
    values = [agent.api_key, *agent.headers.values()]
    secrets = {value.get_secret_value() for value in values if value is not None}
    return tuple(sorted((each for each in secrets if len(each) >= SHORTEST_SECRET), key=len, reverse=True))


def json_schema() -> dict[str, Any]:
    """JSON Schema of the file, for editors."""
    schema = _File.model_json_schema()
    agent = _AGENT.json_schema(ref_template="#/$defs/{model}")
    schema["$defs"] = {**schema.get("$defs", {}), **agent.pop("$defs", {})}
    (names,) = schema["properties"]["agents"]["patternProperties"]
    schema["properties"]["agents"]["patternProperties"] = {names: agent}
    return schema


def _filled(value: Any, env: Mapping[str, str]) -> Any:
    """`value` with every `${NAME}` and `${NAME:-default}` replaced. Raises _Unset."""
    if isinstance(value, dict):
        return {key: _filled(inner, env) for key, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, env) for inner in value]
    if not isinstance(value, str):
        return value

    def look_up(match: re.Match[str]) -> str:
        name, default = match.groups()
        found = env.get(name) or default
        if found is None:
            raise _Unset(name)
        return found

    return _VARIABLE.sub(look_up, value)


def _dialect(entry: dict[str, Any]) -> str:
    return str(entry.get("dialect", "function" if "function" in entry else ""))


def _refuse_literal_secrets(raw: dict[str, Any], root: yaml.Node | None, where: str) -> None:
    agents = raw.get("agents")
    for name, entry in agents.items() if isinstance(agents, dict) else ():
        for secret in _SECRET_FIELDS:
            value = entry.get(secret) if isinstance(entry, dict) else None
            if isinstance(value, str) and not _VARIABLE.search(value):
                place = _line(root, ("agents", name, secret))
                raise ConfigError(
                    f"{where}:{place}: agents.{name}.{secret}: a secret must not stand in the file;"
                    f" write ${{NAME}} and set the variable NAME"
                )


def _explained(
    error: ValidationError, root: yaml.Node | None, where: str, prefix: tuple[str, ...]
) -> ConfigError:
    """Pydantic's complaints, a line each, with the place in the file and without the values."""
    lines = []
    for detail in error.errors(include_url=False, include_input=False):
        inner = detail["loc"][1:] if prefix else detail["loc"]  # an agent's begins with its dialect
        path = prefix + inner
        name = ".".join(map(str, path))
        lines.append(f"{where}:{_line(root, path)}: {name}: {_reason(detail)}")
    return ConfigError("\n".join(lines))


def located(error: ConfigError, root: yaml.Node | None, where: str, agent: str) -> ConfigError:
    """What is wrong with one field of `agent`, with its line."""
    place = ("agents", agent, *error.place)
    return ConfigError(f"{where}:{_line(root, place)}: {'.'.join(map(str, place))}: {error.reason}")


def _reason(detail: ErrorDetails) -> str:
    if detail["type"] == "extra_forbidden":
        return "there is no such field here; docs/configuration.md lists them all"
    return detail["msg"].removeprefix("Value error, ")


def _line(node: yaml.Node | None, path: tuple[Any, ...]) -> int:
    """The line of the deepest node on `path` that exists."""
    line = node.start_mark.line + 1 if node is not None else 1
    for part in path:
        child = None
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == str(part):
                    line, child = key.start_mark.line + 1, value
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            child = node.value[part]
            line = child.start_mark.line + 1
        if child is None:
            break
        node = child
    return line
