"""The whole spool as a state machine: any order of appends, kills, takeovers, power losses, bit flips and answers.

Hypothesis makes the story, `tests.harness.simulation` lives it, and the invariants are asked after each step or at the
end, when CloudWatch is well and one leader drains what is left.

Invariants 1, 2, 3, 4, 5, 6, 9, 10.
"""

from __future__ import annotations

import errno
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from cwsink.frontends.writer import Writer
from cwsink.spool import cursor, segment
from cwsink.spool.budget import Budget, used_bytes
from cwsink.spool.reader import RingReader
from cwsink.spool.survey import survey
from tests.harness.fake_cloudwatch import POISON
from tests.harness.simulation import CAP_BYTES, MAX_BATCH_EVENTS, SEGMENT_BYTES, Leader, SimulatedHost, simulated_host
from tests.harness.support import Killed, is_ours, sent_as_history_has_it


@pytest.fixture(autouse=True, scope="module")
def small_backlog() -> Iterator[None]:
    """A segment is a backlog, so that what was begun behind one is read beside it, too."""
    with mock.patch.object(segment, "BACKLOG_BYTES", SEGMENT_BYTES):
        yield


MOST_WRITERS = 4
SIZES = st.sampled_from([1, 40, 300, 300, 900, 1_500, 3_000])
DAYS = 86_400
# What wall clocks do: a wrong time zone, a host that wakes up, one whose battery is flat, a small correction.
JUMPS = st.sampled_from([0, -5, 3 * 3_600, -3 * 3_600, 20 * DAYS, -365 * DAYS])
# Beyond cap and one segment: loss markers, and a record that passes the end of each of two segments.
SLACK_BYTES = 3 * SEGMENT_BYTES + 16 * 1024


