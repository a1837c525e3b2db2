"""The first module that a flusher's guard loads: what has to be done before the rest is loaded, which takes long.

A module may be missing, or a limit may keep the guard from loading the rest. The guard then begins once more or leaves
a word, and ends (cwsink.frontends.starter). A traceback would say it to nobody.
"""

from __future__ import annotations

import gc

from cwsink import lean
from cwsink.flusher import mute


def main(argv: list[str]) -> None:
    """Be the guard; see `cwsink.flusher.guard.main`. Raises what keeps it from that."""
    try:
        gc.disable()  # there is no garbage in what is loaded; the guard enables it then
        mute.begin(argv[1])
        lean.import_msgspec()
        from cwsink.flusher import guard

        guard.main(argv)
    except Exception:
        mute.end()  # its timer would end what begins once more
        raise
