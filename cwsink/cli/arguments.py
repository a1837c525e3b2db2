"""What can be typed: the parser of all commands, and their help. Imports nothing of ours but the version."""

from __future__ import annotations

import argparse
from typing import Final

from cwsink import __version__

LEVELS: Final = {
    "TRACE": 5,
    "DEBUG": 10,
    "INFO": 20,
    "WARNING": 30,
    "WARN": 30,
    "ERROR": 40,
    "CRITICAL": 50,
    "FATAL": 50,
    "AUDIT": 60,  # 60 and 70 are fapilog's
    "SECURITY": 70,
}

# Reasons of dead letters that may have a second chance. Damage has none: there is no record in it.
REPLAYABLE: Final = ("too_old", "too_new", "expired", "oversize", "poison")

_WATCH_SECONDS: Final = 2.0

_PATH = """\
a spool (the directory with the file FORMAT), or a directory that holds several. Left out: where a
worker would put its spool: FAPILOG_CLOUDWATCH__SPOOL_DIRECTORY, CWSINK_SPOOL_DIRECTORY, or the first of
/var/lib/cwsink, ~/.local/state/cwsink, /var/tmp/cwsink-<uid>"""

_EXIT_CODES = """\
Exit codes: 0 done, 1 not done (stderr says why), 2 usage"""

_MAIN = f"""\
examples:
  cwsink status                      is everything delivered? if not, why?
  cwsink tail -f --level WARNING     what the workers log, as they log it
  cwsink flush --once                deliver what is there, then exit
  cwsink replay --dead-letters       a second chance for what CloudWatch refused
  cwsink demo                        see it survive kills and outages

cwsink COMMAND --help tells more.
{_EXIT_CODES}
"""

_STATUS = f"""\
states:
  idle          nothing is pending: every record is delivered or settled otherwise
  delivering    records are pending, and the leader is sending them
  retrying      the last send failed; the leader tries again until it succeeds
  circuit_open  many sends failed in a row; the leader tries again about every 30 s
  stalled       a process leads, but is stopped or has not moved for 30 s
  no_leader     records are pending and no process leads: they are sent when a worker logs
                again, or by `cwsink flush`

The books add up: appended = delivered + dead_lettered + evicted + pending (records).
Status only looks: it writes nothing, needs no leader, and works on another user's spool as root.

examples:
  cwsink status
  cwsink status /var/lib/cwsink --watch
  cwsink status --json | jq '.spools[] | {{path, state, pending}}'

{_EXIT_CODES}; 1 also if there is no spool, or one cannot be read.
"""

_TAIL = f"""\
Without -n: the records that are not delivered yet. Delivered ones stay on disk for a short while only.
With --level, records that have no level (plain text) are left out.

examples:
  cwsink tail -f                              all spools, as records are appended
  cwsink tail -n 50 --level error             the last 50 errors on disk
  cwsink tail -f --grep order_id=17 /var/lib/cwsink
  cwsink tail --json | jq -r .message         {{"id", "timestamp_ms", "message"}} a line

{_EXIT_CODES}
"""

_FLUSH = f"""\
Stands for election beside the workers, and delivers while it leads: as a sidecar or a unit of systemd,
with FAPILOG_CLOUDWATCH__FLUSHER=external in the workers if none of them shall ever send. Where to is
in the spool's FORMAT, how comes from FAPILOG_CLOUDWATCH__*, credentials from where boto3 finds them.
TERM or Ctrl-C: deliver what is there, then exit; a second one: exit now. Records are never lost by it.

examples:
  cwsink flush /var/lib/cwsink                every spool there, until TERM
  cwsink flush --once                         what crashed workers left; whoever leads may send it
  cwsink flush --once --timeout 30 SPOOL      exit 1 if it takes longer

{_EXIT_CODES}
"""