class SpoolMachine(RuleBasedStateMachine):
    """Writers, leaders, a disk and CloudWatch; the rules are what may happen to them."""

    def __init__(self) -> None:
        super().__init__()
        self.host: SimulatedHost | None = None
        self.writers: list[Writer] = []
        self.leaders: list[Leader] = []
        self.names: dict[int, int] = {}
        self.eras: dict[str, tuple[int, int]] = {}
        self.last_ms: dict[int, int] = {}
        self.drawn: list[tuple[Writer, Callable[[], bool]]] = []
        self.count = 0

    @initialize(
        on_full=st.sampled_from(["drop_oldest", "drop_newest"]), durability=st.sampled_from(["process", "host"])
    )
    def begin(self, on_full: str, durability: str) -> None:
        self.host = SimulatedHost(on_full, durability, "720h" if durability == "host" else None)

    # Writers.

    def writer(self, index: int) -> Writer:
        """Return one of the writers that live; start one if the index asks for one more."""
        index %= min(len(self.writers) + 1, MOST_WRITERS)
        if index == len(self.writers):
            self.writers.append(Writer(self.host.config))
            self.names[id(self.writers[-1])] = len(self.names)
        return self.writers[index]

    def message(self, size: int, mark: str = "") -> str:
        self.count += 1
        return f"{self.count:05d}{mark} " + "x" * size

    def append_with(self, writer: Writer, size: int, mark: str = "") -> None:
        host, message = self.host, self.message(size, mark)
        now_ms, name = host.now_ns() // 1_000_000, writer._producer
        era = self.eras.get(f"{name}", (name, 0))[1] + (now_ms < self.last_ms.get(name, 0))
        self.last_ms[name] = now_ms
        self.eras[f"{name}"] = self.eras[message] = (name, era)
        if not host.append(writer, message):
            self.kill(writer)

    def kill(self, writer: Writer) -> None:
        self.host.forget(writer)
        self.writers.remove(writer)

    @rule(index=st.integers(0, 5), sizes=st.lists(SIZES, min_size=1, max_size=8))
    def append(self, index: int, sizes: list[int]) -> None:
        writer = self.writer(index)
        for size in sizes:
            self.append_with(writer, size)

    @rule(index=st.integers(0, 5), size=SIZES)
    def draw(self, index: int, size: int) -> None:
        """Another thread has drawn its record's sequence, and may come to write it late."""
        writer, message = self.writer(index), self.message(size)
        self.eras[message] = (-self.count, 0)
        self.drawn.append((writer, self.host.draw(writer, message)))

    @precondition(lambda self: self.drawn)
    @rule(index=st.integers(0, 5))
    def write_drawn(self, index: int) -> None:
        writer, write = self.drawn.pop(index % len(self.drawn))
        if writer in self.writers and not write():
            self.kill(writer)

    @rule(index=st.integers(0, 5))
    def append_poison(self, index: int) -> None:
        self.append_with(self.writer(index), 40, POISON)

    @rule(index=st.integers(0, 5), count=st.integers(1, 3))
    def rotate(self, index: int, count: int) -> None:
        writer = self.writer(index)
        for _ in range(count * 4):
            self.append_with(writer, 900)
        self.host.pass_time(1.1)  # the idle look for a newer segment

    @rule(index=st.integers(0, 5), steps=st.integers(0, 12), size=SIZES)
    def kill_in_append(self, index: int, steps: int, size: int) -> None:
        writer = self.writer(index)
        for _ in range(4):
            if writer in self.writers:
                self.host.kill_in = steps
                self.append_with(writer, size)

    @rule(index=st.integers(0, 5), at=st.integers(4, 2_000), size=SIZES)
    def tear_append(self, index: int, at: int, size: int) -> None:
        writer = self.writer(index)
        self.host.tear_at = at
        self.append_with(writer, size)

    @precondition(lambda self: self.writers)
    @rule(index=st.integers(0, 5), closes=st.booleans())
    def end_writer(self, index: int, closes: bool) -> None:
        writer = self.writers[index % len(self.writers)]
        if closes:
            writer.close()
        self.kill(writer)

    # Leaders.

    @rule()
    def elect(self) -> None:
        self.leaders.append(Leader(self.host))

    @rule(
        index=st.integers(0, 3),
        steps=st.integers(1, 60),
        answers=st.lists(st.sampled_from(["ok", "error", "lost", "junk"]), max_size=6),
    )
    def lead(self, index: int, steps: int, answers: list[str]) -> None:
        if not any(leader.is_alive for leader in self.leaders):
            self.elect()
        self.host.cloudwatch.answers = answers
        leader = self.leaders[index % len(self.leaders)]
        for _ in range(steps):
            if leader.is_alive:
                leader.step()

    @precondition(lambda self: self.leaders)
    @rule(index=st.integers(0, 3), tears=st.booleans())
    def kill_leader(self, index: int, tears: bool) -> None:
        leader = self.leaders[index % len(self.leaders)]
        if tears:
            leader.will_tear_commit = True
        elif leader.is_alive:
            self.host.kills += 1
            leader.kill()

    @precondition(lambda self: self.leaders)
    @rule()
    def supersede(self) -> None:
        """Somebody removes the lock file: two leaders, until the first one looks."""
        self.host.kills += 1
        if os.path.exists(path := self.host.spool.leader_lock):
            os.remove(path)
        self.elect()

    # Clocks and disks.

    @rule(seconds=JUMPS)
    def jump(self, seconds: int) -> None:
        self.host.clock_offset_ns = seconds * 10**9

    @rule(seconds=st.sampled_from([0.6, 1.5, 70.0]))
    def wait(self, seconds: float) -> None:
        self.host.pass_time(seconds)

    @precondition(lambda self: self.host.free_bytes is None)
    @rule(free=st.sampled_from([0, 100, 5_000]))
    def fill_disk(self, free: int) -> None:
        self.host.free_bytes = free
        self.host.disk_was_full = True

    @precondition(lambda self: self.host.free_bytes is not None)
    @rule()
    def free_disk(self) -> None:
        self.host.free_bytes = None

    @rule(which=st.integers(0, 20), share=st.floats(0, 0.999), bit=st.integers(0, 7))
    def flip(self, which: int, share: float, bit: int) -> None:
        if files := self.host.files():
            self.host.flip(files[which % len(files)], share, bit)

    @rule(seed=st.integers(0, 2**32))
    def lose_power(self, seed: int) -> None:
        for writer in list(self.writers):
            self.kill(writer)
        self.host.lose_power(random.Random(seed))
        self.leaders.clear()

    # The verdict.

    @invariant()
    def nothing_is_invented(self) -> None:
        """Invariant 2: what is delivered was issued, byte for byte, with its time."""
        if self.host is not None:
            issued = self.host.issued
            for sent in self.host.cloudwatch.stored[self.checked :]:
                assert is_ours(sent.message) or issued.get(sent.message) == sent.timestamp_ms, sent
            self.checked = len(self.host.cloudwatch.stored)

    checked = 0

    @invariant()
    def the_spool_is_bounded(self) -> None:
        """Invariant 6: the cap, whatever happens."""
        if self.host is not None and not self.host.is_damaged:
            assert used_bytes(self.host.spool.ring) <= CAP_BYTES + SLACK_BYTES

    def teardown(self) -> None:
        if self.host is None:
            return
        try:
            self.settle()
        finally:
            self.host.close()

    def settle(self) -> None:
        """The disk has room, CloudWatch is well, all writers but one have ended: everything is accounted for."""
        host = self.host
        host.free_bytes = None
        host.cloudwatch.answers = []
        for leader in self.leaders:
            host.kills += leader.is_alive
            leader.kill()
        for writer in list(self.writers):
            self.kill(writer)
        host.pass_time(3_600.0)
        for _ in range(2):  # the first one may find no more than that a segment is final
            self.append_with(self.writer(0), 40)
            Leader(host).drain()
        assert len(segment.numbers(host.spool.ring)) == 1  # invariant 9
        delivered = host.cloudwatch.messages()
        first = list(dict.fromkeys(delivered))
        accounted = {*first, *host.buried, *host.evicted, *host.excused}
        assert host.acknowledged <= host.written.keys()
        assert host.written.keys() <= accounted, sorted(host.written.keys() - accounted)  # invariant 1
        orders: dict[tuple[int, int], list[str]] = {}
        for message in first:
            if message not in host.excused:  # a bit that flips back brings them late
                orders.setdefault(self.eras[message], []).append(message)
        assert all(messages == sorted(messages) for messages in orders.values())  # invariant 3
        books = survey(host.spool)
        assert (books.adds_up, books.pending) == (True, 0)  # invariant 10
        if not host.is_damaged:
            assert all(len(senders) == 1 for senders in host.cloudwatch.senders.values())  # invariant 5
            repeated = len(delivered) - len(first)
            assert repeated <= (host.kills + host.cloudwatch.unanswered) * MAX_BATCH_EVENTS  # invariant 4
            if host.config.keep_delivered and not (host.evicted or host.disk_was_full):
                told = Counter(message for _, message in sent_as_history_has_it(host.spool).elements())
                assert dict.fromkeys(first, 1).items() <= told.items(), "history"
            if not host.disk_was_full:
                assert books.appended == len(host.written), books  # invariant 10, against what was written


