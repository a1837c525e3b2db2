"""Keys of a terminal, one by one, for a program that fills the screen.

Whatever ends the block, the terminal is as it was: its end, an exception, Ctrl-C, TERM, a window that is closed (HUP).
Ctrl-Z does nothing meanwhile, because a shell would show its prompt on our screen.
"""

from __future__ import annotations

import os
import re
import select
import signal
import sys
import termios
from types import FrameType
from typing import Any, Final

# How an arrow comes.
_NAMES: Final = {"\x1b[A": "up", "\x1b[B": "down", "\x1bOA": "up", "\x1bOB": "down", "\x1b": "esc", "\n": "enter"}
# Another sequence of a key that means nothing here, or one character.
_KEY: Final = re.compile(r"\x1b(?:\[[0-9;]*[ -/]*[@-~]|O.)|.", re.DOTALL)
_MOST_BYTES: Final = 64
_LOCAL, _CHARACTERS = 3, 6


def _leave(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


_HANDLERS: Final = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: _leave,
    signal.SIGHUP: _leave,
}


class Keys:
    """Has the terminal of stdin give each key at once, without showing it, for a `with` block."""

    def __enter__(self) -> Keys:
        self._fd = sys.stdin.fileno()
        self._typed: list[str] = []
        self._before = termios.tcgetattr(self._fd)
        wanted: list[Any] = termios.tcgetattr(self._fd)
        wanted[_LOCAL] &= ~(termios.ECHO | termios.ICANON)
        wanted[_CHARACTERS][termios.VSUSP] = bytes([os.fpathconf(self._fd, "PC_VDISABLE")])
        self._handlers: dict[signal.Signals, Any] = {}
        try:
            for number, handler in _HANDLERS.items():
                self._handlers[number] = signal.signal(number, handler)
            termios.tcsetattr(self._fd, termios.TCSAFLUSH, wanted)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for number in self._handlers:  # another one must not come between this and the next lines
            signal.signal(number, signal.SIG_IGN)
        try:
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)
        except (OSError, termios.error):
            pass  # the terminal is gone
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def next(self, seconds: float) -> str:
        """Return the next key: a character, or "up", "down", "enter", "esc". "": none came within `seconds`.

        Raises:
            EOFError: the terminal is gone.
        """
        if not self._typed:
            if not select.select([self._fd], [], [], max(0.0, seconds))[0]:
                return ""
            if not (data := os.read(self._fd, _MOST_BYTES)):
                raise EOFError
            self._typed = _KEY.findall(data.decode(errors="replace"))
        key = self._typed.pop(0)
        return _NAMES.get(key, key)
