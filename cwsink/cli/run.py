"""`cwsink run -- COMMAND ...`: run a command, and beside it one flusher for all that it logs (cwsink.supervisor)."""

from __future__ import annotations

import argparse
import contextlib
import os

from cwsink import hosted
from cwsink.spool.root import ROOT_VARIABLE, why_unusable
from cwsink.supervisor.command import Supervisor
from cwsink.supervisor.flusher_process import say


def run(options: argparse.Namespace) -> int:
    """Run the command. Returns its exit code."""
    words = options.words[1:] if options.words[:1] == ["--"] else options.words
    if not words:
        options.error("run what? The command goes last: cwsink run -- COMMAND ...")
    # The command and the flusher both take these from their environment. By the first one, the workers know that they
    # need not start a flusher at once (cwsink.hosted).
    os.environ[hosted.VARIABLE] = hosted.mark()
    if options.spool is not None:
        os.environ[ROOT_VARIABLE] = os.path.abspath(options.spool)
    _say_if_unusable(os.environ.get(ROOT_VARIABLE, ""))
    supervisor = Supervisor(words, options.drain_timeout)
    code = supervisor.run()
    if supervisor.is_command_started:
        _say_what_stays()
    return code


def _say_if_unusable(root: str) -> None:
    """The command says so itself once it logs, which may be late. It runs all the same."""
    with contextlib.suppress(OSError):
        if os.path.isabs(root) and (why := why_unusable(root)):
            say(f"user {os.geteuid()} cannot use the spool directory {root}: {why}. The command runs all the same.")


def _say_what_stays() -> None:
    from cwsink import words  # imported here, because all of this would hold 8 MiB while the command runs
    from cwsink.cli.spools import Spools
    from cwsink.errors import CwsinkError
    from cwsink.spool import orphans

    # Another user's spool is not our flusher's, and may hold what was put there to stop us.
    spools = Spools(None, read_only=False, leaves_others=True, tell=lambda _: None)
    try:
        for directory in spools.open():
            if count := spools.looked_at(directory, orphans.left_behind):
                say(
                    f"{words.stay(count)} in {directory.path}. They are kept, and sent by the next start or by "
                    f"{words.to_send(directory.path)}."
                )
    except (CwsinkError, OSError) as error:
        say(str(error))
