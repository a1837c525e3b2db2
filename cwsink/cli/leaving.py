"""Has a signal that ends the process end a live picture in order: the terminal gets back its screen and cursor."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Final, Protocol

_SIGNALS: Final = (signal.SIGTERM, signal.SIGHUP)


class Picture(Protocol):
    """What has the terminal: what rich draws again and again, or the keys of `cwsink top`."""

    def start(self) -> None:
        """Take the terminal."""

    def stop(self) -> None:
        """Give the terminal back."""


@contextlib.contextmanager
def in_order(picture: Picture) -> Iterator[None]:
    """Show a picture in this block. A signal that would end the process at once ends the block as an exception does.

    A command's own handler stays, and so does what whoever has started us ignores (`nohup`).
    """
    former = [number for number in _SIGNALS if signal.getsignal(number) is signal.SIG_DFL]

    def leave(number: int, _: FrameType | None) -> None:
        for each in former:  # a second one must not come between this one and what gives the terminal back
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(128 + number)

    for number in former:
        signal.signal(number, leave)
    try:
        with _undisturbed():
            picture.start()
        yield
    finally:
        with _undisturbed():
            picture.stop()
            for number in former:
                signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Have signals wait for the end of this block. rich cannot give back a terminal of which it has taken a half."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, (*_SIGNALS, signal.SIGINT))
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
