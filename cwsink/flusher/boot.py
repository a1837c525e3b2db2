"""The first module that a flusher's guard loads: what has to be done before the rest is loaded, which takes long."""

from __future__ import annotations

import gc

from cwsink import lean
from cwsink.flusher import mute


def main(argv: list[str]) -> None:
    """Be the guard; see `cwsink.flusher.guard.main`."""
    gc.disable()  # there is no garbage in what is loaded; the guard enables it then
    mute.begin(argv[1])
    lean.import_msgspec()
    from cwsink.flusher import guard

    guard.main(argv)
