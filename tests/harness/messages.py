"""The lines that cwsink says on stderr, as its source has them: for tests that compare them with the manual."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tests.harness.pages import ROOT

# What a program of cwsink's own says, and what stands for CloudWatch in tests.
_OTHERS = {"testing", "demo", "cli"}


def reported() -> Iterator[tuple[str, str]]:
    """Yield where each `report(key, message)` stands, and its message. "..." stands for what differs."""
    for path in sorted((ROOT / "cwsink").rglob("*.py")):
        if not _OTHERS & set(path.relative_to(ROOT / "cwsink").parts) or path.name == "serve.py":
            for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(function, ast.FunctionDef):
                    for message in _messages(function):
                        yield f"{path.relative_to(ROOT)}, {function.name}", message


def _messages(function: ast.FunctionDef) -> Iterator[str]:
    nodes = list(ast.walk(function))
    for call in nodes:
        if isinstance(call, ast.Call) and ast.unparse(call.func).rpartition(".")[2] == "report":
            message = call.args[1]
            texts = list(_texts(message))
            if not any(map(_is_telling, texts)):  # it is put together in a variable before
                names = {each.id for each in ast.walk(message) if isinstance(each, ast.Name)}
                texts = [text for name in names for value in _values(nodes, name) for text in _texts(value)]
            yield from filter(_is_telling, texts)


def _is_telling(text: str) -> bool:
    return len(text.replace("...", "").strip(" .")) > len("Spool:")


def _values(nodes: list[ast.AST], name: str) -> Iterator[ast.expr]:
    """Yield what is assigned to a variable."""
    for each in nodes:
        if isinstance(each, ast.Assign) and any(ast.unparse(target) == name for target in each.targets):
            yield each.value


def _texts(node: ast.expr) -> list[str]:
    """Return what a text may be."""
    if isinstance(node, ast.Constant):
        return [str(node.value)]
    if isinstance(node, ast.IfExp):
        return [*_texts(node.body), *_texts(node.orelse)]
    if isinstance(node, ast.FormattedValue):
        return _texts(node.value) if isinstance(node.value, ast.IfExp) else ["..."]
    if isinstance(node, ast.JoinedStr):
        found = [""]
        for part in node.values:
            found = [text + more for text in found for more in _texts(part)]
        return found
    return ["..."]
