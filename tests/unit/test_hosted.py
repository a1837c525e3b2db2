"""Whether a `cwsink run` started this process, and still lives."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from cwsink import hosted

USER = str(os.geteuid())


@pytest.fixture
def zombie() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has ended, and that nobody has reaped yet."""
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    yield child
    child.wait()


def is_hosted(monkeypatch: pytest.MonkeyPatch, *words: object) -> bool:
    monkeypatch.setenv(hosted.VARIABLE, ":".join(map(str, words)))
    return hosted.is_hosted()


def test_a_living_host_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its mark. Without one, or with that of another user, there is none."""
    user, *host = hosted.mark().split(":")
    assert user == USER
    assert is_hosted(monkeypatch, user, *host)
    assert not is_hosted(monkeypatch, os.geteuid() + 1, *host)
    monkeypatch.delenv(hosted.VARIABLE)
    assert not hosted.is_hosted()


def test_a_host_that_has_ended_is_none(monkeypatch: pytest.MonkeyPatch, zombie: subprocess.Popen[bytes]) -> None:
    """Nor is a zombie, nor another process that has got its pid."""
    _, pid, start, namespaces = hosted.mark().split(":")
    if sys.platform == "linux":
        assert not is_hosted(monkeypatch, USER, zombie.pid, "", namespaces)
        assert not is_hosted(monkeypatch, USER, pid, int(start) - 1, namespaces)
    zombie.wait()
    assert not is_hosted(monkeypatch, USER, zombie.pid, "", namespaces)


@pytest.mark.parametrize("mark", ["", "::", "{pid}:1:1-1", "{pid}:1", "x:1:{here}", "99999999999999999999:1:{here}"])
def test_a_host_of_which_nothing_can_be_told_lives(
    monkeypatch: pytest.MonkeyPatch, zombie: subprocess.Popen[bytes], mark: str
) -> None:
    """An older cwsink left only the user, a pid of another namespace means nothing here, or it is no mark of ours."""
    here = hosted.mark().rpartition(":")[2]
    zombie.wait()
    assert is_hosted(monkeypatch, USER, *filter(None, [mark.format(pid=zombie.pid, here=here)]))


def test_what_cannot_be_seen_is_not_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the namespaces are not known, the mark is that of an older cwsink; without /proc only the pid tells."""
    monkeypatch.setattr(hosted, "_namespaces", str)
    assert hosted.mark() == USER
    monkeypatch.setattr(hosted, "_namespaces", lambda: "-")
    monkeypatch.setattr(os, "readlink", lambda _: "17")  # /proc is that of another namespace
    assert hosted.mark() == f"{USER}:{os.getpid()}::-"
    assert is_hosted(monkeypatch, USER, os.getpid(), 1, "-")
