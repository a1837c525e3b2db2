"""The suite's own teeth: take one safeguard out of cwsink, and a named test must fail.

Each mutant is a copy of the package with one exact piece of its source replaced. The table names functions and tests
as objects, and the piece must be in the function exactly once, so that it cannot rot. `scripts/soak` runs the mutants.
"""

from __future__ import annotations

import inspect
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Final, NamedTuple
from unittest import mock

import pytest

from cwsink.cli import flushing, job, spools
from cwsink.flusher import confidential, deadline, guard, self_metrics
from cwsink.flusher.adoption import Adopter
from cwsink.flusher.claim import Lease
from cwsink.flusher.collector import Collector
from cwsink.flusher.commits import Cursor
from cwsink.flusher.delivery import Delivery
from cwsink.flusher.election import _OrdersOfSpool
from cwsink.flusher.flusher import Flusher
from cwsink.flusher.instructions import config_of
from cwsink.flusher.own import OwnFlusher, _Served
from cwsink.flusher.past import Past
from cwsink.flusher.turns import _Turn
from cwsink.frontends import losses
from cwsink.frontends.parting import Parting
from cwsink.frontends.presence import Presence
from cwsink.frontends.starter import Starter
from cwsink.frontends.writer import Writer
from cwsink.spool import alerts, capacity, cursor, descriptors, frame, leader_state, lease, segment
from cwsink.spool.budget import Budget
from cwsink.spool.open_directory import OpenDirectory
from cwsink.spool.open_segment import OpenSegment
from cwsink.spool.reader import FreshLane, RingReader
from cwsink.spool.ring import Ring
from cwsink.spool.rotation import Rotation
from tests.faults import (
    test_damaged_spools,
    test_exchanged,
    test_held_locks,
    test_meddling,
    test_raising_handlers,
    test_starts,
    test_world,
)
from tests.harness.simulation import Leader, simulated_host
from tests.integration import (
    test_answers,
    test_budget,
    test_cursor,
    test_descriptors,
    test_election,
    test_exit_time,
    test_flusher,
    test_giving_way,
    test_history,
    test_hostile_roots,
    test_losses_are_said,
    test_open_directory,
    test_orphans,
    test_own_flusher,
    test_reader,
    test_refusals,
    test_ring,
    test_secrets,
    test_turns,
    test_watching,
    test_writer,
)
from tests.property import test_spool_machine
from tests.unit import test_delivery, test_frame

REPOSITORY: Final = Path(__file__).parents[2]
HANG_SECONDS: Final = 300


# Tests of safeguards that stand behind others, and are seen only if the others are let through.


def test_a_leader_whose_lock_file_is_gone_does_not_commit() -> None:
    """Removed between the request and its commit, with nobody else leading yet: nothing is committed."""
    with simulated_host() as host:
        assert host.append(Writer(host.config), "sent")
        leader = Leader(host)
        while leader.step() != "stored":
            pass
        os.remove(host.spool.leader_lock)
        while leader.is_alive:
            assert leader.step() != "commit"
        assert cursor.read(host.spool.cursor).ledger.delivered == 0


def test_a_leader_that_is_superseded_before_it_reclaims_unlinks_nothing() -> None:
    """Its commit went through, then another one took over: what is unlinked is the other one's business."""
    with simulated_host() as host:
        writer = Writer(host.config)
        while segment.numbers(host.spool.ring)[-1:] != [2]:
            assert host.append(writer, f"{len(host.issued)} " + "." * 900)
        leader = Leader(host)
        while segment.numbers(host.spool.ring) == [1, 2] and cursor.read(host.spool.cursor).ledger.delivered < len(
            host.written
        ):
            leader.step()
        os.remove(host.spool.leader_lock)
        while leader.is_alive:
            assert leader.step() != "unlink"
        assert segment.numbers(host.spool.ring) == [1, 2]


