"""The command line: `cwsink run`, `flush`, `status`, `tail`, `replay`, `demo`.

Each command is a module of its own, imported when it is asked for, so that `cwsink --version`
and `cwsink status --json` load neither rich nor botocore. None of them imports fapilog.

Exit codes: 0 done, 1 not done (stderr says why), 2 usage; `run` has those of its command. Never 3
or 4 of our own: a gunicorn master would take those for its own worker's boot failure.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Final

DONE: Final = 0
NOT_DONE: Final = 1
USAGE: Final = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments after the program's name; those of this process by default.

    Returns:
        The exit code.
    """
    from cwsink.cli import arguments
    from cwsink.errors import CwsinkError

    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # pytest's stand-ins have no such method
            # A terminal that cannot show a character shows its escape; no traceback for an umlaut.
            stream.reconfigure(errors="backslashreplace")
    try:
        if words[:1] == ["demo"]:  # it has arguments of its own
            from cwsink.cli import demo

            return demo.run(words[1:])
        parser = arguments.parser()
        options = parser.parse_args(words)
        if options.command is None:
            parser.print_help(sys.stderr)
            return USAGE
        code: int = import_module(f"cwsink.cli.{options.command}").run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()  # who read it has seen enough
        return DONE
    except KeyboardInterrupt:
        complain("interrupted")
        return NOT_DONE
    except (CwsinkError, OSError) as error:
        complain(str(error))
        _discard_output()  # it may be what failed: a full disk
        return NOT_DONE
    return code


def complain(message: str) -> None:
    """Say one line on stderr."""
    print(f"cwsink: {message}", file=sys.stderr, flush=True)


def _discard_output() -> None:
    """Keep what is still buffered from failing once more when the interpreter ends, with an exit code of its own."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
