"""The table of settings in docs/configuration.md, made from `shared/settings.py`.

`python -m scripts.settings_table` writes it; `--check` says whether it is current.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from pydantic_core import PydanticUndefined

from shared.settings import Settings

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
BEGIN, END = "<!-- settings -->\n", "<!-- /settings -->"


def main() -> int:
    """Write the table, or check it. Returns the exit status."""
    page = PAGE.read_text("utf-8")
    current = with_table(page)
    if "--check" not in sys.argv:
        PAGE.write_text(current, "utf-8")
        return 0
    if page != current:
        print("docs/configuration.md is not current: run python -m scripts.settings_table", file=sys.stderr)
    return int(page != current)


def with_table(page: str) -> str:
    """The page with the table as it should be."""
    head, _, rest = page.partition(BEGIN)
    return head + BEGIN + table() + END + rest.partition(END)[2]


def table() -> str:
    """A row for each setting."""
    rows = [
        f"| `BFF_{name.upper()}` | {_shown(field.default)} | {field.description or ''} |\n"
        for name, field in Settings.model_fields.items()
    ]
    return "| variable | default | meaning |\n| --- | --- | --- |\n" + "".join(rows)


def _shown(default: Any) -> str:
    if default is None or default is PydanticUndefined or isinstance(default, SecretStr) or default == ():
        return ""
    if isinstance(default, float):
        return f"{default:g}"
    return f"`{default}`"


if __name__ == "__main__":
    sys.exit(main())
