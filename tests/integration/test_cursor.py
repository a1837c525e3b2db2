"""The cursor file: a torn write costs one step at most, and only the newest leader writes."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

import msgspec
import pytest

from cwsink.flusher.commits import Cursor, Fenced
from cwsink.spool import cursor, disk, held_lock
from cwsink.spool.cursor import SLOT_BYTES, Ledger, Offset, State
from tests.harness.bad_sectors import PAGE_BYTES, unreadable

FEW = [Offset(1, 0xAAAA_AAAA, 100), Offset(2, 0xBBBB_BBBB, 4_096)]
MANY = [Offset(number, number * 7, number * 11) for number in range(1, 1_001)]  # more than one read's bytes


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "cursor")


def next_of(state: State, *, delivered: int, offsets: list[Offset] | None = None) -> State:
    """The state after some more was delivered."""
    return State(state.epoch, state.holder, FEW if offsets is None else offsets, ledger=Ledger(delivered, delivered))


def test_a_spool_without_a_cursor_begins_at_the_beginning(path: str) -> None:
    """No file, an empty one, and one that ends early are the same: nothing is settled."""
    assert cursor.read(path) == State()
    for content in (b"", b"CWCU", bytes(19), bytes(SLOT_BYTES)):
        Path(path).write_bytes(content)
        assert cursor.read(path) == State()


def test_each_leader_begins_an_epoch_of_its_own(path: str) -> None:
    """One more than any before, with the holder's name, and all that was settled kept."""
    first = Cursor(path)
    state = first.take_over("host/1")
    assert (state.epoch, state.holder) == (1, "host/1")
    first.commit(next_of(state, delivered=10))
    first.close()
    second = Cursor(path)
    state = second.take_over("host/2")
    assert (state.epoch, state.holder, state.ledger.delivered, state.offsets) == (2, "host/2", 10, FEW)
    assert cursor.read(path) == state
    second.close()


def test_an_old_leader_is_fenced(path: str) -> None:
    """Once a later epoch has begun, the old holder learns so and changes nothing."""
    old, new = Cursor(path), Cursor(path)
    old_state = old.take_over("old")
    assert old.is_ours()
    new_state = new.take_over("new")
    assert not old.is_ours()
    assert new.is_ours()
    before = Path(path).read_bytes()
    with pytest.raises(Fenced, match="epoch 1 was followed by epoch 2"):
        old.commit(next_of(old_state, delivered=5))
    assert Path(path).read_bytes() == before
    new.commit(next_of(new_state, delivered=7))
    with pytest.raises(Fenced):
        old.commit(next_of(old_state, delivered=6))
    assert cursor.read(path).ledger.delivered == 7
    old.close()
    new.close()


def test_a_state_of_another_epoch_is_not_committed(path: str) -> None:
    """A leader that kept a state from before its own take-over cannot write it."""
    held = Cursor(path)
    state = held.take_over("holder")
    for epoch in (state.epoch - 1, state.epoch + 1):
        with pytest.raises(Fenced):
            held.commit(State(epoch, "holder", FEW))
    assert cursor.read(path) == state
    held.close()


def test_a_leader_whose_cursor_was_lost_is_fenced(path: str) -> None:
    """With both slots gone a commit does not guess, and the next leader starts anew."""
    held = Cursor(path)
    state = held.take_over("holder")
    Path(path).write_bytes(bytes(2 * SLOT_BYTES))
    assert not held.is_ours()
    with pytest.raises(Fenced):
        held.commit(next_of(state, delivered=1))
    held.close()
    again = Cursor(path)
    assert again.take_over("again").epoch == 1
    again.close()


