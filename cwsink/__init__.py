"""cwsink: structured logs of many processes to AWS CloudWatch Logs, without losing any.

This page and those of `cwsink.spool`, `cwsink.flusher` and `cwsink.frontends` are the theory of operation. Whoever
has read the four can foretell what the code does. Where code and page disagree, one of them has a bug.

Think of it as a notebook and a postman. Every process that logs writes its lines into the same notebook on disk, and
asks nobody. The postman is a process of its own: it reads the notebook, sends the lines in parcels as large as
CloudWatch takes, and ticks off what has arrived. If the postman dies, the next one reads the ticks and goes on.

Two rules explain nearly all the rest:

* **No record lives in memory.** When `append` returns True, the kernel has the record in a file. Whatever happens to
  the process after that (an exit, SIGKILL, a fork, an outage, a restart) does not lose it. So nothing of ours may
  depend on `start()`, `stop()`, an exit handler, a signal handler or the network.
* **No process waits for another.** A writer never waits for a lock that another process has. Beside an append it
  tries some (to attach, to evict, to start a flusher). If one is taken, it goes on without.

The picture
-----------

```text
     each process that logs                             |     the flusher, a process of its own
                                                        |
  fapilog logger    logging.Logger      any program     |   guard       forks it, again if it is killed
        |                 |                  |          |     |
  frontends.inline  frontends.log_handler    |          |   election    who may lead this spool: lease and epoch
        |                 |                  |          |     |
  frontends.fapilog_sink  |                  |          |   flusher     the loop: read, deliver, commit, reclaim
        |                 |                  |          |     |-- collector    frames into a chunk
        '-------> frontends.writer <---------'          |     |-- chunk        a chunk into requests          (pure)
                          |                             |     |-- delivery     a request, until it is settled
                   spool.record, spool.frame   (pure)   |     |     |-- outcome      what an answer means   (pure)
                          |                             |     |     '-- cloudwatch   the only user of botocore
                      spool.ring                        |     '-- dead_letter  what can never be delivered
                          |                             |     |
                          | one write() a record        |     | reads the ring, writes the cursor
                          v                             |     v
     ================ the spool, a directory on the host's disk: ring/*.seg, cursor, locks ================
```

The rooms
---------

A room imports only what stands below it. The contracts are in pyproject.toml, `[tool.importlinter]`.

| room                      | what lives there                                                 | may import            |
|---------------------------|------------------------------------------------------------------|-----------------------|
| `cli`, `demo`, `gunicorn` | commands, the demonstration, hooks of a server                   | all below             |
| `doctor`, `top`           | what these two commands look at, without the words on the screen | all below             |
| `watching`                | what people and machines are shown of spools                     | all below             |
| `testing`                 | a strict CloudWatch server, our judge: it shares nothing with us | `limits` only         |
| `frontends`               | what runs in the application; alone in using fapilog             | `spool` and below     |
| `flusher`                 | what only a process that delivers runs; alone in using botocore  | `spool` and below     |
| `supervisor`              | what `cwsink run` is: the parent of a command and of a flusher   | `printable` only      |
| `spool`                   | what all processes share: the files, and the locks on them       | the rows below        |
| `target`                  | where records go, resolved for this host                         | the rows below        |
| `config`, `diagnostics`   | the validated settings, `variables`; what we say on stderr       | the rows below        |
| `naming`, `host`          | names of groups and streams; what this host is called            | the rows below        |
| `endpoint`                | the URL of CloudWatch                                            | the row below         |
| `errors`, `limits`        | the exception tree; CloudWatch's documented limits               | nothing               |
| `regions`, `units`        | botocore's list of regions; durations and sizes as text          | nothing               |
| `words`                   | words for people: durations, sizes, counts                       | nothing               |

`frontends` and `flusher` never import each other. They are different processes, and meet only in the files of
`spool`. `chunk`, `limits`, `outcome`, `naming`, `frame` and `record` are pure: clock, chance and bytes come in as
arguments.

Glossary
--------

Shapes of one log line, in the order in which it takes them:

* **entry**: what the application logs: fapilog's dict, or a `LogRecord`.
* **record**: what is spooled: time, producer, sequence, message. A **producer** is one writer in one process (64
  random bits, new after a fork). Its **sequence** counts from 0. Both together are the record's id; a gap is a loss.
* **frame**: a record's bytes in the ring: 20 bytes of header with two checksums, then the record.
* **event**: what CloudWatch gets. One record is one event, unless it is cut into several (`oversize="split"`).

Places:

* **target**: where records are meant to go: group, stream, region, endpoint, and the role or profile if one is set.
* **spool**: the directory of one target. **root**: the directory that holds the spools.
* **ring**: the records of a spool, within its byte budget. **segment**: one file of the ring.
* **cursor**: the file that says how far each segment is settled, with epoch and **ledger** (the totals).
* **history**: delivered segments that are kept for a while.
* **orphan**: a spool with records that nobody looks after: no process leads it, and none that appended to it lives.

What happens to a record:

* **append**: a writer has put it into the ring. **refuse**: the writer has not, and has counted that, with a reason.
* **deliver**: CloudWatch has answered that it has the event.
* **bury**: CloudWatch can never take it, so it is a line of the dead letters, with a reason.
* **evict**: it went with the oldest segment because the ring was full.
* **settle**: deliver or bury. **commit**: write to the cursor what is settled.
* **notice**: an event of ours, by the logger `cwsink`, that tells the stream how many records are missing from it.
  The file `refusals` says how many were refused; before there was one, a **loss marker** did, a frame in the ring.

Who sends:

* **lease**: the file lock that says who may send. **leader**: who holds it. **epoch**: the number of a leadership; it
  grows by one each time. **fenced**: a leader that has found out that a later epoch has begun.
* **guard**: the small process that a writer starts. It forks the flusher, and forks it again if it is killed.
* **own**, **run**, **service** flusher: started by a writer, by `cwsink run`, by `cwsink flush`. All host the same
  `flusher.election.Election`. A flusher of kind **once** (`flush --once`, `replay`) leaves when all is sent.
* **chunk**: what is settled by one commit: a range of the ring that fits into one call. **request**: one PutLogEvents
  call; nearly always a chunk is one. **outcome**: what an answer means for it.

States of bytes:

* **torn**: a write that was cut by a kill or a full disk. It was never acknowledged, so no record is lost.
* **corrupt**: bytes that changed after they were written: a record is lost, and counted as a dead letter.
* **final**: a segment that no writer has open, nor can open again. **hollow**: delivered, its disk blocks given back,
  but the file is there because an idle writer has it open.

Invariants
----------

Each is held by the tests below it (in `tests/`), and each of these tests names its invariants in its docstring.
tests/unit/test_invariants.py compares the two lists.

1. A record whose `append` returned True is pending, delivered, buried or evicted by the policy `on_full`, whoever is
   killed at whatever moment. A power loss may cost what `durability` says, and a damaged disk what it has damaged.
   Held by: property/test_spool_machine.py, faults/test_every_bytecode.py, faults/test_every_syscall.py,
   faults/test_kill_soak.py::test_no_kill_loses_an_acknowledged_record, faults/test_world.py,
   faults/zoo/test_zoo.py::test_no_ending_loses_what_was_promised,
   integration/test_inline_processes.py::test_what_was_logged_before_an_end_is_spooled

2. Nothing is delivered that was not appended, and each message arrives byte for byte. Exceptions are notices, metrics
   of cwsink itself (`self_metrics`), and events longer than `max_event_bytes` where `oversize` says to cut them. What
   is no legal text is appended escaped.
   Held by: property/test_spool_machine.py, property/test_frames.py, faults/test_every_bytecode.py,
   faults/test_kill_soak.py::test_no_kill_loses_an_acknowledged_record, faults/test_world.py,
   integration/test_flusher.py::test_events_arrive_byte_for_byte_with_their_own_times

3. The records of one thread whose times do not go backwards are first delivered in the order of its appends. Newer
   ones do not wait for a segment that another process keeps locked for 2 s (a stopped evictor).
   Held by: property/test_spool_machine.py, faults/test_every_bytecode.py, faults/test_world.py,
   faults/test_kill_soak.py::test_no_kill_loses_an_acknowledged_record,
   faults/test_kill_soak.py::test_a_record_never_overtakes_the_one_before_it,
   faults/test_held_locks.py::test_a_segment_that_is_locked_is_not_overtaken,
   integration/test_reader.py::test_a_producer_with_records_in_the_backlog_waits_for_them,
   unit/test_chunk.py::test_events_are_sent_in_order_of_time_then_arrival

4. At most one request is repeated for each leader that dies or is superseded, and for each lost answer. A commit that
   fails is tried again, and its request is not. A cursor that is lost as a whole costs more, and so do new settings or
   an eviction in the middle of a chunk of several requests. What is evicted then counts as that, also if delivered.
   Held by: property/test_spool_machine.py, faults/test_ambiguous.py, faults/test_every_bytecode.py,
   faults/test_world.py, faults/test_kill_soak.py::test_no_kill_loses_an_acknowledged_record,
   integration/test_flusher.py::test_a_lost_answer_repeats_at_most_its_batch,
   integration/test_flusher.py::test_the_next_leader_goes_on_with_the_request_after_the_last_committed

5. At most one process sends under one epoch, and none commits after a later epoch has begun.
   Held by: property/test_spool_machine.py, faults/test_flusher_life.py, faults/test_world.py,
   faults/test_kill_soak.py::test_no_kill_loses_an_acknowledged_record,
   faults/test_stopped.py::test_a_stopped_leader_that_is_superseded_sends_and_commits_nothing_old,
   integration/test_election.py::test_leaders_are_killed_and_one_follows_each,
   integration/test_election.py::test_a_stopped_leader_that_was_superseded_sends_nothing_more

6. The ring takes `spool_max_bytes` of disk, and about one segment more; the dead letters take 8 MiB at most, the
   history `keep_delivered_bytes`. "About", because a writer looks at a segment's size now and then, and not at each
   record (see `cwsink.spool`).
   Held by: property/test_spool_machine.py, faults/test_overflow.py,
   integration/test_budget.py::test_with_no_leader_alive_the_cap_holds_and_drops_are_counted,
   integration/test_budget.py::test_four_processes_together_keep_the_cap,
   integration/test_budget.py::test_the_whole_directory_stays_within_its_bounds,
   unit/test_dead_letter.py::test_the_oldest_go_and_are_counted

7. Whatever bytes lie in a spool, a writer starts, and a leader gets past them and does not spin. What is logged after
   a start is sent beside a large backlog, not behind it. Construction is refused, by an error that says what to do,
   only for another owner, other users' write permission, a FORMAT of another version, a file system that hosts may
   share, and a place where nothing can be made.
   Held by: faults/test_damaged_spools.py, faults/test_fuzz.py, property/test_cursor_slots.py,
   property/test_frames.py,
   integration/test_directory.py::test_a_format_flipped_at_any_byte_never_stops_a_start,
   integration/test_directory.py::test_a_format_cut_at_any_byte_never_stops_a_start,
   integration/test_reader.py::test_garbage_in_the_ring_stops_nothing,
   integration/test_reader.py::test_a_page_that_cannot_be_read_costs_what_is_in_it,
   integration/test_reader.py::test_one_pass_over_a_hostile_segment_ends,
   integration/test_reader.py::test_a_start_after_a_long_outage_is_seen_at_once

8. `append` waits for no other process and for no network. Only `on_full="block"` waits, for room in the spool, and
   for `block_timeout_seconds` at most. An append that starts the flusher takes some 2 ms more. Nobody bounds the time
   of the disk itself.
   Held by: faults/test_stopped.py::test_a_stopped_writer_is_noticed_by_nobody,
   faults/test_stopped.py::test_a_stopped_leader_keeps_its_lease_and_holds_up_no_append,
   integration/test_dead_endpoint.py, integration/test_ring.py::test_an_append_takes_no_file_lock_that_can_be_held,
   integration/test_ring.py::test_a_stopped_holder_of_the_budget_lock_makes_nobody_wait,
   integration/test_budget.py::test_block_waits_at_most_its_timeout

9. When all is committed, one segment remains, and a hollow one for each further segment that an idle writer has open.
   Held by: property/test_spool_machine.py, faults/test_every_bytecode.py, integration/test_end_to_end.py,
   integration/test_ring.py::test_a_segment_is_unlinked_only_after_its_end_is_committed_and_delivered,
   integration/test_ring.py::test_an_idle_worker_appends_hours_later,
   integration/test_ring.py::test_sixty_four_idle_workers_do_not_fill_the_budget

10. The ledger adds up: appended = delivered + dead_lettered + evicted + pending, in records. Refused records were
    never appended; they are counted apart, by reason.
    Held by: property/test_spool_machine.py, faults/test_every_bytecode.py, faults/test_overflow.py,
    faults/test_world.py, integration/test_budget.py::test_an_evictor_that_dies_counts_nothing_twice

Not promised: exactly once (CloudWatch does not drop repeats), and an order between processes or threads.

Where to read on
----------------

1. `cwsink.spool`, the longest of the four pages, and the heart of it all.
2. `spool.record`, `spool.frame`, `spool.segment`, `spool.cursor`: the bytes, each with its table.
3. `spool.ring` and `frontends.writer`: an append. Then `spool.budget`: what happens when the ring is full.
4. `spool.reader`: what a leader reads, and what it takes away.
5. `cwsink.flusher`, then `flusher.flusher` (the loop), `flusher.collector`, `flusher.chunk`, `flusher.delivery`.
6. `flusher.election`, `flusher.turns`, `flusher.guard`, `flusher.own`: the life of the process.
7. `cwsink.frontends`, then `frontends.presence`, `frontends.starter`, `frontends.inline`.

`import cwsink` is cheap: what it offers is imported when it is first used (PEP 562), so that a flusher carries no
fapilog, and a worker no botocore.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from cwsink.version import __version__

if TYPE_CHECKING:
    from cwsink.config import SinkConfig
    from cwsink.errors import ConfigError, CwsinkError, SpoolError
    from cwsink.frontends.endings import drain, lifespan
    from cwsink.frontends.fapilog_sink import CloudWatchSpoolSink, install
    from cwsink.frontends.log_handler import JsonFormatter, SpoolHandler
    from cwsink.frontends.uncaught import capture_uncaught
    from cwsink.frontends.writer import Writer
    from cwsink.spool.stats import stats

__all__ = [
    "CloudWatchSpoolSink",
    "ConfigError",
    "CwsinkError",
    "JsonFormatter",
    "SinkConfig",
    "SpoolError",
    "SpoolHandler",
    "Writer",
    "__version__",
    "capture_uncaught",
    "drain",
    "install",
    "lifespan",
    "stats",
]

_HOME: Final = {
    "CloudWatchSpoolSink": "cwsink.frontends.fapilog_sink",
    "ConfigError": "cwsink.errors",
    "CwsinkError": "cwsink.errors",
    "JsonFormatter": "cwsink.frontends.log_handler",
    "SinkConfig": "cwsink.config",
    "SpoolError": "cwsink.errors",
    "SpoolHandler": "cwsink.frontends.log_handler",
    "Writer": "cwsink.frontends.writer",
    "capture_uncaught": "cwsink.frontends.uncaught",
    "drain": "cwsink.frontends.endings",
    "install": "cwsink.frontends.fapilog_sink",
    "lifespan": "cwsink.frontends.endings",
    "stats": "cwsink.spool.stats",
}


if not TYPE_CHECKING:  # a checker that saw it would take every misspelt name for one of ours

    def __getattr__(name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module 'cwsink' has no attribute {name!r}")
        value = getattr(import_module(_HOME[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
