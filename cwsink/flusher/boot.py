"""The first module that a flusher's guard loads: what has to be done before the rest is loaded, which takes long.

A limit may keep the guard from loading the rest. Then it leaves a word in the lock's file, and ends. The writer that
has started it reads that at its next look, and says it (cwsink.frontends.starter). A traceback would say it to nobody.
"""

from __future__ import annotations

import contextlib
import gc
import os
from typing import Final

from cwsink import lean
from cwsink.flusher import mute

_LOCK_FD: Final = 3  # the value of cwsink.spool.flusher_lock.LOCK_FD, a module that may be what cannot be loaded


def main(argv: list[str]) -> None:
    """Be the guard; see `cwsink.flusher.guard.main`."""
    try:
        gc.disable()  # there is no garbage in what is loaded; the guard enables it then
        mute.begin(argv[1])
        lean.import_msgspec()
        from cwsink.flusher import guard

        guard.main(argv)
    except Exception as error:
        # There may be no memory for anything but this: no import, and no end of the interpreter.
        with contextlib.suppress(Exception):
            _leave_word(argv, error)
        os._exit(1)


def _leave_word(argv: list[str], error: Exception) -> None:
    why = "no memory was left" if isinstance(error, MemoryError) else f"{type(error).__name__}: {error}"
    if argv[2]:  # it was to take over from a flusher that is there, and goes on
        os.write(2, f"cwsink: the flusher that was to take over cannot start: {why}\n".encode("utf-8", "replace"))
    else:
        os.ftruncate(_LOCK_FD, 0)
        os.pwrite(_LOCK_FD, why.encode("utf-8", "replace"), 0)
