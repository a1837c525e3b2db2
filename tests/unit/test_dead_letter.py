"""The dead letters' file: what is kept, what the cap costs, and what two processes at it may not do to it."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from cwsink.flusher import dead_letter
from cwsink.flusher.dead_letter import Contents, DeadLetter, DeadLetters
from cwsink.spool.record import Event
from tests.harness.support import CHILD_SECONDS

CAP = 8 * 1024


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "dead_letters.jsonl")


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Every diagnostic line, none held back."""
    lines: list[tuple[str, str]] = []

    def report(key: str, message: str, *, is_total: bool = False) -> bool:
        lines.append((key, message))
        return True

    monkeypatch.setattr(dead_letter, "report", report)
    return lines


def event(number: int, message: str | None = None) -> Event:
    return Event(1_700_000_000_000 + number, 7, number, message or f"message {number} {'x' * 100}")


def add(letters: DeadLetters, *numbers: int) -> None:
    letters.add("too_old", "why", [event(number) for number in numbers])


def numbers(contents: Contents) -> list[int]:
    """The letters' numbers, in order."""
    return [int(letter.id.rpartition("-")[2]) for letter, _ in contents.letters]


def used(path: str) -> int:
    return sum(each.stat().st_size for each in Path(path).parent.glob("dead_letters.jsonl*"))


def test_a_letter_is_one_line_with_the_whole_record(path: str) -> None:
    """Reason, error, time, id, the event's own time and the message, whatever is in it."""
    message = 'quotes " and\nnew lines \x00 ü \U0001f600'
    DeadLetters(path).add("poison", "InvalidParameterException: no", [Event(1_700_000_000_123, 255, 4, message)])
    (line,) = Path(path).read_bytes().splitlines()
    content = msgspec.json.decode(line)
    assert content.pop("time").endswith("Z")
    assert content == {
        "reason": "poison",
        "error": "InvalidParameterException: no",
        "id": "00000000000000ff-4",
        "timestamp_ms": 1_700_000_000_123,
        "message": message,
    }
    ((letter, read),) = DeadLetters(path).read().letters
    assert isinstance(letter, DeadLetter)
    assert (letter.message, read) == (message, line)
    assert os.stat(path).st_mode & 0o777 == 0o600


def test_damage_has_a_shape_of_its_own(path: str) -> None:
    """It is no letter: nothing that reads letters takes it for a record."""
    letters = DeadLetters(path)
    letters.add_damage(3, 64, b"\xff" * 100_000)
    add(letters, 1)
    contents = letters.read()
    assert (numbers(contents), contents.others, contents.unreadable) == ([1], Counter(corrupt=1), 0)


def test_the_oldest_go_and_are_counted(path: str, said: list[tuple[str, str]]) -> None:
    """Both files stay below the cap at every moment; what is left is the newest, and the count says how many went.

    Invariant 6.
    """
    letters = DeadLetters(path, CAP)
    for number in range(500):
        add(letters, number)
        assert used(path) <= CAP
    contents = DeadLetters(path, CAP).read()  # by another process
    left = numbers(contents)
    assert left == list(range(500 - len(left), 500))
    assert used(path) > CAP // 2
    assert contents.dropped == 500 - len(left)
    dropped = [message for key, message in said if key == "dead_letters_dropped"]
    assert f"{contents.dropped} in all" in dropped[-1]
    assert path in dropped[-1]


def test_many_letters_at_once_keep_the_cap(path: str) -> None:
    """A whole batch that was refused is written some lines at a time; damage that goes is counted too."""
    letters = DeadLetters(path, CAP)
    letters.add_damage(1, 64, b"x")
    add(letters, *range(1000))
    contents = letters.read()
    assert used(path) <= CAP
    left = numbers(contents)
    assert left == list(range(1000 - len(left), 1000))
    assert contents.dropped == 1001 - len(left)


