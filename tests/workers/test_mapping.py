"""Paths and templates: a compiled path finds what jsonpath-ng finds, a template fills values only."""

from __future__ import annotations

import re
from typing import Any

import jsonpath_ng
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import AgentProtocolError, AgentRejected, ConfigError
from shared.requests import Message, RunRequest
from workers.mapping import MAX_EXPRESSION, Path, Template, UrlTemplate

NAMES = st.sampled_from(["a", "b", "choices", "delta", "a b", "a.b", "*", "0", "ü", "$"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=12,
)
PLAIN = st.sampled_from(["a", "b", "choices", "delta"])
STEPS = st.one_of(
    PLAIN.map(lambda name: f".{name}"),
    NAMES.map(lambda name: f"['{name}']"),
    st.integers(-3, 3).map(lambda index: f"[{index}]"),
    st.sampled_from(["[*]", ".*", "..a", "[0,1]", "[0:2]", ".a,b", ".a.`parent`", ".`this`", ".(a.b)"]),
)
EXPRESSIONS = st.lists(STEPS, max_size=4).map(lambda steps: "$" + "".join(steps))

RUN = RunRequest(
    (Message("system", "be kind"), Message("user", 'what\n"now"?')),
    {"name": "Ada", "list": [1, 2], "path": "../etc", "empty": ""},
    conversation="c1",
    metadata={"team": "blue"},
)


@settings(max_examples=200, deadline=None)
@given(EXPRESSIONS, JSON)
def test_a_compiled_path_finds_what_jsonpath_ng_finds(expression: str, value: Any) -> None:
    found = [match.value for match in jsonpath_ng.parse(expression).find(value)]  # type: ignore[attr-defined]
    assert Path(expression).find(value) == found


def test_plain_paths_are_looked_up_directly() -> None:
    assert Path("$.choices[0].delta.content")._steps == ("choices", 0, "delta", "content")
    assert Path("$")._steps == ()
    assert Path("$..a")._steps is None
    assert Path("$.a,b")._steps is None


def test_all_gives_a_value_for_a_plain_path_and_a_list_for_others() -> None:
    value = {"a": [{"b": 1}, {"b": 2}]}
    assert Path("$.a[0].b").all(value) == 1
    assert Path("$.a[*].b").all(value) == [1, 2]
    assert Path("$.x").all(value) is None
    assert Path("$.x[*]").all(value) is None


def test_a_path_that_the_library_cannot_follow_is_the_agents_error() -> None:
    with pytest.raises(AgentProtocolError):
        Path("$.`parent`").find({})


@pytest.mark.parametrize("expression", ["$.", "$[", "$.a[?(@.b==1)]", "{", "$" + "." * 50, "$" + "(" * 100])
def test_a_bad_path_is_refused_by_name(expression: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Path(expression)
    assert expression[:20] in str(caught.value)


def test_a_long_path_is_refused() -> None:
    with pytest.raises(ConfigError):
        Path("$" + ".a" * MAX_EXPRESSION)


def test_a_template_alone_becomes_the_value_and_within_text_becomes_text() -> None:
    template = Template(
        {
            "q": "{input}",
            "list": "{inputs.list}",
            "text": "Dear {inputs.name}: {inputs.list} {inputs.absent}",
            "absent": "{inputs.absent}",
            "all": ["{messages}", {"team": "{metadata.team}"}],
            "user": "{user}",
            "fixed": 3,
            "braces": "{{input}} {{{input}}} }}{{",
            "{input}": "keys stay",
        }
    )
    assert template.fill(RUN) == {
        "q": 'what\n"now"?',
        "list": [1, 2],
        "text": "Dear Ada: [1,2] ",
        "absent": None,
        "all": [
            [{"role": "system", "content": "be kind"}, {"role": "user", "content": 'what\n"now"?'}],
            {"team": "blue"},
        ],
        "user": None,
        "fixed": 3,
        "braces": '{input} {what\n"now"?} }{',
        "{input}": "keys stay",
    }


def test_what_a_user_writes_is_never_a_template() -> None:
    run = RunRequest((Message("user", "{metadata.secret}"),), metadata={"secret": "s"})
    assert Template("-{input}-").fill(run) == "-{metadata.secret}-"


@pytest.mark.parametrize(
    "text",
    [
        "{nope}",
        "{input.x}",
        "{inputs.}",
        "{input",
        "{ input }",
        "{__class__}",
        "{inputs.a b}",
        "a}",
        '{"a": 1}',
    ],
)
def test_an_unknown_placeholder_is_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(text)):
        Template({"x": text + " "})


def test_an_address_is_filled_percent_encoded() -> None:
    template = UrlTemplate("http://host:80/v1/{inputs.name}/ask?q={input}&n=1")
    assert template.fill(RUN) == "http://host:80/v1/Ada/ask?q=what%0A%22now%22%3F&n=1"
    assert "a%2Fb%3Fc%23d%40e" in UrlTemplate("http://h/{input}").fill(
        RunRequest((Message("user", "a/b?c#d@e"),))
    )


@pytest.mark.parametrize("value", ["..", ".", ""])
def test_a_value_cannot_change_the_path(value: str) -> None:
    with pytest.raises(AgentRejected):
        UrlTemplate("http://h/users/{inputs.x}/data").fill(RunRequest(inputs={"x": value}))


@pytest.mark.parametrize(
    "url",
    [
        "{inputs.x}://h/",
        "http://{inputs.x}/",
        "http://h:{inputs.x}/",
        "http://h/?{inputs.x}=1",
        "http://h/{nope}",
    ],
)
def test_a_template_elsewhere_in_an_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        UrlTemplate(url)