_REPLAY = f"""\
What CloudWatch refused is kept in dead_letters.jsonl of its spool. A replay appends it to the spool again,
as new records, and takes it out of there; the leader, or `cwsink flush --once`, sends it.
Killed in between, it may send some of it twice, and loses nothing.

reasons:
  too_old    more than 14 days: only with --restamp
  too_new    more than 2 hours ahead of CloudWatch's clock
  expired    older than the group's retention
  oversize   if it is short enough by now, or if named: for workers that truncate or split
  poison     CloudWatch found it invalid
  corrupt    damage, which holds no record: never

--restamp sends too_old, too_new and expired with the present time, and keeps their own inside: in a JSON object as
{{"_cwsink": {{"original_timestamp_ms": 1700000000000, "original_time": "2023-11-14T22:13:20.000Z"}}}},
before plain text as [2023-11-14T22:13:20.000Z].

examples:
  cwsink replay --dead-letters --dry-run               how many, and why
  cwsink replay --dead-letters --restamp               also what is too old by now
  cwsink replay --dead-letters --reason poison SPOOL   nothing but these

{_EXIT_CODES}; 1 also if a spool is full: live records come first, and the rest stays.
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser. `command` is None if no command was given."""
    top = argparse.ArgumentParser(
        prog="cwsink",
        description="Logs of many processes, spooled on local disk, to AWS CloudWatch Logs.",
        epilog=_MAIN,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"cwsink {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND")

    status = _add(commands, "status", "is everything delivered, how far behind is it, and why", _STATUS)
    status.add_argument("--json", action="store_true", help="print one JSON object")
    status.add_argument(
        "--watch",
        metavar="SECONDS",
        nargs="?",
        type=_positive,
        const=_WATCH_SECONDS,
        help=f"look again every SECONDS ({_WATCH_SECONDS:.0f}), until Ctrl-C; with --json one object a line",
    )

    tail = _add(commands, "tail", "print the records that are in the spool", _TAIL)
    tail.add_argument("-f", "--follow", action="store_true", help="go on with new records as they are appended")
    tail.add_argument("-n", "--lines", metavar="N", type=_count, help="the last N records on disk, also delivered ones")
    tail.add_argument("--grep", metavar="TEXT", help="only records that contain TEXT, in upper or lower case")
    tail.add_argument("--level", metavar="LEVEL", type=_level, help="only records of at least LEVEL, e.g. WARNING")
    tail.add_argument("--json", action="store_true", help="one JSON object a line")

    flush = _add(commands, "flush", "be a dedicated flusher: deliver what is in the spool", _FLUSH)
    flush.add_argument("--once", action="store_true", help="deliver what is there now, then exit")
    flush.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=_positive,
        help="give up after SECONDS: with --once in all (default: after 60 without any progress), else when "
        "delivering the rest after TERM (default: drain_timeout_seconds)",
    )

    replay = _add(commands, "replay", "send again what CloudWatch refused", _REPLAY)
    replay.add_argument("--dead-letters", action="store_true", required=True, help="what is in dead_letters.jsonl")
    replay.add_argument(
        "--reason",
        metavar="REASON",
        action="append",
        choices=REPLAYABLE,
        help=f"only letters of REASON, which may be given several times: {', '.join(REPLAYABLE)}",
    )
    replay.add_argument(
        "--restamp",
        action="store_true",
        help="send what was refused for its time with the present time, and its own inside",
    )
    replay.add_argument("--dry-run", action="store_true", help="only count; change nothing")

    commands.add_parser("demo", help="see it survive kills and outages", add_help=False)
    return top


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, what: str, epilog: str
) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name,
        help=what,
        description=f"{what[0].upper()}{what[1:]}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("path", metavar="PATH", nargs="?", help=_PATH)
    return command


def _positive(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds above 0")
    return seconds


def _count(text: str) -> int:
    count = int(text)
    if count < 0:
        raise argparse.ArgumentTypeError(f"{text} is less than 0")
    return count


def _level(text: str) -> int:
    if text.upper() not in LEVELS:
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(LEVELS)}")
    return LEVELS[text.upper()]


# What argparse calls them in "invalid ... value".
_positive.__name__ = "SECONDS"
_count.__name__ = "N"
