"""`cwsink verify`: has CloudWatch what was delivered? The work is cwsink.flusher.verification's."""

from __future__ import annotations

import argparse
import contextlib
import sys

import msgspec

from cwsink import words
from cwsink.cli import DONE, NOT_DONE, say
from cwsink.cli.progress import display
from cwsink.cli.spools import Spools, target
from cwsink.flusher.verification import Account, Verification, has_history, in_words


def run(options: argparse.Namespace) -> int:
    """Compare each spool's history with CloudWatch. Returns the exit code."""
    spools = Spools(options.path, read_only=False)
    accounts: dict[str, Account] = {}
    with contextlib.ExitStack() as stack:
        if options.json:
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        shown = stack.enter_context(display(has_end=True, verb="compared"))
        for directory in spools.find():
            name = target(directory)

            def show(done: int, share: float, late: int, name: str = name) -> None:
                shown.show(name, done, share)
                if late:
                    shown.say(f"{name}: {words.counted(late, 'event')} not shown yet. Looking again.")

            with spools.missing(directory.path, "cannot verify"):
                if not has_history(directory):
                    why = "has no history, so it is not verified: set keep_delivered where the application logs."
                    spools.miss(directory.path, f"{directory.path} {why}")
                    continue
                work = Verification(directory, show, calls_per_second=options.rate)
                account = work.run(options.since, options.until, patience_seconds=options.patience)
                accounts[directory.path] = account
                for line in in_words(account):
                    shown.say(f"{name}: {line}")
    if options.json:
        found = [{"path": path, **msgspec.structs.asdict(account)} for path, account in accounts.items()]
        say(msgspec.json.encode({"spools": found}).decode())
    is_whole = bool(accounts) and spools.is_whole and all(account.is_whole for account in accounts.values())
    return DONE if is_whole else NOT_DONE
