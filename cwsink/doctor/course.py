"""Questions about delivery: who sends each spool, what CloudWatch has answered last, and what was left behind."""

from __future__ import annotations

from collections.abc import Iterator

from cwsink import words
from cwsink.doctor.finding import Finding, ok, warning, wrong
from cwsink.doctor.patient import Patient
from cwsink.flusher.outcome import advice_on
from cwsink.flusher.second_chance import options_for
from cwsink.spool import disk, flusher_lock, leadership, loss_causes, room
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.stats import SpoolStats, look


def delivery(patient: Patient) -> Iterator[Finding]:
    """Is each spool delivered, and if not, why?"""
    for case in patient.cases:
        if case.directory is not None:
            with disk.at_once() as failing:
                spool = look(case.directory)
            for path in sorted(failing):
                yield wrong("delivery", f"{path}: {disk.UNREADABLE_FILE}", "See to the disk: `dmesg`.")
            yield from _verdict(case.name, spool)
            yield from _lost(case.name, spool, case.directory)


def leader(patient: Patient) -> Iterator[Finding]:
    """Who sends?"""
    for case in patient.cases:
        if case.directory is None:
            continue
        with disk.at_once():
            spool = look(case.directory)
        if spool.led_by_host is not None:
            yield wrong(
                "leader", f"{case.name}: host {spool.led_by_host} leads this spool", "Give each host a disk of its own."
            )
        elif spool.leader is None and (pid := leadership.stopped_flusher(case.directory)) is not None:
            yield wrong(
                "leader", f"{case.name}: none; the flusher (pid {pid}) is a stopped process", f"kill -CONT {pid}"
            )
        elif spool.leader is None and patient.root and flusher_lock.is_taken(patient.root):
            yield ok("leader", f"{case.name}: none now; a flusher serves other spools here")
        elif spool.leader is None:
            yield ok("leader", f"{case.name}: none now; the next record starts one")
        else:
            of = f"pid {spool.leader.pid} on {spool.leader.host}, epoch {spool.leader.epoch}"
            for unable in spool.unable:
                yield warning("leader", f"{case.name}: pid {unable['pid']} gave way, unable to send: {unable['error']}")
            yield ok("leader", f"{case.name}: {of}")


def _verdict(name: str, spool: SpoolStats) -> Iterator[Finding]:
    if not spool.pending:
        last = "" if spool.last_success_seconds is None else f", the last {spool.last_success_seconds:,.0f} s ago"
        yield ok("delivery", f"{name}: nothing waits, {spool.delivered:,} delivered{last}")
        return
    waiting = f"{name}: {spool.pending:,} wait, the oldest for {spool.oldest_pending_seconds or 0:,.0f} s"
    command = words.command_to_send(spool.path)
    if spool.state == "stalled" and spool.leader is not None:
        pid = spool.leader.pid
        how = "is a stopped process" if spool.leader_is_stopped else "has not moved for 30 s"
        yield wrong(
            "delivery",
            f"{waiting}; pid {pid} leads, and {how}",
            # At a TERM a flusher that serves workers goes on. The kernel frees the lease of one that is killed.
            f"kill -{'CONT' if spool.leader_is_stopped else 'KILL'} {pid}",
        )
    elif spool.state in ("retrying", "circuit_open"):
        error = spool.last_error or spool.state
        yield wrong("delivery", f"{waiting}; the last answer: {error}", advice_on(error, spool.obstacle))
    elif spool.state == "no_leader" and spool.orphan_seconds is not None:
        yield wrong(
            "delivery",
            f"{waiting}; an orphan of host {spool.written_by}: nobody leads, and none that logged there is left",
            command,
        )
    elif spool.stopped_flusher is not None:
        pid = spool.stopped_flusher
        yield wrong("delivery", f"{waiting}; the flusher (pid {pid}) is a stopped process", f"kill -CONT {pid}")
    elif spool.state == "no_leader":
        error = f"; the last error: {spool.last_error}" if spool.last_error else ""
        yield wrong("delivery", f"{waiting}; nobody sends{error}", command)
    else:
        yield ok("delivery", f"{waiting}; they are being sent")


def _lost(name: str, spool: SpoolStats, directory: SpoolDirectory) -> Iterator[Finding]:
    if spool.lost:
        what = f"{name}: {words.records(spool.lost)} lost since the spool was made (evicted or refused)"
        reasons = loss_causes.by_reason(spool.refused, spool.evicted)
        cause, remedy = loss_causes.cause_and_remedy(
            directory, reasons, room.measure(directory), has_pending=spool.pending > 0
        )
        yield warning("losses", f"{what}: {cause}", remedy)
    options = options_for(spool.dead_letters)
    to_see = f"cwsink replay --dead-letters --dry-run{options} {words.quoted(spool.path)}"
    if spool.dead_letters:
        never = f"{name}: CloudWatch can never take {words.each_counted(spool.dead_letters)}"
        is_damage = spool.dead_letters.keys() == {"corrupt"}
        yield warning("dead letters", never, f"{words.on_damage(spool.path)}." if is_damage else to_see)
    if dropped := spool.dead_letters_dropped:
        gone = f"{name}: {words.counted(dropped, 'dead letter')} lost, because their file or the disk was full"
        yield warning("dead letters", gone, to_see)
