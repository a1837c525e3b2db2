"""A flag that wakes whoever waits for it, and a thread to wait in."""

from __future__ import annotations

import sys
import threading

import pytest

from cwsink import native

HANG_SECONDS = 60.0


def test_a_flag_is_what_an_event_is() -> None:
    """Set, seen, taken back, set again."""
    flag = native.Flag()
    assert (flag.is_set(), flag.wait(0.0), flag.wait(-1.0)) == (False, False, False)
    for _ in range(3):
        flag.set()
        flag.set()
        assert (flag.is_set(), flag.wait(0.0), flag.wait(HANG_SECONDS)) == (True, True, True)
        flag.clear()
        assert (flag.is_set(), flag.wait(0.0)) == (False, False)


def test_a_flag_wakes_all_who_wait() -> None:
    """Four threads, one `set`."""
    flag, woken = native.Flag(), threading.Semaphore(0)

    def wait() -> None:
        if flag.wait(HANG_SECONDS):
            woken.release()

    for _ in range(4):
        native.start_thread(wait)
    flag.set()
    assert all(woken.acquire(timeout=HANG_SECONDS) for _ in range(4))


def test_a_flag_that_is_set_and_cleared_for_ever_does_not_grow() -> None:
    """As `Writer.flush` does it with a leader in the same process."""
    flag = native.Flag()
    for _ in range(1000):
        flag.set()
        flag.clear()
    assert flag._wake.qsize() == 0


def test_there_is_no_advice_where_nothing_is_patched(monkeypatch: pytest.MonkeyPatch) -> None:
    """And there is where `_thread.start_new_thread` is not the interpreter's own."""
    assert native.advice() == ""
    monkeypatch.setattr("_thread.start_new_thread", lambda *_: None)
    assert "`cwsink flush`" in native.advice()


def test_what_nobody_known_has_patched_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather than a flusher that never runs, or one that stops the program."""
    monkeypatch.setattr("_thread.start_new_thread", lambda *_: None)
    for library in ("gevent.monkey", "eventlet.patcher"):
        monkeypatch.delitem(sys.modules, library, raising=False)
    with pytest.raises(native.PatchedError, match="by neither gevent nor eventlet"):
        native.start_thread(lambda: None)