def test_a_frame_of_one_segment_is_no_frame_in_the_next() -> None:
    """A block of an old segment that the file system hands to a new one holds no record there."""
    with simulated_host() as host:
        writer = Writer(host.config)
        while segment.numbers(host.spool.ring)[-1:] != [2]:
            assert host.append(writer, f"{len(host.issued)} " + "." * 900)
        old = Path(segment.path_of(host.spool.ring, 1)).read_bytes()[segment.HEADER_BYTES :]
        with open(segment.path_of(host.spool.ring, 2), "ab") as file:
            file.write(old)
        assert host.append(writer, "after")
        Leader(host).drain()
        delivered = host.cloudwatch.messages()
        assert sorted(delivered) == sorted(set(delivered)) == sorted(host.written)


def test_a_lease_is_not_that_of_another_process() -> None:
    """A child that C code has forked has the parent's lock object as it was: the process id tells."""
    with simulated_host() as host:
        held = Lease(host.spool)
        assert held.try_acquire()
        assert held.is_held()
        with mock.patch.object(os, "getpid", return_value=os.getpid() + 1):
            assert not held.is_held()
        held.release()


def test_what_is_read_and_not_committed_is_not_unlinked() -> None:
    """A reader that has seen all of a segment does not take it for delivered."""
    with simulated_host() as host:
        writer = Writer(host.config)
        while segment.numbers(host.spool.ring)[-1:] != [2]:
            assert host.append(writer, f"{len(host.issued)} " + "." * 900)
        reader = RingReader(host.spool, {})
        while reader.read() is not None:
            pass
        assert reader.reclaim({}) == 0
        reader.close()
        assert segment.numbers(host.spool.ring) == [1, 2]


# The table.


class Mutant(NamedTuple):
    """A safeguard, how it is taken out, and the test that must notice.

    Attributes:
        place: the function, property or class of cwsink that has it; a module for what stands outside of them.
        text: what is in the source of that, exactly once.
        instead: what is put in its place.
        test: passes with the one and fails with the other.
        case: which case of a parametrized test.
    """

    place: Callable[..., object] | property | ModuleType
    text: str
    instead: str
    test: Callable[..., object]
    case: str = ""

    @property
    def node(self) -> str:
        """Return the test's name for pytest."""
        case = f"[{self.case}]" if self.case else ""
        return f"{path_of(sys.modules[self.test.__module__])}::{self.test.__name__}{case}"

    def source(self) -> tuple[Path, str, str, str]:
        """Return the path of its file below the repository, and the text before it, its own, and after it."""
        place = inspect.unwrap(self.place.fget if isinstance(self.place, property) else self.place)
        body, first = inspect.getsourcelines(place)
        path = path_of(place)
        lines = (REPOSITORY / path).read_text(encoding="utf-8").splitlines(keepends=True)
        begin = max(first - 1, 0)  # it counts from 1, and gives 0 for a module
        assert lines[begin : begin + len(body)] == body
        return path, "".join(lines[:begin]), "".join(body), "".join(lines[begin + len(body) :])


def path_of(place: Callable[..., object] | ModuleType) -> Path:
    """Return the path of a source below the repository."""
    return Path(inspect.getsourcefile(place) or "").relative_to(REPOSITORY)