@pytest.mark.parametrize("commits", [1, 2])
@pytest.mark.parametrize("slot", [0, 1])
def test_a_slot_that_cannot_be_read_proves_nothing_for_a_while(
    path: str, monkeypatch: pytest.MonkeyPatch, slot: int, commits: int
) -> None:
    """It is an error, and no state is begun anew. After 10 s the other slot counts, and the leader still leads."""
    now = [1000.0]
    monkeypatch.setattr(disk, "monotonic", lambda: now[0])
    held = Cursor(path)
    state = held.take_over("holder")
    for count in range(1, commits + 1):
        state = next_of(state, delivered=count)
        held.commit(state)
    asked: list[Callable[[], object]] = [
        lambda: cursor.read(path),
        held.is_ours,
        lambda: held.restore(state),
        lambda: held.commit(state),
        lambda: held.take_over("another"),
    ]
    with unreadable(Path(path), [slot * SLOT_BYTES // PAGE_BYTES]):
        for seconds in (0.0, 9.9):
            now[0] = 1000.0 + seconds
            for ask in asked:
                with pytest.raises(OSError, match=f"Input/output error: '{path}'"):
                    ask()
        now[0] = 1010.0
        held.restore(state)
        assert held.is_ours()
        state = next_of(state, delivered=9)
        held.commit(state)
    assert cursor.read(path) == state
    held.close()


def test_a_leader_whose_epoch_is_lost_with_a_slot_writes_it_anew(path: str) -> None:
    """The other slot has the epoch before. That is no later leader's, so nobody is fenced."""
    first = Cursor(path)
    first.commit(next_of(first.take_over("first"), delivered=1))
    first.close()
    held = Cursor(path)
    state = held.take_over("holder")
    with open(path, "r+b") as file:
        file.seek(SLOT_BYTES)
        file.write(bytes(100))
    assert not held.is_ours()
    assert held.restore(state)
    assert held.is_ours()
    assert cursor.read(path) == state
    held.close()


def test_commits_go_to_the_two_slots_in_turn(path: str) -> None:
    """The slot that counts is never the one that is written."""
    held = Cursor(path)
    state = held.take_over("holder")
    for delivered in range(1, 6):
        before = Path(path).read_bytes().ljust(2 * SLOT_BYTES, b"\0")
        held.commit(next_of(state, delivered=delivered))
        after = Path(path).read_bytes().ljust(2 * SLOT_BYTES, b"\0")
        changed = [
            slot
            for slot in (0, 1)
            if before[slot * SLOT_BYTES :][:SLOT_BYTES] != after[slot * SLOT_BYTES :][:SLOT_BYTES]
        ]
        assert changed == [delivered % 2 ^ 1]
        assert cursor.read(path).ledger.delivered == delivered
    held.close()


@pytest.mark.parametrize("commits", [1, 2, 3, 4])
@pytest.mark.parametrize("offsets", [FEW, MANY], ids=["few", "many"])
def test_a_write_torn_at_any_byte_leaves_the_state_before_it(path: str, commits: int, offsets: list[Offset]) -> None:
    """Cut the last write at every byte: the one before counts, with its offsets and ledger as one."""
    held = Cursor(path)
    state = held.take_over("holder")
    for delivered in range(1, commits):
        held.commit(next_of(state, delivered=delivered, offsets=offsets))
    before_bytes, before = Path(path).read_bytes().ljust(2 * SLOT_BYTES, b"\0"), cursor.read(path)
    held.commit(next_of(state, delivered=commits, offsets=[*offsets, Offset(5_000, 5, 5)]))
    after_bytes, after = Path(path).read_bytes().ljust(2 * SLOT_BYTES, b"\0"), cursor.read(path)
    held.close()
    assert before != after
    changed = [index for index in range(2 * SLOT_BYTES) if before_bytes[index] != after_bytes[index]]
    step = 1 if offsets is FEW else 37
    with open(path, "r+b") as file:
        for cut in range(changed[0], changed[-1] + 1, step):
            file.seek(0)
            file.write(after_bytes[:cut] + before_bytes[cut:])
            file.flush()
            assert cursor.read(path) == before, f"cut at {cut}"
    Path(path).write_bytes(after_bytes)
    assert cursor.read(path) == after


def test_a_file_cut_at_any_byte_is_no_obstacle(path: str) -> None:
    """A cursor whose end never reached the disk: one of the states that were written, or a new start."""
    held = Cursor(path)
    state = held.take_over("holder")
    known = [State(), state]
    for delivered in (1, 2, 3):
        known.append(next_of(state, delivered=delivered))
        held.commit(known[-1])
    held.close()
    content = Path(path).read_bytes()
    for cut in [*range(200), *range(SLOT_BYTES - 2, SLOT_BYTES + 2), *range(len(content) - 200, len(content))]:
        Path(path).write_bytes(content[:cut])
        assert cursor.read(path) in known


def test_after_a_torn_write_the_next_commit_counts(path: str) -> None:
    """The slot that was torn is written again, not the good one."""
    held = Cursor(path)
    state = held.take_over("holder")
    for delivered in (1, 2):
        held.commit(next_of(state, delivered=delivered))
    with open(path, "r+b") as file:  # generation 3 lies in slot 1
        file.seek(SLOT_BYTES + 10)
        file.write(b"torn")
    assert cursor.read(path).ledger.delivered == 1
    assert held.is_ours()
    held.commit(next_of(state, delivered=3))
    assert cursor.read(path).ledger.delivered == 3
    held.close()


def slot_of(epoch: int, generation: int) -> bytes:
    """A valid slot, as a leader of that epoch would have written it."""
    body = msgspec.msgpack.encode(State(epoch, f"holder {epoch}", requests_done=generation))
    checked = generation.to_bytes(8, "little") + len(body).to_bytes(4, "little") + body
    return (b"CWCU" + crc32(checked).to_bytes(4, "little") + checked).ljust(SLOT_BYTES, b"\0")


@pytest.mark.parametrize(
    ("slots", "counts"),
    [
        (((1, 2), (1, 3)), (1, 3)),
        (((1, 4), (1, 3)), (1, 4)),
        (((2, 2), (1, 3)), (2, 2)),
        (((1, 4), (2, 3)), (2, 3)),
        (((1, 2), (1, 2)), (1, 2)),
    ],
)
def test_the_highest_epoch_then_generation_counts(
    path: str, slots: tuple[tuple[int, int], tuple[int, int]], counts: tuple[int, int]
) -> None:
    """A later leader's state wins over any number of writes by an earlier one."""
    Path(path).write_bytes(b"".join(slot_of(*slot) for slot in slots))
    state = cursor.read(path)
    assert (state.epoch, state.requests_done) == counts
    held = Cursor(path)
    assert held.take_over("next").epoch == counts[0] + 1
    assert cursor.read(path).epoch == counts[0] + 1
    held.close()


def test_a_length_that_runs_out_of_the_slot_is_not_believed(path: str) -> None:
    """A slot that claims gigabytes is damaged, not read."""
    for length in (SLOT_BYTES, 2**31, 2**32 - 1):
        slot = bytearray(slot_of(9, 9))
        slot[16:20] = length.to_bytes(4, "little")
        Path(path).write_bytes(bytes(slot) + slot_of(1, 1))
        assert cursor.read(path).epoch == 1


@pytest.mark.parametrize("chunk", [0, 3, 6_000], ids=lambda count: f"{count} in flight")
def test_more_segments_than_a_slot_can_name_cost_no_slot(path: str, chunk: int) -> None:
    """The newest are forgotten, which costs duplicates; the oldest, the ledger and the other slot stay."""
    held = Cursor(path)
    state = held.take_over("holder")
    many = [Offset(2**40 + number, 2**32 - 1, 2**40) for number in range(6_000)]
    for delivered in (1, 2, 3):
        full = next_of(state, delivered=delivered, offsets=many[::-1])
        full.chunk = many[:chunk]
        full.requests_done = 1
        held.commit(full)
        assert held.is_ours()
        found = cursor.read(path)
        assert found.offsets == many[:1_000]
        assert (found.chunk, found.requests_done, found.partial) == ([], 0, Ledger())
        assert found.ledger == full.ledger
        assert full.offsets == many[::-1]  # the leader itself still knows them
        assert os.path.getsize(path) <= 2 * SLOT_BYTES
    held.close()


@pytest.mark.parametrize("offsets", [2, 6_000])
def test_more_reasons_than_a_slot_has_room_for_cost_no_slot(path: str, offsets: int) -> None:
    """Somebody has made them up. The totals are right without them, and the other slot stays."""
    held = Cursor(path)
    state = held.take_over("holder")
    many = {f"{number} {'x' * 50}": 1 for number in range(1_000)}
    for delivered in (1, 2, 3):
        full = next_of(state, delivered=delivered)
        full.offsets = [Offset(2**40 + number, 2**32 - 1, 2**40) for number in range(offsets)]
        full.ledger.refused, full.ledger.refused_reported = dict(many), dict(many)
        assert len(cursor.packed(full, 2**40)) <= SLOT_BYTES
        held.commit(full)
        assert held.is_ours()
        found = cursor.read(path)
        assert found.ledger == Ledger(delivered, delivered, refused={"other": 1_000}, refused_reported={"other": 1_000})
        assert full.ledger.refused == many  # the leader itself still knows them
    held.close()


def test_a_few_thousand_segments_are_all_named(path: str) -> None:
    """What fits a slot is kept whole, chunk included."""
    held = Cursor(path)
    state = held.take_over("holder")
    full = next_of(state, delivered=1, offsets=[Offset(number, 2**32 - 1, 2**23) for number in range(3_000)])
    full.chunk, full.requests_done = FEW, 1
    held.commit(full)
    assert cursor.read(path) == full
    held.close()


def test_the_cursor_is_ours_alone_and_follows_no_link(path: str, tmp_path: Path) -> None:
    """Mode 0600; a symbolic link in its place is refused, not written through."""
    held = Cursor(path)
    held.take_over("holder")
    held.close()
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    os.unlink(path)
    os.symlink(target, path)
    with pytest.raises(OSError, match="symbolic"):
        Cursor(path)
    assert target.read_bytes() == b"precious"


def test_a_full_disk_is_an_error_and_costs_nothing(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit that is not written whole is told, and the one before still counts."""
    held = Cursor(path)
    state = held.take_over("holder")
    held.commit(next_of(state, delivered=1))
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:30], offset))
    with pytest.raises(OSError, match="whole"):
        held.commit(next_of(state, delivered=2))
    monkeypatch.undo()
    assert cursor.read(path).ledger.delivered == 1
    held.commit(next_of(state, delivered=3))
    assert cursor.read(path).ledger.delivered == 3
    held.sync()
    held.close()


def test_a_stopped_leader_that_has_the_lock_blocks_no_successor(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is stopped in the middle of a commit, and the lease was taken from it: the next leader takes over and commits.

    When it goes on it writes what it was about to write: that costs no epoch, and nothing that is committed later.
    """
    monkeypatch.setattr(held_lock, "PATIENCE_SECONDS", 0.05)
    stopped = Cursor(path)
    state = stopped.take_over("stopped")
    stopped.commit(state)
    _, generation = cursor.best(stopped._fd)
    fcntl.flock(stopped._fd, fcntl.LOCK_EX)
    new = Cursor(path)
    mine = new.take_over("new")
    assert mine.epoch == 2
    new.commit(next_of(mine, delivered=7))
    stopped._write(next_of(state, delivered=5), generation + 1)
    assert new.is_ours()
    assert not stopped.is_ours()
    assert cursor.read(path).epoch == 2
    new.commit(next_of(mine, delivered=8))
    assert cursor.read(path).ledger.delivered == 8
    fcntl.flock(stopped._fd, fcntl.LOCK_UN)
    with pytest.raises(Fenced):
        stopped.commit(next_of(state, delivered=6))
    new.commit(next_of(mine, delivered=9))
    assert cursor.read(path).ledger.delivered == 9
    new.close()
    stopped.close()


def test_the_first_commit_after_a_late_write_counts(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The late write comes before the successor has committed anything: its epoch is in the other slot."""
    monkeypatch.setattr(held_lock, "PATIENCE_SECONDS", 0.05)
    stopped = Cursor(path)
    state = stopped.take_over("stopped")
    _, generation = cursor.best(stopped._fd)
    fcntl.flock(stopped._fd, fcntl.LOCK_EX)
    new = Cursor(path)
    mine = new.take_over("new")
    stopped._write(next_of(state, delivered=5), generation + 1)
    assert new.is_ours()
    assert cursor.read(path) == mine
    new.close()
    stopped.close()
