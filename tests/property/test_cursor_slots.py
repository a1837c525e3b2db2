"""Cursor slots under Hypothesis: whatever happens to one, a state that was written is read, never another.

Invariant 7.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from hypothesis import given, settings
from hypothesis import strategies as st

from cwsink.flusher.commits import Cursor
from cwsink.spool import cursor
from cwsink.spool.cursor import SLOT_BYTES, Ledger, Offset, State
from cwsink.spool.record import MOST

NUMBERS = st.integers(0, MOST)
OFFSETS = st.lists(st.builds(Offset, NUMBERS, st.integers(0, 2**32 - 1), NUMBERS), max_size=5)
LEDGERS = st.builds(
    Ledger,
    appended=NUMBERS,
    delivered=NUMBERS,
    dead_lettered=st.dictionaries(st.text(max_size=5), NUMBERS, max_size=3),
    refused=st.dictionaries(st.text(max_size=5), NUMBERS, max_size=3),
)
STATES = st.builds(State, offsets=OFFSETS, chunk=OFFSETS, requests_done=NUMBERS, ledger=LEDGERS, partial=LEDGERS)
EXAMPLES = 100


@contextmanager
def cursor_file() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as directory:
        yield f"{directory}/cursor"


def write(path: str, states: list[State]) -> list[State]:
    """Commit each state in turn as one leader; return all that were written, the take-over first."""
    held = Cursor(path)
    try:
        written = [held.take_over("holder")]
        for state in states:
            state.epoch, state.holder = written[0].epoch, "holder"
            held.commit(state)
            written.append(state)
        return written
    finally:
        held.close()


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(STATES, max_size=5))
def test_the_last_commit_is_what_is_read(states: list[State]) -> None:
    """Offsets, ledger, chunk and parts come back as they were committed."""
    with cursor_file() as path:
        assert cursor.read(path) == State()
        written = write(path, states)
        assert cursor.read(path) == written[-1]
        assert os.path.getsize(path) <= 2 * SLOT_BYTES


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(STATES, min_size=2, max_size=4), st.data())
def test_a_damaged_slot_leaves_the_other(states: list[State], data: st.DataObject) -> None:
    """Any bytes over any part of one slot: the last state, or the one before, and never one that was not written."""
    with cursor_file() as path:
        written = write(path, states)
        slot = data.draw(st.integers(0, 1), "slot")
        filling = data.draw(st.binary(min_size=1, max_size=200), "filling")
        at = slot * SLOT_BYTES + data.draw(st.integers(0, 100), "offset")
        with open(path, "r+b") as file:
            file.seek(at)
            file.write(filling)
        assert cursor.read(path) in written[-2:]


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(STATES, max_size=2), st.binary(max_size=200), st.binary(max_size=200))
def test_two_damaged_slots_are_a_new_start(states: list[State], one: bytes, other: bytes) -> None:
    """Both slots lost: reading begins at the oldest segment, and a new leader can take over at once."""
    with cursor_file() as path:
        write(path, states)
        with open(path, "r+b") as file:
            for slot, filling in enumerate((one, other)):
                file.seek(slot * SLOT_BYTES)
                file.write(b"\0" * 20 + filling)
        assert cursor.read(path) == State()
        assert write(path, [])[0].epoch == 1


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.binary(max_size=300))
def test_any_file_at_all_is_read_without_an_exception(content: bytes) -> None:
    """Whatever lies where the cursor should be, there is a state to go on from."""
    with cursor_file() as path:
        with open(path, "wb") as file:
            file.write(content)
        assert cursor.read(path) == State()
        assert write(path, [State(requests_done=3)])[-1] == cursor.read(path)
