"""The shape of the package: it reads downwards, and each piece of it can be taken in at once."""

from __future__ import annotations

import ast
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

TESTS: Final = Path(__file__).parents[1]
PACKAGE: Final = TESTS.parent / "cwsink"
MOST_LINES: Final = 400
MOST_CODE_LINES: Final = 50


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


# The manual's recipes are programs of users.
MODULES: Final = {name_of(path): path for path in PACKAGE.rglob("*.py") if "manual" not in path.parts}
TREES: Final = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def imports_of(tree: ast.Module) -> Iterator[str]:
    """Yield the modules of ours that are imported anywhere: also in a function, and for annotations only."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            within = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (each if each in MODULES else node.module for each in within)


def test_no_two_modules_import_each_other_on_any_way() -> None:
    """There is an order in which all modules can be read, each after those that it uses."""
    graph = {name: set(imports_of(tree)) - {name} for name, tree in TREES.items()}
    order = list(graphlib.TopologicalSorter(graph).static_order())  # CycleError names the modules of a circle
    assert set(order) == set(MODULES)
    assert len(order) > 100


def test_no_module_is_too_long() -> None:
    """So that a reader can hold it in mind."""
    assert not {name: n for name, path in MODULES.items() if (n := path.read_text().count("\n")) > MOST_LINES}


def test_no_function_is_too_long() -> None:
    """Its docstring and comments do not count, nor do those of functions in it."""
    too_long = {}
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) is not None else node.body
                lines = {line for each in body for part in ast.walk(each) if (line := getattr(part, "lineno", 0))}
                if len(lines) > MOST_CODE_LINES:
                    too_long[f"{name}.{node.name}"] = len(lines)
    assert not too_long


def test_no_two_modules_have_one_name() -> None:
    """Each name has one meaning. The heart of a package may have its name, and a command that of what it runs."""
    leaves = [name.rpartition(".")[2] for name in MODULES]
    double = {leaf for leaf in leaves if leaves.count(leaf) > 1}
    assert double == {"__main__", "demo", "doctor", "flusher", "top"}


def test_no_two_public_classes_have_one_name() -> None:
    """But for shapes of CloudWatch's, which the judge in `testing` reads by itself."""
    names = [
        node.name
        for tree in TREES.values()
        for node in tree.body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]
    assert {name for name in names if names.count(name) > 1} == {"Entity", "LogEvent"}


# What is touched by name. Somebody may exchange a directory between two calls: see cwsink.spool.open_directory.

TAKES_A_NAME: Final = frozenset(
    "open stat lstat access listdir scandir walk fwalk readlink statvfs mkdir makedirs mkfifo mknod link symlink "
    "unlink remove rmdir removedirs rename renames replace utime chmod lchmod chown lchown truncate".split()
)
OF_PATH: Final = frozenset("exists lexists isdir isfile islink getmtime getctime getsize realpath samefile".split())
READ_OR_WRITE: Final = frozenset("pathlib shutil glob tempfile".split())
# Who may use which of them, and for what.
BY_NAME: Final = {
    "cwsink.spool.open_directory": ("listdir stat unlink replace link utime chmod", "this is the module"),
    "cwsink.spool.descriptors": ("open stat listdir", "opens for it, and looks into /dev/fd"),
    "cwsink.spool.files": ("lstat", "for answers that nobody goes by: see there"),
    "cwsink.spool.root": (
        "mkdir stat lstat chmod access scandir readlink isdir statvfs",
        "the root and the way to it, before it is trusted; makes directories for open_directory",
    ),
    "cwsink.spool.directory": ("open realpath", "/proc/self/mountinfo"),
    "cwsink.spool.attachment": ("open", "/proc/locks"),
    "cwsink.spool.disk": ("statvfs readlink", "of a descriptor, /proc, and what the doctor says of the disk"),
    "cwsink.spool.flusher_lock": ("utime", "of a descriptor"),
    "cwsink.spool.held_lock": ("open", "/proc"),
    "cwsink.spool.leadership": ("open stat listdir", "/proc"),
    "cwsink.spool.sending": ("stat", "/proc, and cwsink's own files"),
    "cwsink.diagnostics": ("stat", "/dev/null"),
    "cwsink.flusher.aws_data": ("open isdir listdir", "botocore's files"),
    "cwsink.flusher.guard": ("open", "/proc"),
    "cwsink.flusher.mute": ("open", "/dev/null"),
    "cwsink.flusher.stderr": ("open lstat listdir readlink", "/proc"),
    "cwsink.frontends.outlook": ("open exists", "the files that AWS's tools share"),
    "cwsink.frontends.starter": ("access pathlib shutil", "the shell, Python, and cwsink's own files"),
    "cwsink.cli": ("open", "/dev/null"),
    "cwsink.watching.output": ("open stat realpath exists replace unlink", "the file of --output or --textfile"),
    "cwsink.words": ("stat", "whose a spool is, whom a command is for"),
    "cwsink.doctor.machine": ("open stat access isdir", "/proc, and what is said of the root"),
    "cwsink.cli.spools": ("isdir", "what is said of a PATH that holds no spool"),
    "cwsink.supervisor.command": ("listdir pathlib", "/proc"),
    "cwsink.supervisor.flusher_process": ("pathlib", "cwsink's own files"),
    "cwsink.host": ("open", "/proc"),
    "cwsink.hosted": ("open stat listdir readlink", "/proc"),
    "cwsink.regions": ("open", "botocore's list of regions"),
}
# They have no spool, but that of an application that they start.
WITHOUT_SPOOL: Final = ("cwsink.demo", "cwsink.testing")


