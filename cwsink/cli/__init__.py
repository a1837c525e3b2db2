"""The command line. A command is a row of `arguments.COMMANDS`, and a module of its name here with a function `run`.

A command's module is imported only when the command is asked for. So `cwsink --version` and `cwsink status --json` load
neither rich nor botocore. No command imports fapilog.

Exit codes: 0 done, 1 not done (stderr says why), 2 wrong usage. `run` has the exit code of its command, and `check`
those of Nagios. We never use 3 or 4, because a gunicorn master would take these for a worker that cannot boot.

The floors, each of which imports from below only (import-linter holds them):

```text
flush  replay  status  check  run  tail  metrics  alarms  doctor  top  verify  export  manual  demo
serve  dead_letters  status_view           the larger half of a command
job                                        deliver what was in one spool at the beginning
flushing                                   what all commands that lead need
spools  progress                           which spools a PATH means; the progress bars
leaving                                    signals end a picture in order
arguments                                  commands and options
epilogs                                    what --help says below them
```
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Final, TextIO

from cwsink import lean
from cwsink.errors import CwsinkError
from cwsink.printable import printable

DONE: Final = 0
NOT_DONE: Final = 1

# Their code is what they have found, and nothing else.
_VERDICTS: Final = ("check", "doctor")
# Why output could not be written that a command need not fail for at once.
_unwritten: Final[list[str]] = []


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments after the program's name; those of this process by default.

    Returns:
        The exit code.
    """
    _open_what_is_closed()
    _unwritten.clear()
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # pytest's stand-ins have no such method
            # A terminal may be unable to show a character. It shows an escape then, and there is no traceback.
            stream.reconfigure(errors="backslashreplace")
    try:
        with lean.loading():
            from cwsink.cli import arguments
        try:
            options = arguments.parse(words)
        except SystemExit:  # --help
            sys.stdout.flush()
            raise
        if options.command != "run":  # whose command gets the variables as they are
            _forget_no_size()
        with lean.loading():
            if options.command == "check":  # a probe may run it each second
                lean.import_msgspec()
            command = import_module(f"cwsink.cli.{options.command}")
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # so it is until here: see cwsink.__main__
            signal.signal(signal.SIGINT, signal.default_int_handler)
        code: int = command.run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        _discard(sys.stdout)  # the reader has seen enough
        return DONE
    except KeyboardInterrupt:
        complain("interrupted")
        return NOT_DONE
    except (CwsinkError, OSError) as error:
        complain(str(error))
        _discard(sys.stdout)  # it may be what failed, on a full disk
        return NOT_DONE
    return code or (NOT_DONE if _unwritten and options.command not in _VERDICTS else DONE)


def say(line: str) -> None:
    """Write one line to stdout. Commands write lines only by this function, because a spool's name is foreign text."""
    with whoever_reads():
        print(printable(line, one_line=True))


def complain(message: str) -> None:
    """Write one line to stderr."""
    try:
        print(f"cwsink: {printable(message, one_line=True)}", file=sys.stderr, flush=True)
    except OSError:  # nobody reads it, which changes neither what the command does nor its code
        _discard(sys.stderr)


@contextlib.contextmanager
def whoever_reads() -> Iterator[None]:
    """Print in this block what a command does or has found, if the command is not there for what it prints alone.

    `cwsink doctor | head -1` must still tell by its code what is wrong, and `cwsink flush --once | head -1` must still
    deliver. So a reader that is gone ends nothing here, and neither does a full disk, of which stderr says so.
    """
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        _discard(sys.stdout)
        if not isinstance(error, BrokenPipeError):
            _unwritten.append(str(error))
            complain(str(error))


def be_null(fd: int) -> None:
    """Have /dev/null be behind a descriptor: what is read there ends at once, and what is written is gone."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, fd)
    os.close(null)


def _open_what_is_closed() -> None:
    """Have /dev/null stand for those of stdin, stdout and stderr that are closed (`>&-`).

    Else the next file that is opened gets the number, and what is printed goes into a segment, or a lock has a reader.
    The command of `cwsink run` finds them closed, as without us: a program that is started does not get /dev/null.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it gets the lowest number that is free: this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115  # it is open to the end


def _forget_no_size() -> None:
    """Have a terminal's size that is none (COLUMNS=0) be as if it were not set. rich would print nothing, or fail."""
    for name in ("COLUMNS", "LINES"):
        size = os.environ.get(name, "1")
        if not (size.isdecimal() and int(size)):
            del os.environ[name]


def _discard(stream: TextIO) -> None:
    """Discard what is still buffered, because Python would fail to write it at its end, and change the exit code."""
    with contextlib.suppress(OSError, ValueError):  # it has no descriptor
        be_null(stream.fileno())