MUTANTS: Final = {
    "a loss is called safe": Mutant(
        alerts.fate_of,
        "            return _NOT_SAFE",
        "            return SAFE",
        test_losses_are_said.test_a_loss_is_said_from_its_beginning_to_its_end,
        "drop_newest",
    ),
    "each worker says what is lost": Mutant(
        alerts.Alerts.look,
        "                    return  # another process says it",
        "                    pass",
        test_losses_are_said.test_who_says_it_has_the_lock,
    ),
    "a short program keeps its losses to itself": Mutant(
        losses.Losses.write_down,
        "directory, is_last=is_last, ",
        "directory, ",
        test_losses_are_said.test_at_its_end_a_process_says_the_rest,
    ),
    "metrics count as records": Mutant(
        self_metrics.SelfMetrics._event,
        "Event(int(now * 1000), 0, NOTICE, message)",
        "Event(int(now * 1000), 0, 0, message)",
        test_watching.test_the_leader_sends_metrics_of_itself,
    ),
    "no check of the epoch before a request": Mutant(
        Delivery._put,
        "            self._leadership.check()\n            answer, outcome = self._request(",
        "            answer, outcome = self._request(",
        test_delivery.test_no_call_is_made_without_a_check_before_it,
    ),
    "no check of the lease before a commit": Mutant(
        Flusher._commit,
        "                self.check()\n                self._cursor.commit(state)",
        "                self._cursor.commit(state)",
        test_a_leader_whose_lock_file_is_gone_does_not_commit,
    ),
    "an event that is taken for wrong though nothing is taken at all": Mutant(
        Delivery.send,
        "elif not believed and (is_in_doubt or len(piece) == 1):",
        "elif False:",
        test_delivery.test_a_target_that_takes_nothing_is_not_taken_for_poison,
    ),
    "a piece of a refused request that is not committed": Mutant(
        Flusher._deliver_chunk,
        "                    self._commit_progress(chunk, number, done, partial, mark())\n",
        "                    pass\n",
        test_refusals.test_a_leader_that_dies_among_refused_events_repeats_one_request_at_most,
    ),
    "a commit that fails and is not tried again": Mutant(
        Flusher._commit,
        "if not self.wait(COMMIT_AGAIN_SECONDS):",
        "if True:",
        test_refusals.test_a_commit_that_fails_is_repeated_and_not_what_was_sent,
    ),
    "a listing between an answer and its commit": Mutant(
        Flusher._commit_chunk,
        "each.number in existing}",
        "each.number in segment.numbers(self._directory.ring)}",
        test_refusals.test_nothing_is_opened_between_an_answer_and_its_commit,
    ),
    "damage that counts before it is reached": Mutant(
        Collector._reach,
        "while self._damage and self._damage[0].damage.end <= end:",
        "while self._damage:",
        test_refusals.test_damage_is_counted_once_however_many_leaders_read_it,
    ),
    "a commit that does not look whether it is fenced": Mutant(
        Cursor.commit,
        "if current.epoch != self._epoch or state.epoch != self._epoch:",
        "if False:",
        test_cursor.test_an_old_leader_is_fenced,
    ),
    "no check of the epoch before an unlink": Mutant(
        Flusher._reclaim,
        "            self.check()\n            if self._reader.reclaim(committed):",
        "            if self._reader.reclaim(committed):",
        test_a_leader_that_is_superseded_before_it_reclaims_unlinks_nothing,
    ),
    "a leader in a request that is taken for a stranger": Mutant(
        lease._has_stranger,
        "return bool(pids) and led_by",
        "return bool(pids) or led_by",
        test_held_locks.test_a_held_lease_is_named_soon_where_the_kernel_knows_who_has_it,
    ),
    "who lacks credentials, and does not ask who leads": Mutant(
        Parting._why_hopeless,
        "published.credentials != self._credentials",
        "False",
        test_exit_time.test_what_another_one_may_deliver_is_waited_for,
    ),
    "a lease without the inode": Mutant(
        Lease.is_held,
        "return self._file is not None and os.path.samestat(status, self._file)",
        "return True",
        test_election.test_a_lease_is_proven_by_inode_and_process,
    ),
    "a lease that a forked child believes to hold": Mutant(
        Lease.is_held,
        "if self._pid != os.getpid() or not self._lock.is_locked:",
        "if not self._lock.is_locked:",
        test_a_lease_is_not_that_of_another_process,
    ),
    "the same salt in every segment": Mutant(
        segment.create,
        'salt = int.from_bytes(os.urandom(4), "little")',
        "salt = 7",
        test_a_frame_of_one_segment_is_no_frame_in_the_next,
    ),
    "checksums without the salt": Mutant(
        frame,
        "from zlib import crc32\n",
        "import zlib\n\n\ndef crc32(data, seed=0):\n    return zlib.crc32(data)\n",
        test_frame.test_frames_of_another_segment_alone_give_nothing,
    ),
    "unlink before commit": Mutant(
        RingReader.reclaim,
        "if opened.is_foreign or end < opened.offset:\n                continue",
        "end = opened.offset\n            if opened.is_foreign:\n                continue",
        test_what_is_read_and_not_committed_is_not_unlinked,
    ),
    "no close of what a fork inherits": Mutant(
        descriptors,
        "os.register_at_fork(after_in_child=_after_in_child)\n",
        "",
        test_ring.test_a_forked_child_is_another_producer,
    ),
    "no close of what another thread was opening or closing at a fork": Mutant(
        descriptors._start_anew,
        ", *_unrecorded()]:",
        "]:",
        test_ring.test_a_fork_waits_for_no_thread_and_the_child_has_nothing_of_it,
    ),
    "a fork by C code that each thread of the child notices": Mutant(
        descriptors.become_child,
        "if not fork_sentinel[0] and not _is_becoming:",
        "if not _is_becoming:",
        test_starts.test_a_fork_by_c_code_is_noticed_once,
    ),
    "a fork by C code that an interrupting handler notices once more": Mutant(
        descriptors.become_child,
        "if not fork_sentinel[0] and not _is_becoming:",
        "if not fork_sentinel[0]:",
        test_starts.test_a_fork_by_c_code_is_noticed_once,
    ),
    "a descriptor that stays where it was opened": Mutant(
        descriptors.Opened.open,
        "        self._move_up()\n",
        "        pass\n",
        test_descriptors.test_ours_are_high,
    ),
    "a disk that is full beneath another file": Mutant(
        Ring._mend,
        "if code == errno.EBADF or (status := attached.status()) is None:",
        "if code == errno.EBADF or (status := os.fstat(attached.fd)) is None:",
        test_ring.test_a_full_disk_beneath_another_file_changes_nothing_of_it,
    ),
    "a time limit that is taken for an error of ours": Mutant(
        Writer.count_internal_error,
        "        if is_interruption(error):\n            raise error\n",
        "",
        test_raising_handlers.test_a_limit_in_the_middle_of_a_log_call_is_heard,
    ),
    "a lock that is freed when it is handed over": Mutant(
        Starter._ensure,
        "        finally:\n            lock.close()\n",
        "        finally:\n            lock.give_up()\n            lock.close()\n",
        test_starts.test_two_that_find_nobody_at_the_same_time_start_one,
    ),
    "no look at the spools after the lock is freed": Mutant(
        OwnFlusher._has_ended,
        "        self._lock.give_up()\n        self._serve()\n",
        "        self._lock.give_up()\n",
        test_starts.test_who_comes_while_the_lock_is_still_held_is_served,
    ),
    "a flusher that ends beside what it has just begun to lead": Mutant(
        OwnFlusher._has_ended,
        "        self._leave_all(_HANDOVER_SECONDS)  # another flusher has been started meanwhile\n",
        "",
        test_starts.test_a_flusher_whose_place_is_taken_lets_go_of_what_it_began_with,
    ),
    "a flusher that begins though another has the lock": Mutant(
        OwnFlusher.run,
        "may have it.\n        if not self._lock.try_acquire():",
        "may have it.\n        if False:",
        test_starts.test_a_flusher_that_finds_another_one_in_its_place_ends,
    ),
    "a flusher that waits for a request though its time is over": Mutant(
        _Served.has_ended,
        "self.election.has_ended(0.0) or time.monotonic() - self._left_at >= _HANDOVER_SECONDS",
        "self.election.has_ended(0.0)",
        test_starts.test_a_request_under_way_keeps_no_flusher_alive,
    ),
    "a flusher that gives way though it can deliver": Mutant(
        OwnFlusher._why_end,
        'challenge.reason == "version" or (failing and len(failing) == len(elections))',
        "True",
        test_starts.test_a_flusher_that_can_deliver_keeps_its_place,
    ),
    "offers that never become rarer": Mutant(
        Presence._offer,
        "            if not published.obstacle:",
        "            if True:",
        test_starts.test_a_flusher_that_cannot_deliver_is_offered_less_and_less_often,
    ),
    "a flusher that keeps what its program had open": Mutant(
        guard._settle_in,
        "    os.closerange(LOCK_FD + keep_lock, min(highest, 1 << 20) if highest > 0 else 65_536)\n",
        "",
        test_starts.test_a_flusher_keeps_no_socket_of_its_program,
    ),
    "a guard that ends with its killed flusher": Mutant(
        guard._watch,
        "        if code == 0:\n",
        "        if code <= 0:\n",
        test_own_flusher.test_a_killed_flusher_is_back_and_nothing_is_lost,
    ),
    "a leader that sends as its own environment says": Mutant(
        config_of,
        "    if found is None:\n",
        "    if True:\n",
        test_starts.test_a_leader_sends_as_its_spool_says,
    ),
    "a leader that keeps to the settings it began with": Mutant(
        _OrdersOfSpool.is_over,
        "return self.are_new_settings or self.gives_way",
        "return self.gives_way",
        test_starts.test_a_leader_takes_over_what_a_newer_writer_says,
    ),
    "a leader that fails and keeps the lease from who stands": Mutant(
        _OrdersOfSpool.is_over,
        "or self.gives_way or",
        "or",
        test_giving_way.test_a_challenger_that_has_gone_costs_a_moment_only,
    ),
    "a leader that gives way though nobody stands": Mutant(
        _OrdersOfSpool._is_challenged,
        "if lease.challenged_at(self._directory) != self._challenged_at:",
        "if True:",
        test_giving_way.test_a_leader_that_nobody_challenges_keeps_the_lease,
    ),
    "a new epoch in one slot only, though another process may write there": Mutant(
        Cursor.take_over,
        "if is_ours and",
        "if True and",
        test_cursor.test_the_first_commit_after_a_late_write_counts,
    ),
    "a spool that rests without its lease": Mutant(
        _Turn.end,
        "_LAST_SECONDS, keep_lease=keep_lease)",
        "_LAST_SECONDS, keep_lease=False)",
        test_turns.test_idle_spools_rest_with_their_leases_and_wake_up,
    ),
    "no shared lock on a segment": Mutant(
        segment.attach_newest,
        "        if not descriptors.try_lock(fd, exclusive=False):\n            continue\n        status",
        "        status",
        test_ring.test_a_writer_attaches_to_the_newest_segment_with_a_shared_lock,
    ),
    "one slot in the cursor": Mutant(
        Cursor._write,
        "(generation % 2) * SLOT_BYTES",
        "0",
        test_cursor.test_commits_go_to_the_two_slots_in_turn,
    ),
    "no room check": Mutant(
        Rotation.next,
        "has_room = self._budget.has_room() or (",
        "has_room = True or (",
        test_budget.test_with_no_leader_alive_the_cap_holds_and_drops_are_counted,
    ),
    "a newest segment that takes all room for ever": Mutant(
        Rotation.next,
        "has_room or self._is_in_the_way(newer)",
        "has_room",
        test_budget.test_a_record_of_nearly_the_whole_budget_is_followed_by_others,
    ),
    "a batch that is not the same after a takeover": Mutant(
        Flusher._finish_chunk,
        "        if state.chunk:\n",
        "        if False:\n",
        test_flusher.test_the_next_leader_goes_on_with_the_request_after_the_last_committed,
    ),
    "eviction counted after the unlink": Mutant(
        Budget._evict,
        "is_void = header.key == evictions.last_evicted",
        "is_void = False",
        test_budget.test_the_next_evictor_removes_a_void_segment_without_counting_it_again,
    ),
    "a segment counted as evicted that waits for its turn": Mutant(
        Budget.evict,
        "if self._is_present(evictions.last_evicted):",
        "if False:",
        test_spool_machine.test_a_segment_that_a_killed_evictor_has_counted_goes_before_an_older_one,
    ),
    "an interrupted replay that counts before its request is answered": Mutant(
        job.follow,
        "    end_all(turns, [drain.election for drain in followed], 0.0, stops)\n"
        "    for drain in drains:\n        drain.conclude()\n",
        "    for drain in drains:\n        drain.conclude()\n"
        "    end_all(turns, [drain.election for drain in followed], 0.0, stops)\n",
        test_orphans.test_an_interrupted_replay_goes_on_where_it_was,
    ),
    "a header of which only the first copy is read": Mutant(
        segment.decode_header,
        "for start in (0, SECOND_COPY_AT):",
        "for start in (0,):",
        test_reader.test_a_damaged_header_costs_no_record,
    ),
    "appends into a header that was cut": Mutant(
        segment.decode_header,
        "if len(data) >= HEADER_BYTES or not readable else None",
        "if True else None",
        test_reader.test_a_segment_with_both_copies_of_its_header_damaged_is_written_off_and_others_flow,
    ),
    "appends behind a cut that the cursor is ahead of": Mutant(
        Rotation.newest,
        "if is_cut or self._may_be_evicted(attached):",
        "if self._may_be_evicted(attached):",
        test_spool_machine.test_what_is_appended_after_a_power_failure_that_kept_more_of_the_cursor_is_delivered,
    ),
    "appends where a chunk that is delivered in part was cut": Mutant(
        Rotation.newest,
        "state.reached()",
        "committed",
        test_spool_machine.test_what_is_appended_after_a_power_failure_in_the_middle_of_a_chunk_is_delivered,
    ),
    "appends to a segment that counts as evicted": Mutant(
        Rotation.newest,
        "if is_cut or self._may_be_evicted(attached):",
        "if is_cut:",
        test_spool_machine.test_an_evicted_segment_that_a_power_failure_brings_back_is_not_appended_to,
    ),
    "a segment without a whole frame is kept": Mutant(
        RingReader.has_reclaimable,
        "committed.get(opened.key, opened.begin) >= opened.offset",
        "committed.get(opened.key, 0) >= opened.offset",
        test_spool_machine.test_a_segment_of_which_no_whole_frame_is_left_is_reclaimed,
    ),
    "cut writes in a row are lost records": Mutant(
        frame._judge,
        " or _are_cut(data, start, end, salt)",
        "",
        test_spool_machine.test_two_cut_writes_in_a_row_are_no_lost_record,
    ),
    "a spool that is moved away is appended to": Mutant(
        segment.is_named,
        "return files.is_named(path_of(ring, number), status)",
        "return status.st_nlink > 0",
        test_meddling.test_who_meddles_with_a_spool_costs_what_he_takes_and_a_moment,
        case="the spool renamed",
    ),
    "a segment that is read though it was counted before the lock": Mutant(
        RingReader._is_readable,
        "not is_counted and ",
        "",
        test_reader.test_a_segment_that_is_counted_between_open_and_lock_is_not_read,
    ),
    "newer records that overtake a segment that is locked": Mutant(
        RingReader._read_oldest,
        "if self._is_awaited:",
        "if False:",
        test_held_locks.test_a_segment_that_is_locked_is_not_overtaken,
    ),
    "a segment that is read though it was evicted before the lock": Mutant(
        RingReader._is_readable,
        " and segment.is_named(self._ring, number, os.fstat(opened.fd))",
        "",
        test_reader.test_a_segment_that_is_evicted_between_open_and_lock_is_not_read,
    ),
    "a budget that is each writer's own": Mutant(
        capacity.claim,
        "if found is None or (is_alone and _may_replace(directory, found, mine)) else",
        "if True else",
        test_budget.test_a_small_budget_takes_nothing_from_a_larger_one,
        case="while it runs",
    ),
    "a budget that throws away what waits while nobody is there": Mutant(
        capacity.claim,
        "(is_alone and _may_replace(directory, found, mine))",
        "is_alone",
        test_budget.test_a_small_budget_takes_nothing_from_a_larger_one,
        case="while it is restarted",
    ),
    "a count of what is evicted that each process begins anew": Mutant(
        Budget._count,
        "                self._write_down(evictions)\n            return False",
        "                pass\n            return False",
        test_budget.test_a_large_segment_is_counted_in_parts_by_whoever_is_there,
    ),
    "a leader that is believed though its sign of life is of the future": Mutant(
        leader_state.is_synced,
        "0 <= age <",
        "age <",
        test_writer.test_under_host_durability_each_append_is_synced_while_nobody_leads,
    ),
    "a stray number that counts": Mutant(
        segment.numbers_in,
        "while found and found[-1] >= _DUBIOUS_NUMBER and not _is_numbered(ring, found[-1]):",
        "while False:",
        test_ring.test_a_stray_file_with_the_highest_number_stops_nothing,
    ),
    "a lock on a segment that could not be removed": Mutant(
        RingReader._attach,
        "        except BaseException:  # this process may live on",
        "        except ZeroDivisionError:  # this process may live on",
        test_spool_machine.test_a_leader_that_fails_to_remove_an_evicted_segment_keeps_no_lock_on_it,
    ),
    "a lane in which anybody may pass the backlog": Mutant(
        FreshLane.admit,
        "event.sequence < self._seen[event.producer].next if event",
        "True if event",
        test_reader.test_a_producer_with_records_in_the_backlog_waits_for_them,
    ),
    "a lane in which a process may pass whose first record is there": Mutant(
        FreshLane.admit,
        "event.sequence < self._seen[event.producer].next if event",
        "0 < self._seen[event.producer].next if event",
        test_reader.test_a_first_record_behind_the_backlog_does_not_let_its_process_pass,
    ),
    "a lane that ends at a record whose predecessor is on its way": Mutant(
        FreshLane.admit,
        "self.has_ended = self._waits_at == (block.key, end)",
        "self.has_ended = True",
        test_reader.test_a_record_on_its_way_does_not_end_the_lane,
    ),
    "a leader that stumbles over its predecessor's leader.json": Mutant(
        leader_state._read,
        "with suppress(OSError, ValueError, RecursionError):",
        "with suppress(OSError, msgspec.MsgspecError):",
        test_damaged_spools.test_a_byte_that_is_no_text_in_any_place_of_a_small_file_stops_nothing,
        case="leader.json",
    ),
    "a directory that is used whoever's it is": Mutant(
        OpenDirectory.__init__,
        "if self.opened_as.st_uid != owner and not (is_root and self.opened_as.st_uid == 0):",
        "if False:",
        test_exchanged.test_a_directory_that_is_exchanged_captures_nothing,
        case="spool",
    ),
    "a ring that is used whoever's it is": Mutant(
        OpenDirectory.__init__,
        "if self.opened_as.st_uid != owner and not (is_root and self.opened_as.st_uid == 0):",
        "if False:",
        test_exchanged.test_a_directory_that_is_exchanged_captures_nothing,
        case="ring",
    ),
    "a file that is used whoever's it is": Mutant(
        OpenDirectory._check,
        "if status.st_uid != self._owner:",
        "if False:",
        test_open_directory.test_a_file_of_another_user_in_ones_own_directory_is_not_read,
        case="cursor",
    ),
    "a spool of another user that is changed by who only looks": Mutant(
        OpenDirectory._fd_to_change,
        "if self._owner != os.geteuid():",
        "if False:",
        test_open_directory.test_who_looks_at_a_spool_of_another_user_reads_and_changes_nothing,
    ),
    # Who answers, and what others have planted.
    "an answer without end": Mutant(
        deadline._File.readinto,
        "if self._count > MOST_ANSWER_BYTES:",
        "if False:",
        test_answers.test_an_answer_without_end_takes_no_memory,
        case="100 Continue for ever",
    ),
    "a secret in the words of who answers": Mutant(
        confidential.answer,
        "{**fields, **texts}",
        "{**fields}",
        test_secrets.test_no_secret_is_seen,
        case="a server repeats the request",
    ),
    "an orphan that is sent as its settings now say": Mutant(
        Adopter._config_of,
        "if _account(config) != self._account:",
        "if False:",
        test_orphans.test_an_orphan_that_changes_its_mind_is_not_led,
    ),
    "a spool that hides the others": Mutant(
        spools.Missing.__exit__,
        "return True",
        "return False",
        test_hostile_roots.test_a_planted_spool_hides_no_other,
        case="success in the far future",
    ),
    "a request that is not noted before its commit": Mutant(
        Flusher._deliver_chunk,
        "note(number, found[number], done - piece.events, piece)",
        "pass",
        test_history.test_history_has_each_event_as_it_was_sent,
    ),
    "a record that two leaders have sent and that is expected twice": Mutant(
        Past.sent,
        "bool(before) and _id(event) in before",
        "False",
        test_history.test_history_has_each_event_as_it_was_sent,
    ),
    "blocks that are given back before there is a copy": Mutant(
        OpenSegment.hollow,
        "            if save:\n                save(self, end)\n",
        "",
        test_history.test_an_idle_writers_segment_is_kept_although_its_blocks_are_given_back,
    ),
    "history that stays while records are refused": Mutant(
        Rotation.make_room,
        "if self._history_gives_way():",
        "if False:",
        test_history.test_history_goes_before_anything_is_evicted_or_refused,
        case="drop_newest",
    ),
    # What the worlds find.
    "refused events that hold up all behind them": Mutant(
        Delivery.send,
        "                if self._takes_canary(stream):",
        "                if self._failed(answer):",
        test_world.test_the_world_finds_what_once_went_wrong,
        case="refused lines alone, then others",
    ),
    "a leader that sends with the role of its own environment": Mutant(
        config_of,
        "    if found is None:",
        "    if found is not None:\n        return load_config(**{name: each for name, each in target.items() if each})\n"  # noqa: E501
        "    if found is None:",
        test_world.test_the_world_finds_what_once_went_wrong,
        case="the role of the flusher's environment, which is another application's",
    ),
    "a leader that needs a descriptor between an answer and its commit": Mutant(
        Flusher._commit_chunk,
        "each.number in existing}",
        "each.number in segment.numbers(self._directory.ring)}",
        test_world.test_the_world_finds_what_once_went_wrong,
        case="a leader that can open no file while a request is answered",
    ),
    "a leader that ends in the middle of its request": Mutant(
        flushing.end_all,
        "    while not turns.have_ended() and time.monotonic() < until:",
        "    while turns.have_ended() and time.monotonic() < until:",
        test_world.test_the_world_finds_what_once_went_wrong,
        case="a leader that has to end while a request is answered",
    ),
}


