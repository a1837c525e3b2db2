"""`cwsink demo`: run `cwsink.demo`, or say what to install if it cannot be loaded."""

from __future__ import annotations

import argparse
import sys

from cwsink.cli import DONE, NOT_DONE, complain

_HELP = """\
usage: cwsink demo [arguments of the demo]

A real web server that logs, workers that are killed, a CloudWatch that fails, and a count of what arrived.
It needs: pip install 'cwsink[demo]'
"""


def run(options: argparse.Namespace) -> int:
    """Run the demo. Returns its exit code."""
    try:
        from cwsink.demo import main  # type: ignore[attr-defined, unused-ignore]
    except ImportError as error:
        if {"-h", "--help"} & set(options.words):
            sys.stdout.write(_HELP)
            return DONE
        complain(f"the demo cannot be loaded ({error}). Install what it needs: pip install 'cwsink[demo]'")
        return NOT_DONE
    code: int = main(options.words)
    return code
