"""The command line: the script `cwsink`, and `python -m cwsink` for a shell whose PATH lacks that script.

A Ctrl-C may come while Python still imports our modules, and would end them with a traceback. So until the command
itself begins, and again after it, Ctrl-C ends the process at once and without a word, as it ends any program. An
application that imports cwsink does not come here, and its signals stay as they are.
"""

from __future__ import annotations

import signal


def run() -> int:
    """Run the command of this process's arguments. Returns the exit code."""
    _end_by_interrupt()
    from cwsink.cli import main

    try:
        return main()
    finally:
        _end_by_interrupt()


def _end_by_interrupt() -> None:
    # Whoever has started us may ignore Ctrl-C, or the command has a handler of its own. These stay.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    raise SystemExit(run())
