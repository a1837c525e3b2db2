"""An import in a thread ends when the process does, and leaves no lock held and nothing half-made."""

from __future__ import annotations

import importlib
import sys
import threading
from pathlib import Path

import pytest

from cwsink import native
from cwsink.frontends import importing

SECONDS = 30.0

FIRST = """
import the_test_of_importing as t
t.begun.set()
assert t.go_on.wait(30)
try:
    import importing_second
except Exception:
    importing_second = None  # an optional part
"""


class Meeting:
    """What the module that is being imported and the test tell each other."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go_on = threading.Event()


@pytest.fixture
def meeting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Meeting:
    (tmp_path / "importing_first.py").write_text(FIRST)
    (tmp_path / "importing_second.py").write_text("")
    meeting = Meeting()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "the_test_of_importing", meeting)
    for name in ("importing_first", "importing_second"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(importing, "_is_over", False)
    return meeting


def import_in_a_thread(ended: list[BaseException | None]) -> threading.Thread:
    def work() -> None:
        try:
            with importing.interruptible():
                importlib.import_module("importing_first")
            ended.append(None)
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_an_import_is_interrupted_and_can_be_made_again(meeting: Meeting, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where a package takes every Exception of a part for its absence."""
    ended: list[BaseException | None] = []
    finders = list(sys.meta_path)
    thread = import_in_a_thread(ended)
    assert meeting.begun.wait(SECONDS)
    assert importing.is_under_way()
    monkeypatch.setattr(native, "sleep", lambda seconds: meeting.go_on.set())  # it waits: the import may go on
    importing.interrupt()
    assert not importing.is_under_way()
    thread.join(SECONDS)
    assert isinstance(ended[0], importing.Interrupted)
    assert "importing_first" not in sys.modules
    assert sys.meta_path == finders
    again = importlib.import_module("importing_first")
    assert again.importing_second is not None


def test_an_import_that_hangs_is_waited_for_no_longer_than_a_bound(
    meeting: Meeting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "_WAIT_SECONDS", 0.05)
    ended: list[BaseException | None] = []
    thread = import_in_a_thread(ended)
    assert meeting.begun.wait(SECONDS)
    importing.interrupt()
    assert importing.is_under_way()
    meeting.go_on.set()
    thread.join(SECONDS)
    assert isinstance(ended[0], importing.Interrupted)


def test_none_begins_once_the_process_ends(meeting: Meeting) -> None:
    importing.interrupt()
    ended: list[BaseException | None] = []
    import_in_a_thread(ended).join(SECONDS)
    assert isinstance(ended[0], importing.Interrupted)
    assert not meeting.begun.is_set()


def test_other_threads_go_on(meeting: Meeting) -> None:
    """Who says that its import may be cut off says it for itself."""
    meeting.go_on.set()
    with importing.interruptible():
        elsewhere = threading.Thread(target=importlib.import_module, args=["importing_first"])
        importing._is_over = True
        elsewhere.start()
        elsewhere.join(SECONDS)
    assert "importing_first" in sys.modules
