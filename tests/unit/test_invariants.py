"""The numbered invariants of `cwsink` and the tests that hold them name each other.

A test names its invariants in its docstring, or its module does for all of its tests, in this form and no other:
`Invariant 3.`, or `Invariants 1, 3, 10.` for several.
"""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path
from pkgutil import resolve_name
from typing import Final, NamedTuple

import pytest

TESTS: Final = Path(__file__).resolve().parents[1]
PAGES: Final = ("cwsink", "cwsink.spool", "cwsink.flusher", "cwsink.frontends")
MOST_BYTES: Final = 50_000  # each worker holds two of the pages, the flusher three

NAMED: Final = re.compile(r"\bInvariants? (\d+(?:, \d+)*)\.")
ITEM: Final = re.compile(r"^(\d+)\. (.*?)^ *Held by: (.*?)(?=\n\n)", re.MULTILINE | re.DOTALL)
# A module, or something in one, as the pages write it: from its room on.
MODULE: Final = re.compile(r"`((?:cwsink\.)?(?:spool|flusher|frontends)\.\w+(?:\.\w+)*)`")


class Holds(NamedTuple):
    """A test, or a whole file of them, and an invariant that it holds."""

    test: str
    invariant: int


def page(name: str) -> str:
    return importlib.import_module(name).__doc__ or ""


def claimed() -> set[Holds]:
    """What the page of `cwsink` says: which tests hold which invariant."""
    items = ITEM.findall(page("cwsink"))
    return {Holds(test, int(number)) for number, _, tests in items for test in re.split(r",\s+", tests)}


def named_in(path: Path) -> set[Holds]:
    """What the docstrings of a test file say."""
    module = ast.parse(path.read_text())
    place = path.relative_to(TESTS).as_posix()
    documented: list[tuple[str, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef]] = [(place, module)]
    documented += [
        (f"{place}::{each.name}", each)
        for each in ast.walk(module)
        if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef) and each.name.startswith("test_")
    ]
    return {
        Holds(test, int(number))
        for test, node in documented
        for numbers in NAMED.findall(ast.get_docstring(node) or "")
        for number in numbers.split(", ")
    }


def test_each_invariant_has_a_number_a_sentence_and_a_test() -> None:
    """They are numbered from 1 without a gap, and none is there that nothing holds."""
    items = ITEM.findall(page("cwsink"))
    assert [int(number) for number, _, _ in items] == list(range(1, len(items) + 1))
    assert len(items) == page("cwsink").count("Held by: ") > 0
    assert all(sentence.strip() and tests.strip() for _, sentence, tests in items)


def test_the_page_and_the_tests_name_each_other() -> None:
    """Whoever adds, renames or removes a test on one side is told about the other one."""
    files = [path for path in TESTS.rglob("test_*.py") if path != Path(__file__)]
    named = set().union(*map(named_in, files))
    assert not claimed() - named, "the page names a test that is not there, or does not name the invariant"
    assert not named - claimed(), "a test names an invariant, and the page does not name the test"


@pytest.mark.parametrize("name", PAGES)
def test_each_module_that_a_page_names_is_there(name: str) -> None:
    """A module, or something in one, that was renamed: the page would send its reader nowhere."""
    for found in MODULE.findall(page(name)):
        resolve_name(found if found.startswith("cwsink.") else f"cwsink.{found}")


def test_the_pages_are_small() -> None:
    """They are in the memory of every process that logs."""
    sizes = {name: len(page(name).encode()) for name in PAGES}
    assert sum(sizes.values()) <= MOST_BYTES, sizes


def test_a_name_is_read_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One or several, of a file or of a function; a number that stands elsewhere is none."""
    monkeypatch.setattr(f"{__name__}.TESTS", tmp_path)
    path = tmp_path / "test_it.py"
    path.write_text('"""All. Invariant 3."""\n\ndef test_one():\n    """It holds.\n\n    Invariants 1, 10.\n    """\n')
    assert named_in(path) == {
        Holds("test_it.py", 3),
        Holds("test_it.py::test_one", 1),
        Holds("test_it.py::test_one", 10),
    }
    path.write_text('"""Invariant 3 is none, nor are invariants 4."""\n\ndef helper():\n    """Invariant 5."""\n')
    assert named_in(path) == set()
