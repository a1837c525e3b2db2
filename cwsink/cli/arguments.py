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
