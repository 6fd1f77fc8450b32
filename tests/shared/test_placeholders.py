"""Text with placeholders: what is a name, what is a brace, what is refused."""

from __future__ import annotations

import pytest

from shared.errors import ConfigError
from shared.placeholders import names_in, split


@pytest.mark.parametrize(
    ("text", "literals", "names"),
    [
        ("", [""], []),
        ("{input}", ["", ""], ["input"]),
        ("{inputs.a-b.c}{user}.", ["", "", "."], ["inputs.a-b.c", "user"]),
        ("{{input}}", ["{input}"], []),
        ("{{{input}}}", ["{", "}"], ["input"]),
    ],
)
def test_text_is_split_into_literals_and_names(text: str, literals: list[str], names: list[str]) -> None:
    assert split(text) == (literals, names)


def test_names_stand_in_values_at_any_depth() -> None:
    assert names_in({"{user}": ["{input}", 3, {"a": "{inputs.x} {messages}"}]}) == {
        "input",
        "inputs.x",
        "messages",
    }


@pytest.mark.parametrize("text", ["{", "a}", "{}", "{ input }", "{nope}", "{inputs.}", '{"a": {"b": 1}}'])
def test_another_brace_is_refused_with_its_place(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^a\.1: ") as caught:
        names_in({"a": ["{input}", text]})
    assert caught.value.place == ("a", 1)
    assert "{{" in str(caught.value) or "}}" in str(caught.value)
