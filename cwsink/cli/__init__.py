"""The command line. A command is a row of `arguments.COMMANDS`, and a module of its name here with a function `run`.

A command's module is imported when it is asked for, so that `cwsink --version` and `cwsink status --json`
load neither rich nor botocore. None of them imports fapilog.

Exit codes: 0 done, 1 not done (stderr says why), 2 usage; `run` has those of its command. Never 3
or 4 of our own: a gunicorn master would take those for its own worker's boot failure.

The floors, each of which imports from below only (import-linter holds them):

```text
flush  replay  status  run  tail  demo     a command each
serve  dead_letters  status_view           the larger half of one
job                                        what was in one spool, until it is delivered
flushing  sight                            tools of those that lead; what can be seen of a spool
spools  progress  signals                  which spools, what is shown meanwhile, signals as a queue
text                                       how things are worded
arguments                                  what can be typed
```
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Final

DONE: Final = 0
NOT_DONE: Final = 1


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
        options = arguments.parse(words)
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