class SoundMachine(SpoolMachine):
    """The same with disks that keep what they were given and have room: every count must be exact."""

    flip = lose_power = fill_disk = None


def check(machine: type[SpoolMachine], examples: int, steps: int, *, derandomize: bool) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=derandomize,
            database=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
        ),
    )


@pytest.mark.timeout(600)
def test_any_story_of_50_steps_keeps_the_invariants() -> None:
    """80 stories, the same in each run."""
    check(SpoolMachine, 80, 50, derandomize=True)


@pytest.mark.timeout(600)
def test_any_story_of_50_steps_without_damage_keeps_the_counts() -> None:
    """70 stories in which duplicates, senders and the ledger can be checked to the record."""
    check(SoundMachine, 70, 50, derandomize=True)


@pytest.mark.long
@pytest.mark.timeout(7_200)
@pytest.mark.parametrize(
    ("machine", "examples"), [(SpoolMachine, 5_000), (SoundMachine, 1_000)], ids=["anything", "no damage"]
)
def test_any_story_of_100_steps_keeps_the_invariants(machine: type[SpoolMachine], examples: int) -> None:
    """5,000 stories of anything and 1,000 without damage, others in each run."""
    check(machine, examples, 100, derandomize=False)
    print(f"{examples} stories of 100 steps of the {machine.__name__} kept all invariants")


# Stories that the machine has found.


def test_what_is_appended_after_a_power_failure_that_kept_more_of_the_cursor_is_delivered() -> None:
    """The segment's end is lost, the commit of it is not: what follows must not count as delivered."""
    with simulated_host() as host:
        writer = Writer(host.config)
        for number in range(3):
            assert host.append(writer, f"before {number}")
        Leader(host).drain()
        path = segment.path_of(host.spool.ring, 1)
        host.forget(writer)
        os.truncate(path, segment.HEADER_BYTES + 30)
        writer = Writer(host.config)
        assert host.append(writer, "after 1")
        assert host.append(writer, "after 2, and long enough to pass the old end " + "." * 500)
        Leader(host).drain()
        assert [message[:7] for message in host.cloudwatch.messages()][-2:] == ["after 1", "after 2"]


def test_what_is_appended_after_a_power_failure_in_the_middle_of_a_chunk_is_delivered() -> None:
    """Of two requests one is committed, the segment's end is lost: no record is cut where the chunk ended."""
    with simulated_host() as host:
        writer = Writer(host.config)
        assert host.append(writer, "before 1")
        host.clock_offset_ns = 2 * DAYS * 10**9  # not in one request with the first
        assert host.append(writer, "before 2")
        host.clock_offset_ns = 0
        leader = Leader(host)
        while cursor.read(host.spool.cursor).requests_done == 0:
            leader.step()
        leader.kill()
        host.forget(writer)
        os.truncate(segment.path_of(host.spool.ring, 1), segment.HEADER_BYTES + 2)
        writer = Writer(host.config)
        assert host.append(writer, "after 1")
        assert host.append(writer, "after 2, and long enough to pass the old end " + "." * 500)
        Leader(host).drain()
        assert [message[:8] for message in host.cloudwatch.messages()] == ["before 1", "after 1", "after 2,"]