def run(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run pytest in a copy of the repository, with the package there."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-n", "0", "-m", "", *words],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(place), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of what a test run needs."""
    place = tmp_path / "copy"
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("cwsink", "tests"):
        shutil.copytree(REPOSITORY / name, place / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(REPOSITORY / name, place / name)
    return place


@pytest.mark.parametrize("name", MUTANTS)
def test_each_safeguard_stands_where_the_table_says(name: str) -> None:
    """The piece of source is there exactly once: quick, and so run each time."""
    mutant = MUTANTS[name]
    _, _, body, _ = mutant.source()
    assert body.count(mutant.text) == 1


@pytest.mark.parametrize("name", MUTANTS)
def test_each_named_test_is_one_that_pytest_runs(name: str) -> None:
    """It stands in its module under its name, which pytest takes for a test's; a case is one of its parameters."""
    test, case = MUTANTS[name].test, MUTANTS[name].case
    assert vars(sys.modules[test.__module__]).get(test.__name__) is test
    assert test.__name__.startswith("test_")
    marks = [mark for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
    cases = [value for mark in marks for value in mark.args[1]]
    # A long case is a ParameterSet around its value.
    assert not case or case in [getattr(value, "values", (value,))[0] for value in cases]


@pytest.mark.long
@pytest.mark.timeout(2 * HANG_SECONDS)
@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_killed_by_its_test(name: str, copy: Path) -> None:
    """The named test passes as things are, and fails without the safeguard."""
    mutant = MUTANTS[name]
    sound = run(copy, mutant.node)
    assert sound.returncode == 0, sound.stdout
    if "1 skipped" in sound.stdout:
        pytest.skip(f"its test is not run here: {mutant.node}")
    path, before, body, after = mutant.source()
    (copy / path).write_text(before + body.replace(mutant.text, mutant.instead) + after, encoding="utf-8")
    mutated = run(copy, mutant.node)
    assert mutated.returncode == 1, f"not killed\n{mutated.stdout}"
    # It is the package in the copy that ran: its source is in the way of no other error than a test's.
    assert "failed" in mutated.stdout, mutated.stdout