def taken_by_name(tree: ast.Module) -> Iterator[str]:
    """Yield what is used of all that takes a name, however it is written."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            of = ast.unparse(node.value)
            if (of in ("os", "posix") and node.attr in TAKES_A_NAME) or (of == "os.path" and node.attr in OF_PATH):
                yield node.attr
        elif isinstance(node, ast.Name) and node.id == "open":
            yield "open"
        elif isinstance(node, ast.ImportFrom) and node.module in ("os", "os.path", "posix", "io"):
            yield from (TAKES_A_NAME | OF_PATH | {"*"}).intersection(alias.name for alias in node.names)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            imported = [node.module or ""] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names]
            yield from READ_OR_WRITE.intersection(imported)
            yield from (f"os as {each.asname}" for each in node.names if each.name == "os" and each.asname)


def test_only_one_module_touches_the_files_of_a_spool_by_name() -> None:
    """All others go by it. What else takes a name is in the table, with the files that it is used for."""
    used = {
        name: found
        for name, tree in TREES.items()
        if not name.startswith(WITHOUT_SPOOL) and (found := set(taken_by_name(tree)))
    }
    may = {name: set(names.split()) for name, (names, _) in BY_NAME.items()}
    assert not {name: extra for name, found in used.items() if (extra := found - may.get(name, set()))}
    assert used.keys() == may.keys(), "the table names a module that needs none of them"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import os\nos.stat(path)", "stat"),
        ("import os\nmap(os.unlink, paths)", "unlink"),
        ("import os\nos.path.exists(path)", "exists"),
        ("from os import rename as move", "rename"),
        ("from os.path import isdir", "isdir"),
        ("import os as operating_system", "os as operating_system"),
        ("with open(path) as file:\n    pass", "open"),
        ("from pathlib import Path", "pathlib"),
        ("import shutil", "shutil"),
    ],
)
def test_a_file_that_is_touched_is_noticed(source: str, found: str) -> None:
    """Called or handed over, and by whatever name."""
    assert set(taken_by_name(ast.parse(source))) == {found}


# Who suppresses what a signal handler raises: none on the way of a log call.

AT_THE_END: Final = {"cwsink.frontends.presence", "cwsink.frontends.outlook", "cwsink.frontends.fapilog_repairs"}


def test_nothing_on_the_way_of_a_log_call_suppresses_a_signal_handlers_exception() -> None:
    """`cwsink.interruption.suppress` lets it pass. contextlib's may take kinds that no handler raises."""
    found = set()
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "contextlib.suppress":
                found |= {name for kind in node.args if ast.unparse(kind) in ("OSError", "Exception", "BaseException")}
            elif isinstance(node, ast.ImportFrom) and node.module == "contextlib":
                found |= {name for alias in node.names if alias.name == "suppress"}
    assert {name for name in found if name.startswith(("cwsink.spool", "cwsink.frontends"))} == AT_THE_END


# The tests themselves.


def test_no_two_helpers_of_the_tests_have_one_name() -> None:
    """A name has one meaning in all tests, unless it is of one function only."""
    paths = list(TESTS.rglob("*.py"))
    modules = [path.stem for path in paths if not path.stem.startswith(("__init__", "conftest", "test_"))]
    assert not {name for name in modules if modules.count(name) > 1}
    classes = [
        node.name
        for path in paths
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]
    assert not {name for name in classes if classes.count(name) > 1}


@pytest.mark.parametrize("page", ["README.md", "__init__.py"])
def test_each_place_that_a_page_of_the_tests_names_is_there(page: str) -> None:
    """A file, and what is said to be in it: whoever works on cwsink is sent there."""
    text = (TESTS / page).read_text(encoding="utf-8")
    for place in set(re.findall(r"`((?:cwsink|tests|scripts|faults)/[\w/.]+)`", text)):
        assert (TESTS.parent / place).exists() or (TESTS / place).exists(), place
    for name, place in re.findall(r"`(\w+)`\s+in\s+`([\w/]+\.py)`", text):
        source = (TESTS.parent / place).read_text(encoding="utf-8")
        assert re.search(rf"^(class |def )?{name}\b", source, re.MULTILINE), name
