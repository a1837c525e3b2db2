"""Why the records of a spool wait, in sentences for people (pure, but for this host's name)."""

from __future__ import annotations

import time

from cwsink import host, words
from cwsink.flusher.dead_letter import MAX_BYTES
from cwsink.flusher.outcome import advice_on
from cwsink.spool.room import NEARLY_FULL
from cwsink.spool.stats import SpoolStats


def sentence(error: str) -> str:
    """Return an error's text with one full stop at its end."""
    return f"{error.rstrip('. ')}."


def clock(moment: str) -> str:
    """Return an RFC 3339 time as people say it, in UTC: "14:03", or "2026-01-31 14:03" if that is not today."""
    day, _, hour = moment.partition("T")
    return f"{'' if day == time.strftime('%Y-%m-%d', time.gmtime()) else f'{day} '}{hour[:5]} UTC"


def loss(spool: SpoolStats) -> str:
    """Return what was lost, since when, why, and what to do: a sentence or two; "" if nothing was."""
    if not spool.lost:
        return ""
    parts = ([f"{spool.evicted:,} evicted"] if spool.evicted else []) + (
        [f"refused {words.each_counted(spool.refused)}"] if spool.refused else []
    )
    line = f"LOST {words.records(spool.lost)} ({', '.join(parts)})"
    since, until = spool.lost_since, spool.lost_until
    if spool.is_losing and not spool.lost_is_over:
        return f"{line}{f', since {clock(since)}' if since else ''}: {spool.lost_why}"
    if since and until:
        line += f", {clock(since)} to {clock(until)}" if since[:16] != until[:16] else f", {clock(since)}"
    if spool.is_losing or (spool.pending and spool.fill >= NEARLY_FULL):
        return f"{line}: {spool.lost_why}"
    return f"{line}. That is over: none is lost now."


def dropped(spool: SpoolStats) -> str:
    """Return how many dead letters are lost, why, and what to do; "" if none is."""
    if not spool.dead_letters_dropped:
        return ""
    return (
        f"LOST {words.counted(spool.dead_letters_dropped, 'dead letter')}: the oldest go when all together take "
        f"{words.size(MAX_BYTES)}, and others when the disk is full. Replay those that are left, and mend what makes "
        "them."
    )


def why(spool: SpoolStats) -> str:
    """Return why records are pending: a few sentences, which are shown after the label "why"."""
    leader = spool.leader
    if spool.state == "no_leader":
        if spool.led_by_host is not None:
            return f"Host {spool.led_by_host} leads this spool, and sends them. Two hosts must not share a spool."
        if spool.orphan_seconds is not None:
            return _why_orphan(spool, spool.orphan_seconds)
        if spool.stopped_flusher is not None:
            return (
                f"The flusher (pid {spool.stopped_flusher}) is a stopped process, and no other one starts beside it. "
                f"`kill -CONT {spool.stopped_flusher}` lets it go on. {words.to_send(spool.path)} sends them, too."
            )
        return f"No process leads. They are sent when a worker logs again, or by {words.to_send(spool.path)}."
    if spool.state == "stalled" and leader is not None:
        who = f"The leader (pid {leader.pid} on {leader.host})"
        if spool.leader_is_stopped:
            return (
                f"{who} is a stopped process. `kill -CONT {leader.pid}` lets it go on. If it ends, another one leads."
            )
        return f"{who} has not moved for {words.duration(spool.leader_silent_seconds)}. If it ends, another one leads."
    if spool.state in ("retrying", "circuit_open") and spool.last_error:
        since = f" (since {clock(spool.failing_since)})" if spool.failing_since else ""
        error = sentence(f"{spool.last_error.rstrip('. ')}{since}")
        return f"{error}\n{advice_on(spool.last_error, spool.obstacle)} The leader tries again until it succeeds."
    return "They are being sent."


def stall(spool: SpoolStats) -> str:
    """Return why the leader does not get on, and what to do; "" if it is not known to stand still."""
    return why(spool) if spool.state == "stalled" else ""


def _why_orphan(spool: SpoolStats, silent_seconds: float) -> str:
    """Return how the spool came to be left behind, as far as that can be known, and which command sends it."""
    silent = words.duration(silent_seconds)
    command = words.to_send(spool.path)
    if spool.written_by != host.name():
        return (
            f"An orphan of host {spool.written_by} (this one is {host.name()}): nobody has logged there for "
            f"{silent}.\n{command} sends them where they were meant to go."
        )
    return (
        f"No process leads, and none that logged there is left: nobody has for {silent}.\nThey are sent when a worker "
        f"with these settings logs again. If none will: {command}."
    )
