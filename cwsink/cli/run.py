"""`cwsink run -- COMMAND ...`: a command, and one flusher beside it for all that it logs."""

from __future__ import annotations

import argparse
import os
from typing import Final

from cwsink.cli.supervisor import Supervisor

# cwsink.config has it, too; but it would be in memory for as long as the command runs.
_PREFIX: Final = "FAPILOG_CLOUDWATCH__"


def run(options: argparse.Namespace) -> int:
    """Run the command. Returns its exit code."""
    words = options.words[1:] if options.words[:1] == ["--"] else options.words
    if not words:
        options.error("run what? The command goes last: cwsink run -- COMMAND ...")
    # For the command and for the flusher: both take these from their environment.
    os.environ["CWSINK_HOSTED"] = "run"  # cwsink.frontends.starter: the workers need not start one at once
    if options.spool is not None:
        os.environ[f"{_PREFIX}SPOOL_DIRECTORY"] = os.path.abspath(options.spool)
    return Supervisor(words, options.drain_timeout).run()