@pytest.mark.parametrize("size", [CAP // 2 - 400, CAP // 2, CAP // 2 + 400, CAP - 400])
def test_a_large_letter_is_kept_whole(path: str, size: int, said: list[tuple[str, str]]) -> None:
    """Longer than half the cap: no more of the older ones go than must, each counted and told."""
    letters = DeadLetters(path, CAP)
    add(letters, *range(10))
    letters.add("oversize", "long", [event(10, "y" * size)])
    contents = letters.read()
    left = numbers(contents)
    assert used(path) <= CAP
    assert contents.letters[-1][0].message == "y" * size
    assert left == list(range(11 - len(left), 11))
    assert contents.dropped == 11 - len(left)
    assert bool(contents.dropped) == any(key == "dead_letters_dropped" for key, _ in said)
    add(letters, *range(11, 40))
    assert used(path) <= CAP
    contents = letters.read()
    assert len(contents.letters) + contents.dropped == 40


def test_a_letter_longer_than_the_cap_wipes_nothing(path: str, said: list[tuple[str, str]]) -> None:
    """Its beginning is kept, it counts as dropped, and it is told; the others stay."""
    letters = DeadLetters(path, CAP)
    add(letters, *range(10))
    letters.add("oversize", "long", [event(10, "\x00" * CAP)])
    contents = letters.read()
    assert (numbers(contents), contents.others, contents.dropped) == (list(range(10)), Counter(oversize=1), 1)
    line = msgspec.json.decode(Path(path).read_bytes().splitlines()[-2])
    assert (line["bytes"], line["id"]) == (CAP, event(10).id)
    assert "message" not in line
    assert "dead_letter_too_long" in [key for key, _ in said]


def test_a_fragment_costs_no_other_letter(path: str) -> None:
    """A leader that was killed in the middle of a line: the next line begins a new one."""
    letters = DeadLetters(path)
    add(letters, 1)
    with open(path, "ab") as file:
        file.write(b'{"time":"2023-11-14T22')
    add(letters, 2)
    contents = letters.read()
    assert (numbers(contents), contents.unreadable) == ([1, 2], 1)


@pytest.mark.parametrize("garbage", [b"\xff\xfe\x00", b"[" * 100_000, b"null", b'{"reason":7}', b'{"dropped":"x"}'])
def test_garbage_is_left_alone(path: str, garbage: bytes) -> None:
    """Lines that are nothing of ours are counted, and stay when letters are taken out."""
    letters = DeadLetters(path)
    add(letters, 1)
    with open(path, "ab") as file:
        file.write(garbage + b"\n")
    add(letters, 2)
    contents = letters.read()
    assert (numbers(contents), contents.unreadable) == ([1, 2], 1)
    letters.remove(line for _, line in contents.letters)
    assert Path(path).read_bytes() == garbage + b"\n"


@pytest.mark.parametrize("field", [{"timestamp_ms": -1}, {"timestamp_ms": 1 << 60}, {"message": ""}, {"id": 5}])
def test_a_letter_that_cannot_be_a_record_is_none(path: str, field: dict[str, object]) -> None:
    """Somebody has edited it: it is not appended as it is, and not lost."""
    letter = {"time": "", "error": "", "id": "a-1", "timestamp_ms": 1, "message": "m", "reason": "poison", **field}
    Path(path).write_bytes(msgspec.json.encode(letter) + b"\n")
    assert DeadLetters(path).read() == Contents([], Counter(), 1, 0)


# Never raises.


@pytest.mark.parametrize("obstacle", ["directory", "fifo", "symlink", "no spool"])
def test_what_cannot_be_kept_is_told_and_counted(path: str, obstacle: str, said: list[tuple[str, str]]) -> None:
    """Whatever is in the way, `add` returns; once it is gone, the count says how many were lost."""
    if obstacle == "directory":
        os.mkdir(path)
    elif obstacle == "fifo":
        os.mkfifo(path)
    elif obstacle == "symlink":
        os.symlink("/dev/null", path)
    else:
        path = f"{path}.spool/dead_letters.jsonl"
    letters = DeadLetters(path)
    add(letters, 1, 2)
    letters.add_damage(1, 64, b"x")
    assert [key for key, _ in said] == ["dead_letters", "dead_letters"]
    assert "2 dead letters could not be kept" in said[0][1]
    if obstacle == "no spool":
        os.mkdir(os.path.dirname(path))
    else:
        (os.rmdir if obstacle == "directory" else os.unlink)(path)
    add(letters, 3)
    contents = letters.read()
    assert (numbers(contents), contents.dropped) == ([3], 3)
    add(letters, 4)
    assert letters.read().dropped == 3


def test_a_full_disk_leaves_no_fragment(
    path: str, monkeypatch: pytest.MonkeyPatch, said: list[tuple[str, str]]
) -> None:
    """A line that is written in part is taken back; the count comes when there is room again."""
    letters = DeadLetters(path)
    add(letters, 1)
    before = Path(path).read_bytes()
    write = os.write
    room = [50]

    def limited(fd: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = write(fd, bytes(data)[: room[0]])
        room[0] -= written
        return written

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", limited)
        add(letters, 2, 3)
    assert Path(path).read_bytes() == before
    assert [key for key, _ in said] == [f"dead_too_old_{path}", "dead_letters"]
    add(letters, 4)
    contents = letters.read()
    assert (numbers(contents), contents.dropped, contents.unreadable) == ([1, 4], 2, 0)


# Two processes.


def test_only_what_was_read_is_removed(path: str) -> None:
    """Letters that came since stay, also if the leader has begun a new file meanwhile."""
    letters, leader = DeadLetters(path, CAP), DeadLetters(path, CAP)
    add(leader, *range(20))
    read = letters.read()
    assert numbers(read) == list(range(20))
    new = 20
    while not os.path.exists(f"{path}.1"):
        add(leader, new)
        new += 1
    add(leader, new)
    letters.remove(line for _, line in read.letters)
    contents = letters.read()
    assert (numbers(contents), contents.dropped) == (list(range(20, new + 1)), 0)


def test_of_two_equal_lines_one_is_removed(path: str) -> None:
    """A leader that was killed before it committed leaves a letter twice: each is its own."""
    line = msgspec.json.encode(DeadLetter("2023-11-14T22:13:20Z", "poison", "", "a-1", 1, "m"))
    Path(path).write_bytes((line + b"\n") * 2)
    DeadLetters(path).remove([line])
    assert Path(path).read_bytes() == line + b"\n"


def test_the_count_survives_a_removal(path: str) -> None:
    """What the cap has cost is known after all letters were taken out, and goes on from there."""
    letters = DeadLetters(path, CAP)
    add(letters, *range(200))
    contents = letters.read()
    assert contents.dropped
    letters.remove(line for _, line in contents.letters)
    assert letters.read() == Contents([], Counter(), 0, contents.dropped)
    add(letters, *range(200))
    again = letters.read()
    assert len(again.letters) + again.dropped == 200 + contents.dropped


@contextlib.contextmanager
def paused(monkeypatch: pytest.MonkeyPatch, function: str, work: Callable[[], None]) -> Iterator[None]:
    """Run `work` in a thread, pause it in its first call of `os.<function>`; on leaving, let it go on and end."""
    reached, go_on = threading.Event(), threading.Event()
    real = getattr(os, function)

    def pause(*arguments: object, **more: object) -> object:
        if threading.current_thread() is thread and not go_on.is_set():
            reached.set()
            assert go_on.wait(CHILD_SECONDS)
        return real(*arguments, **more)

    thread = threading.Thread(target=work)
    with monkeypatch.context() as patch:
        patch.setattr(os, function, pause)
        thread.start()
        assert reached.wait(CHILD_SECONDS), f"os.{function} is not called"
        try:
            yield
        finally:
            go_on.set()
            thread.join(CHILD_SECONDS)
            assert not thread.is_alive()


@pytest.mark.parametrize("point", ["fsync", "replace"])
def test_a_letter_that_comes_during_a_removal_is_kept(path: str, monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    """The leader waits while the file is replaced, and writes to the new one."""
    letters, leader = DeadLetters(path), DeadLetters(path)
    add(leader, 1, 2)
    (_, line), _ = letters.read().letters
    with paused(monkeypatch, point, lambda: letters.remove([line])):
        adding = threading.Thread(target=add, args=(leader, 3))
        adding.start()
        adding.join(0.05)
        assert adding.is_alive(), "it does not wait"
    adding.join(CHILD_SECONDS)
    assert numbers(letters.read()) == [2, 3]


@pytest.mark.parametrize("point", ["write", "replace"])
def test_a_removal_waits_for_the_leader(path: str, monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    """While the leader appends or begins a new file, nothing is taken out; then both are as they should."""
    letters, leader = DeadLetters(path, CAP), DeadLetters(path, CAP)
    add(leader, 0)
    read = letters.read().letters
    with paused(monkeypatch, point, lambda: add(leader, *range(1, 30))):
        removing = threading.Thread(target=letters.remove, args=([line for _, line in read],))
        removing.start()
        removing.join(0.05)
        assert removing.is_alive(), "it does not wait"
    removing.join(CHILD_SECONDS)
    assert numbers(letters.read()) == list(range(1, 30))


def test_a_stopped_replay_does_not_stop_the_leader(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock is waited for, but not for ever: then the leader appends without it, and a replay gives up."""
    monkeypatch.setattr(dead_letter, "LOCK_SECONDS", 0.05)
    letters, leader = DeadLetters(path), DeadLetters(path)
    add(leader, 1, 2)
    (_, line), _ = letters.read().letters
    with paused(monkeypatch, "fsync", lambda: letters.remove([line])):
        leader.add_damage(1, 64, b"x")
        assert b'"segment":1' in Path(path).read_bytes()
        with pytest.raises(TimeoutError, match="Is that process stopped"):
            DeadLetters(path).read()


# Kills itself before the n-th call that changes a file.
KILLED_WHILE_IT_ADDS = """
    import os, signal, sys
    from cwsink.flusher.dead_letter import DeadLetters
    from cwsink.spool.record import Event

    path, cap, kill_at, first, last = sys.argv[1], *map(int, sys.argv[2:])
    calls = 0

    def counted(real):
        def call(*arguments, **more):
            global calls
            if calls == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            calls += 1
            return real(*arguments, **more)
        return call

    for name in ("write", "replace", "unlink", "fsync", "ftruncate"):
        setattr(os, name, counted(getattr(os, name)))
    letters = DeadLetters(path, cap)
    for number in range(first, last):
        letters.add("too_old", "why", [Event(1_700_000_000_000 + number, 7, number, f"message {number} {'x' * 100}")])
        print(number, flush=True)
    if last == 60:
        letters.add("oversize", "why", [Event(1, 7, last, "y" * (cap * 3 // 4))])
        print(last, flush=True)
"""


@pytest.mark.faults
def test_a_kill_loses_no_letter_uncounted(tmp_path: Path, spawn: Callable[..., subprocess.Popen[str]]) -> None:
    """At whatever call a leader is killed: each letter it had kept is there, or went by the cap and is counted."""
    for kill_at in range(60, 1000):
        path = str(tmp_path / f"{kill_at}" / "dead_letters.jsonl")
        os.mkdir(os.path.dirname(path))
        # Fill both files quickly, so that the kills fall on beginning a new one with something to drop.
        letters = DeadLetters(path, CAP)
        add(letters, *range(55))
        child = spawn(KILLED_WHILE_IT_ADDS, path, CAP, kill_at - 60, 55, 60)
        out, _ = child.communicate(timeout=CHILD_SECONDS)
        added = 55 + len(out.split())
        contents = letters.read()
        kept = numbers(contents)
        assert used(path) <= CAP
        assert kept == sorted(set(kept))
        assert kept[-1] >= added - 1
        assert kept == list(range(kept[0], kept[-1] + 1))
        assert len(kept) + contents.dropped >= kept[-1] + 1
        add(letters, *range(100, 110))
        contents = letters.read()
        assert numbers(contents)[-10:] == list(range(100, 110))
        if child.returncode == 0:
            assert kill_at > 65, "nothing was tried"
            return
        assert child.returncode == -signal.SIGKILL
    raise AssertionError("it never came to its end")
