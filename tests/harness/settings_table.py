"""Writes the manual's table of settings, from the documentation of each setting and its default.

    python -m tests.harness.settings_table

cwsink/settings.py has a text below each setting. Editors show it, and the table has it. So there is one place to
change, and a test that finds a table that is older than it.
"""

from __future__ import annotations

import ast
import inspect
import re
from itertools import pairwise
from typing import Final

from cwsink import settings
from cwsink.config import SinkConfig
from tests.harness.pages import MANUAL

PAGE: Final = MANUAL / "settings.md"
HEAD: Final = "| setting | default | what it does |\n|---|---|---|\n"
_MIB: Final = 1 << 20


def documented() -> dict[str, str]:
    """Return what is said of each setting, in the order of SinkConfig."""
    (listed,) = (each for each in ast.parse(inspect.getsource(settings)).body if isinstance(each, ast.ClassDef))
    found = {}
    for field, text in pairwise(listed.body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            assert isinstance(text, ast.Expr)
            assert isinstance(text.value, ast.Constant)
            found[field.target.id] = " ".join(str(text.value.value).split())
    return {name: found[name] for name in SinkConfig.__struct_fields__}


def default_of(name: str) -> str:
    """Return the default of a setting as it could be written."""
    value = getattr(SinkConfig(), name)
    kind = settings.Settings.__annotations__[name].__forward_arg__
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if kind.startswith("Duration"):
        return f"`{value:g}s`"
    if kind.startswith("Size") and value % _MIB == 0:
        return f"{value // _MIB} MiB"
    return f"`{value}`" if isinstance(value, str) else str(value)


def table() -> str:
    """Return the table."""
    return HEAD + "".join(f"| `{name}` | {default_of(name)} | {text} |\n" for name, text in documented().items())


def main() -> None:
    """Write the table into the page, in the place of the one that is there."""
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(re.sub(rf"{re.escape(HEAD)}(\|.*\n)*", lambda _: table(), page), encoding="utf-8")


if __name__ == "__main__":
    main()
