"""The proof that a process still leads, which it needs before each call, commit and unlink.

There are three answers, and no two of them may be taken for one. It leads: the lease is its own, and the cursor has its
epoch. It does not: the lock's file is gone or another one, or a later epoch has begun (`Fenced`). The disk does not say
(EIO, EACCES ...): that proves nothing, and is an OSError. A leader that has an answer of CloudWatch then asks again.
If it took that for an end, the next leader would send the same request once more.
"""

from __future__ import annotations

from contextlib import suppress

from cwsink.diagnostics import report
from cwsink.flusher.claim import Lease
from cwsink.flusher.commits import Cursor, Fenced
from cwsink.spool import files
from cwsink.spool.cursor import State
from cwsink.spool.directory import SpoolDirectory


class Proof:
    """Asks lease and cursor for one epoch."""

    def __init__(self, directory: SpoolDirectory, lease: Lease, cursor: Cursor) -> None:
        self._directory = directory
        self._lease = lease
        self._cursor = cursor

    def check(self, state: State) -> None:
        """Raise unless this process can prove that it still leads.

        Args:
            state: the last one that was committed. If somebody has removed or overwritten the cursor, it is written
                anew.

        Raises:
            Fenced: it does not lead any more.
            OSError: neither is proven.
        """
        self._lease.beat()
        # Twice: somebody may overwrite the cursor just after it was found to be whole.
        if not self._is_lease_ours() or not (self._is_cursor_ours(state) or self._is_cursor_ours(state)):
            raise Fenced(f"epoch {state.epoch} has ended")

    def _is_lease_ours(self) -> bool:
        if self._lease.is_held():
            return True
        # It takes any error for "no". So look whether there is one. (This takes no descriptor either.)
        try:
            files.seen(self._directory.leader_lock)
        except OSError as error:
            if not files.is_absent(error):
                raise
        return self._lease.is_held()

    def _is_cursor_ours(self, state: State) -> bool:
        with suppress(OSError):  # the next check tries again
            if self._cursor.restore(state):
                path = self._directory.cursor
                what = "was removed or overwritten, or the disk cannot read it"
                report(path, f"{path} {what}. It is written anew, and no record is sent again.")
        return self._cursor.is_ours()
