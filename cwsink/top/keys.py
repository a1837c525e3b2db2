"""Keys of a terminal, one by one, for a program that fills the screen.

Whatever ends the program, the terminal must be as it was. That is the caller's: `stop` follows each `start`
(cwsink.cli.leaving). Ctrl-Z does nothing meanwhile, because a shell would show its prompt on our screen.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import sys
import termios
from typing import Any, Final

# How an arrow comes.
_NAMES: Final = {"\x1b[A": "up", "\x1b[B": "down", "\x1bOA": "up", "\x1bOB": "down", "\x1b": "esc", "\n": "enter"}
# Another sequence of a key that means nothing here, or one character.
_KEY: Final = re.compile(r"\x1b(?:\[[0-9;]*[ -/]*[@-~]|O.)|.", re.DOTALL)
_MOST_BYTES: Final = 64
_LOCAL, _CHARACTERS = 3, 6


class Keys:
    """Has the terminal of stdin give each key at once, without showing it, from `start` to `stop`."""

    def __init__(self) -> None:
        self._fd = sys.stdin.fileno()
        self._typed: list[str] = []
        self._before = termios.tcgetattr(self._fd)

    def start(self) -> None:
        """Take the terminal."""
        wanted: list[Any] = termios.tcgetattr(self._fd)
        wanted[_LOCAL] &= ~(termios.ECHO | termios.ICANON)
        wanted[_CHARACTERS][termios.VSUSP] = bytes([os.fpathconf(self._fd, "PC_VDISABLE")])
        termios.tcsetattr(self._fd, termios.TCSAFLUSH, wanted)

    def stop(self) -> None:
        """Give the terminal back as it was."""
        with contextlib.suppress(OSError, termios.error):  # the terminal is gone
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)

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