def test_a_segment_of_which_no_whole_frame_is_left_is_reclaimed() -> None:
    """A power failure may leave a header and a torn frame: it takes no room for ever."""
    with simulated_host() as host:
        writer = Writer(host.config)
        while segment.numbers(host.spool.ring)[-1:] != [2]:
            assert host.append(writer, f"{len(host.issued)} " + "." * 900)
        host.forget(writer)
        os.truncate(segment.path_of(host.spool.ring, 1), segment.HEADER_BYTES + 30)
        for number in range(2):
            assert host.append(writer, f"after {number}")
            Leader(host).drain()
        assert segment.numbers(host.spool.ring) == [2]


def test_two_cut_writes_in_a_row_are_no_lost_record() -> None:
    """Two writers killed one after the other: what neither was told is safe is not counted as lost."""
    with simulated_host() as host:
        for cut in (120, 100):  # together longer than one of them would have been
            writer = Writer(host.config)
            host.tear_at = cut
            assert not host.append(writer, "cut " + "." * 100)
            host.forget(writer)
        assert host.append(Writer(host.config), "whole")
        Leader(host).drain()
        assert host.cloudwatch.messages() == ["whole"]
        assert survey(host.spool).dead_lettered == {}


def test_a_segment_that_a_killed_evictor_has_counted_goes_before_an_older_one() -> None:
    """It was not the oldest, which an idle writer pinned: it must not count, or be delivered, once that one goes."""
    with simulated_host() as host:
        idle, writer = Writer(host.config), Writer(host.config)
        assert host.append(idle, "idle")
        while segment.numbers(host.spool.ring)[-1] < 4:
            assert host.append(writer, f"{len(host.issued)} " + "." * 900)
        evicting = Budget(host.spool, CAP_BYTES, SEGMENT_BYTES)

        def kill(at: str) -> None:
            if at == "evicted":
                raise Killed

        with mock.patch.object(host, "step", kill), pytest.raises(Killed):
            evicting.evict(at_least_one=True)
        assert segment.numbers(host.spool.ring) == [1, 2, 3, 4]
        host.forget(idle)
        assert Budget(host.spool, CAP_BYTES, SEGMENT_BYTES).evict(at_least_one=True)
        assert segment.numbers(host.spool.ring) == [1, 3, 4]
        Leader(host).drain()
        books = survey(host.spool)
        assert books.appended == len(host.written) == books.delivered + books.evicted


def test_an_evicted_segment_that_a_power_failure_brings_back_is_not_appended_to() -> None:
    """Its unlink and the names of all newer segments are lost, the totals are not: readers pass it by."""
    with simulated_host() as host:
        writer = Writer(host.config)
        while segment.numbers(host.spool.ring)[-1:] != [2]:
            assert host.append(writer, f"{len(host.issued)} " + "." * 900)
        evicted = segment.path_of(host.spool.ring, 1)
        os.rename(evicted, f"{evicted}.kept")
        os.link(f"{evicted}.kept", evicted)
        host.forget(writer)
        assert Budget(host.spool, CAP_BYTES, SEGMENT_BYTES).evict(at_least_one=True)
        os.rename(f"{evicted}.kept", evicted)
        os.truncate(evicted, 2_000)  # there is room in it
        os.remove(segment.path_of(host.spool.ring, 2))
        assert host.append(Writer(host.config), "after")
        Leader(host).drain()
        assert host.cloudwatch.messages() == ["after"]


def test_a_leader_that_fails_to_remove_an_evicted_segment_keeps_no_lock_on_it() -> None:
    """A power failure has brought it back, and the disk is read-only for a while: the next leader removes it."""
    with simulated_host() as host:
        writer = Writer(host.config)
        while segment.numbers(host.spool.ring)[-1:] != [2]:
            assert host.append(writer, f"{len(host.issued)} " + "." * 900)
        evicted = segment.path_of(host.spool.ring, 1)
        content = Path(evicted).read_bytes()
        host.forget(writer)
        assert Budget(host.spool, CAP_BYTES, SEGMENT_BYTES).evict(at_least_one=True)
        Path(evicted).write_bytes(content)
        reader = RingReader(host.spool, {})
        error = OSError(errno.EROFS, evicted)
        with mock.patch.object(host, "step", side_effect=error), pytest.raises(OSError, match=evicted):
            reader.read()
        assert segment.numbers(host.spool.ring) == [1, 2]
        Leader(host).drain()
        assert segment.numbers(host.spool.ring) == [2]
        reader.close()
