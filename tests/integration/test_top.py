"""`cwsink top` in a real terminal: what is on the screen, and what the keys do. Every live picture gives it back."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from cwsink import Writer
from cwsink.config import SinkConfig
from cwsink.testing import StrictCloudWatch
from tests.harness.interleave import deliver
from tests.harness.support import CHILD_SECONDS, quick_config
from tests.integration.test_nobody_is_asked import take_terminal

ESCAPE: Final = re.compile(rb"\x1b(\[[0-9;?]*[A-Za-z]|[()][A-Z0-9]|[=>])")
ALTERNATE, ORIGINAL = b"\x1b[?1049h", b"\x1b[?1049l"
SHOW_CURSOR, HIDE_CURSOR = b"\x1b[?25h", b"\x1b[?25l"


def begin() -> None:
    """In the child: have the terminal, and the HUP of a program that nobody started with nohup, as pytest may be."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    take_terminal()


class Terminal:
    """A `cwsink top` in a terminal of its own, and what it has written."""

    def __init__(self, *words: str, columns: int = 120, code: str | None = None, term: str = "xterm") -> None:
        self.person, program = pty.openpty()
        self.resize(columns)
        self.before = termios.tcgetattr(self.person)
        command = ["-m", "cwsink", "top", *words] if code is None else ["-c", code, *words]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": term, "PYTHONUTF8": "1"}
        self.process = subprocess.Popen(
            [sys.executable, *command],
            env={name: value for name, value in env.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")},
            stdin=program,
            stdout=program,
            stderr=program,
            start_new_session=True,
            preexec_fn=begin,  # noqa: PLW1509  # only of the child
        )
        os.close(program)
        self.written = b""

    def resize(self, columns: int) -> None:
        """Make the window so wide."""
        fcntl.ioctl(self.person, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def press(self, keys: str) -> None:
        """Type."""
        os.write(self.person, keys.encode())

    @property
    def screen(self) -> list[str]:
        """The last picture, line by line, without colours."""
        last = self.written.rpartition(b"\x1b[H")[2].rpartition(ORIGINAL)[2]
        return [line.rstrip() for line in ESCAPE.sub(b"", last).decode(errors="replace").splitlines() if line.strip()]

    def wait(self, condition: Callable[[list[str]], object]) -> list[str]:
        """Read until the picture is so."""
        until = time.monotonic() + CHILD_SECONDS
        while not condition(self.screen):
            assert time.monotonic() < until, self.written[-3000:]
            if select.select([self.person], [], [], 1.0)[0]:
                self.written += os.read(self.person, 65536)
        return self.screen

    def end(self) -> int:
        """Read to the end, and return the exit code."""
        until = time.monotonic() + CHILD_SECONDS
        while self.process.poll() is None or select.select([self.person], [], [], 0)[0]:
            assert time.monotonic() < until, self.written[-3000:]
            if select.select([self.person], [], [], 0.05)[0]:
                try:
                    self.written += os.read(self.person, 65536)
                except OSError:  # EIO: nobody has the other end any more
                    break
        return self.process.wait(CHILD_SECONDS)

    def close(self) -> None:
        """Kill what is left."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(CHILD_SECONDS)
        os.close(self.person)


@pytest.fixture
def open_terminal() -> Iterator[Callable[..., Terminal]]:
    """Start `cwsink top` in a terminal; gone at the end."""
    opened: list[Terminal] = []

    def start(*words: str, **options: Any) -> Terminal:
        opened.append(Terminal(*words, **options))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


@pytest.fixture
def root(small: SinkConfig, server: StrictCloudWatch) -> str:
    """Two spools: one is delivered, in the other a record waits."""
    server.create_stream("/test/group", "stream")
    done = Writer(small)
    assert done.append("the last thing\x1b[2J that happened")
    deliver(done.directory, small)
    waiting = Writer(quick_config(server.endpoint_url, log_stream_name="waiting", flusher="external"))
    assert waiting.append(json.dumps({"level": "ERROR", "logger": "shop", "message": "boom"}))
    return done.directory.root


def test_the_screen_and_its_keys(root: str, open_terminal: Callable[..., Terminal]) -> None:
    """At 120, 80 and 40 columns: no line is longer, the worst spool is first; help, sort, choose, tail, quit."""
    terminal = open_terminal(root)
    shown = terminal.wait(lambda lines: len(lines) == 4)
    assert shown[0].endswith("2 spools, 1 waiting, sorted by worst; h help, q quit")
    assert shown[1].split() == "spool state in/s out/s lag fill lost writers epoch last answer 5 min".split()
    assert ["waiting" in shown[2], "no_leader" in shown[2]] == [True, True]
    assert ["stream" in shown[3], "idle" in shown[3]] == [True, True]
    for columns in (80, 40):
        terminal.resize(columns)
        narrow = terminal.wait(lambda lines: len(lines) == 4 and "writers" not in lines[1] and "spool" in lines[1])
        if columns == 40:
            narrow = terminal.wait(lambda lines: len(lines) == 4 and "fill" not in lines[1])
        assert max(map(len, narrow)) <= columns
        assert "no_leader" in narrow[2]
        assert "lost" in narrow[1].split()
    terminal.resize(120)
    terminal.press("h")
    terminal.wait(lambda lines: any("t or Enter tail" in line for line in lines))
    terminal.press("hs")
    shown = terminal.wait(lambda lines: len(lines) == 4 and "sorted by name" in lines[0])
    assert "stream" in shown[2]
    terminal.press("t")
    shown = terminal.wait(lambda lines: any("the last thing" in line for line in lines))
    assert "the last thing\\x1b[2J that happened" in shown[1]
    terminal.press("\x1b")
    terminal.wait(lambda lines: "sorted by name" in lines[0])
    terminal.press("j\r")
    assert "boom" in terminal.wait(lambda lines: any("ERROR" in line for line in lines))[1]
    terminal.press("q")
    assert terminal.end() == 0
    assert_given_back(terminal)


def assert_given_back(terminal: Terminal) -> None:
    """The terminal is as it was: its modes, its screen, its cursor."""
    assert termios.tcgetattr(terminal.person) == terminal.before
    assert terminal.written.count(ALTERNATE) == terminal.written.count(ORIGINAL) == 1
    assert terminal.written.rindex(SHOW_CURSOR) > terminal.written.index(ALTERNATE)


FAILS = """
import sys
from cwsink.cli import main
from cwsink.top import board
def fail(self): raise RuntimeError("boom")
board.Board.obey = lambda self, key: fail(self) if key else True
main(["top", sys.argv[1]])
"""


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (lambda terminal: terminal.press("\x03"), 0),
        (lambda terminal: terminal.process.send_signal(signal.SIGTERM), 128 + signal.SIGTERM),
        (lambda terminal: terminal.process.send_signal(signal.SIGHUP), 128 + signal.SIGHUP),
        (lambda terminal: terminal.press("x"), 1),
    ],
    ids=["Ctrl-C", "SIGTERM", "SIGHUP", "exception"],
)
def test_the_terminal_is_given_back(
    end: Callable[[Terminal], None], code: int, root: str, open_terminal: Callable[..., Terminal]
) -> None:
    """However it ends."""
    terminal = open_terminal(root, code=FAILS if code == 1 else None)
    terminal.wait(lambda lines: len(lines) == 4)
    end(terminal)
    assert terminal.end() == code
    assert_given_back(terminal)


COMMAND = "import sys; from cwsink.cli import main; sys.exit(main(sys.argv[1:]))"
LIVE = {
    "status TERM": (("status", "--watch", "60"), signal.SIGTERM),
    "status HUP": (("status", "--watch", "60"), signal.SIGHUP),
    "flush HUP": (("flush",), signal.SIGHUP),
}


@pytest.mark.parametrize(("words", "number"), LIVE.values(), ids=LIVE)
def test_every_live_picture_gives_the_terminal_back(
    words: tuple[str, ...], number: int, root: str, open_terminal: Callable[..., Terminal]
) -> None:
    """A command that draws again and again, and is killed or whose window is closed: its screen and cursor are back."""
    terminal = open_terminal(*words, root, code=COMMAND)
    terminal.wait(lambda _: HIDE_CURSOR in terminal.written)
    terminal.process.send_signal(number)
    assert terminal.end() == 128 + number
    assert terminal.written.count(ALTERNATE) == terminal.written.count(ORIGINAL)
    assert terminal.written.rindex(SHOW_CURSOR) > terminal.written.rindex(HIDE_CURSOR)
    assert termios.tcgetattr(terminal.person) == terminal.before


def test_nohup_is_obeyed(root: str, open_terminal: Callable[..., Terminal]) -> None:
    """Whoever has started the command ignores HUP: it goes on."""
    code = f"import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); {COMMAND}"
    terminal = open_terminal("status", "--watch", "0.1", root, code=code)
    terminal.wait(lambda _: terminal.written.count(b"every 0.1 s") >= 1)
    terminal.process.send_signal(signal.SIGHUP)
    drawn = terminal.written.count(b"every 0.1 s")
    terminal.wait(lambda _: terminal.written.count(b"every 0.1 s") >= drawn + 3)
    terminal.press("\x03")
    assert terminal.end() == 0


def test_a_terminal_that_is_gone(root: str, open_terminal: Callable[..., Terminal]) -> None:
    """A window that is closed ends it; it does not spin."""
    terminal = open_terminal(root)
    terminal.wait(lambda lines: len(lines) == 4)
    os.close(terminal.person)
    assert terminal.process.wait(CHILD_SECONDS) is not None
    terminal.person = os.open(os.devnull, os.O_RDONLY)


WATCHES = "import sys; from cwsink.cli import main; sys.exit(main(['status', '--watch', '0.1', sys.argv[1]]))"


@pytest.mark.parametrize("term", ["dumb", "unknown"])
def test_a_terminal_that_cannot_redraw(term: str, root: str, open_terminal: Callable[..., Terminal]) -> None:
    """`top` prints one picture and ends; `status --watch` goes on line by line, until Ctrl-C."""
    top = open_terminal(root, term=term)
    assert top.end() == 0
    assert b"no_leader" in top.written
    watch = open_terminal(root, code=WATCHES, term=term)
    watch.wait(lambda lines: sum(line.startswith("-- ") for line in lines) >= 2)
    watch.press("\x03")
    assert watch.end() == 0
    assert b"Nobody sends" in watch.written
    assert b"\x1b" not in top.written + watch.written


def test_without_a_terminal(root: str, tmp_path: Path) -> None:
    """One picture, as with --once; a spool that cannot be read is named, and the exit code is 1."""
    damaged = Path(root, "damaged.0123456789")
    damaged.mkdir(mode=0o700)
    (damaged / "FORMAT").write_text("{")
    done = subprocess.run(
        [sys.executable, "-m", "cwsink", "top", root],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUTF8": "1"},
        capture_output=True,
        text=True,
        timeout=CHILD_SECONDS,
    )
    assert done.returncode == 1
    assert "damaged.0123456789" in done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [["/test/group", "→", "waiting"], ["/test/group", "→", "stream"]]
    assert "\x1b" not in done.stdout
