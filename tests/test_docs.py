"""The pages in docs/ say what the code does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from pydantic import BaseModel

from cli.check import checked
from shared import config
from shared.events import EVENT_TYPES
from tests.support.procs import ROOT

PROTOCOL = (ROOT / "docs" / "protocol.md").read_text("utf-8")
CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text("utf-8")
EXAMPLES = re.findall(r"```yaml\n(.*?)```", CONFIGURATION, re.DOTALL)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

SECTIONS: dict[type[BaseModel], tuple[str, ...]] = {
    config.OpenAIChatAgent: ("Every agent", "Agents reached by HTTP", "`openai-chat`"),
    config.DifyAgent: ("Every agent", "Agents reached by HTTP", "`dify-completion`"),
    config.MappedAgent: ("Every agent", "Agents reached by HTTP", "`mapped`"),
    config.RestAgent: ("Every agent", "Agents reached by HTTP", "`rest`"),
    config.FunctionAgent: ("Every agent", "`function`"),
    config.Rule: ("`mapped`",),
    config.Timeouts: ("Every agent",),
    config.Client: ("clients",),
    config.Limits: ("clients",),
    config.ClientKey: ("clients",),
}


@pytest.mark.parametrize("event_type", EVENT_TYPES)
def test_every_event_and_field_is_documented(event_type: str) -> None:
    row = next((line for line in PROTOCOL.splitlines() if line.startswith(f"| `{event_type}` |")), "")
    assert row, f"docs/protocol.md has no row for {event_type}"
    missing = [name for name in _fields(event_type) if f"`{name}`" not in row]
    assert not missing, f"the row of {event_type} does not name {missing}"


def test_no_event_is_documented_that_does_not_exist() -> None:
    events = PROTOCOL.partition("## Events")[2].partition("\n## ")[0]
    named = set(re.findall(r"^\| `([a-z.]+)` \|", events, re.MULTILINE))
    assert named == set(EVENT_TYPES) | {"reset"}


def test_every_failure_code_in_the_code_is_documented() -> None:
    used = set()
    for file in (
        path for package in ("shared", "workers", "gateway") for path in (ROOT / package).rglob("*.py")
    ):
        text = file.read_text("utf-8")
        used |= set(re.findall(r"RunFailed\(\s*code=\"([a-z_]+)\"", text))
        if file.name == "errors.py" and file.parent.name == "shared":
            used |= set(re.findall(r"^    code = \"([a-z_]+)\"", text, re.MULTILINE))
    codes = PROTOCOL.partition("### Failure codes")[2].partition("\n## ")[0]
    assert used <= set(re.findall(r"^\| `([a-z_]+)` \|", codes, re.MULTILINE))


@pytest.mark.parametrize("model", SECTIONS, ids=lambda model: str(model.__name__))
def test_every_field_of_agents_yaml_is_documented(model: type[BaseModel]) -> None:
    text = "".join(_section(title) for title in SECTIONS[model])
    missing = [name for name in model.model_fields if f"`{name}`" not in text]
    assert not missing, f"docs/configuration.md does not name {missing} of {model.__name__}"


def test_table_of_settings_is_current() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "scripts.settings_table", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_every_example_configuration_is_good(example: str, tmp_path: Path) -> None:
    file = tmp_path / "agents.yaml"
    file.write_text(example.replace("hash: ...", f"hash: {'a' * 64}"), "utf-8")
    assert "good" in checked(file, {})[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.name))
def test_links_lead_somewhere(page: object) -> None:
    text = (ROOT / str(page)).read_text("utf-8")
    for target in re.findall(r"\]\(([^)#]+)", text) + re.findall(r"\bdocs/[a-z-]+\.md", text):
        if not target.startswith("http"):
            base = ROOT if target.startswith("docs/") else (ROOT / str(page)).parent
            assert (base / target).exists(), target


def _fields(event_type: str) -> list[str]:
    return [field.name for field in msgspec.structs.fields(EVENT_TYPES[event_type])]


def _section(title: str) -> str:
    found = re.search(rf"^(#+) {re.escape(title)}", CONFIGURATION, re.MULTILINE)
    assert found, f"docs/configuration.md has no section {title}"
    rest = CONFIGURATION[found.end() :]
    return re.split(rf"^#{{2,{len(found[1])}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]
