"""`import cwsink` is cheap, and offers what the README says."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import cwsink
import cwsink.config
import cwsink.errors
from cwsink.frontends.console import Console

ROOT = Path(__file__).resolve().parents[2]
HANG_SECONDS = 60

LOADED = """
import sys, {module}
for name in sorted(sys.modules):
    print(name)
"""


def loaded_by(module: str) -> set[str]:
    """The modules that a fresh interpreter has after importing this one."""
    child = subprocess.run(
        [sys.executable, "-c", LOADED.format(module=module)],
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )
    assert child.returncode == 0, child.stderr
    return set(child.stdout.split())


def test_importing_cwsink_imports_nothing_else() -> None:
    """The version number costs no room of ours, no third-party package."""
    loaded = loaded_by("cwsink")
    assert {name for name in loaded if name.startswith("cwsink")} == {"cwsink", "cwsink.version"}
    assert not loaded & {"fapilog", "boto3", "botocore", "msgspec", "filelock", "rich", "pydantic"}


@pytest.mark.parametrize("module", ["cwsink.flusher.election", "cwsink.flusher.guard", "cwsink.cli"])
def test_who_delivers_does_not_carry_fapilog(module: str) -> None:
    """Its 50 MB stay out of the processes that only send, and botocore waits until there is something to send."""
    loaded = loaded_by(module)
    assert not loaded & {"fapilog", "pydantic", "cwsink.frontends.writer"}
    assert not loaded & {"boto3", "botocore"}


def test_a_writer_carries_nothing_that_sends() -> None:
    """It writes to a file: no AWS client, no lease, nothing of the flusher, nor fapilog if it does not use that."""
    loaded = loaded_by("cwsink.frontends.writer")
    assert not loaded & {"boto3", "botocore", "filelock", "fapilog", "rich"}
    assert not {name for name in loaded if name.startswith(("cwsink.flusher", "cwsink.cli"))}


@pytest.mark.parametrize(
    "module", ["cwsink.frontends.log_handler", "cwsink.gunicorn", "cwsink.structlog, cwsink.loguru"]
)
def test_other_front_ends_and_the_hooks_carry_neither(module: str) -> None:
    """Who does not use fapilog does not load it, nor any library that a module shares its name with."""
    loaded = loaded_by(module)
    assert not loaded & {"boto3", "botocore", "filelock", "fapilog", "pydantic", "httpx", "rich"}
    assert not loaded & {"gunicorn", "structlog", "loguru"}


@pytest.mark.parametrize(
    "name", ["install", "CloudWatchSpoolSink", "SinkConfig", "Writer", "SpoolHandler", "ConfigError", "SpoolError"]
)
def test_every_public_name_is_there(name: str) -> None:
    """What the README names can be had from `cwsink` itself."""
    assert name in cwsink.__all__
    assert name in dir(cwsink)
    assert getattr(cwsink, name).__module__.startswith("cwsink.")


def test_all_that_is_listed_exists() -> None:
    """`__all__`, `dir()` and what can be loaded agree, in sorted order."""
    assert dir(cwsink) == sorted(cwsink.__all__)
    assert set(cwsink._HOME) | {"__version__"} == set(cwsink.__all__)
    for name in cwsink.__all__:
        assert getattr(cwsink, name) is not None


def test_a_public_name_is_the_one_of_its_home() -> None:
    """Loaded lazily or imported where it lives, it is the same object, so `except` and `isinstance` work."""
    assert cwsink.SinkConfig is cwsink.config.SinkConfig
    assert cwsink.ConfigError is cwsink.errors.ConfigError


# What a writer has for cwsink's own modules. No page for users tells of it.
INNER = {"after_append", "directory", "forked", "mark_losses", "open", "prepare", "refuse", "try_append"}


def test_what_takes_a_writers_place_can_do_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Writer.open` says that it returns a Writer, also where it is a Console: each use of it is right for both."""
    settings: dict[str, Any] = {"log_group_name": "/myapp/prod", "flusher": "external"}
    with cwsink.Writer.open(**settings) as writer:
        has = {name for name in dir(writer) if not name.startswith("_")}
    monkeypatch.setenv("CWSINK_TARGET", "off")
    with cwsink.Writer.open(**settings) as instead:
        assert {name for name in dir(instead) if not name.startswith("_")} == has - INNER
    assert type(instead) is Console
    for name in has - INNER:
        ours, theirs = (getattr(kind, name, None) for kind in (cwsink.Writer, Console))
        if inspect.isfunction(ours):
            assert inspect.signature(ours) == inspect.signature(theirs)  # type: ignore[arg-type]


def test_an_unknown_name_is_an_attribute_error() -> None:
    """As of any module: `hasattr` and typos work as everywhere."""
    with pytest.raises(AttributeError, match="module 'cwsink' has no attribute 'Wirter'"):
        _ = cwsink.Wirter  # type: ignore[attr-defined]
    assert not hasattr(cwsink, "__path_of_nothing__")


def test_every_error_is_caught_by_the_root_and_by_its_builtin() -> None:
    """The tree drawn in errors.py is the tree there is; each class has a code of its own."""
    tree = {
        cwsink.errors.ConfigError: (ValueError, "config"),
        cwsink.errors.SpoolError: (OSError, "spool"),
        cwsink.errors.SpoolAccessError: (PermissionError, "spool_access"),
        cwsink.errors.SpoolFormatError: (cwsink.errors.SpoolError, "spool_format"),
        cwsink.errors.UnsafeFilesystemError: (cwsink.errors.SpoolError, "unsafe_filesystem"),
    }
    for each, (builtin, code) in tree.items():
        assert issubclass(each, (cwsink.CwsinkError,))
        assert issubclass(each, builtin)
        assert each.code == code
        assert f"{each.__name__}" in (cwsink.errors.__doc__ or "")
    error = cwsink.errors.SpoolAccessError("why", "/spool")
    assert (str(error), error.path) == ("why", "/spool")
