"""What can be typed: all commands with their options and help. Imports nothing of ours but the version.

The parsers stand apart from the commands, so that none loads what another one imports.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Final, NamedTuple

from cwsink.version import __version__

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
# What `docker stop` leaves for everything; most of the time there is next to nothing to deliver.
_DRAIN_SECONDS: Final = 10.0

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
  cwsink run -- gunicorn app:app     a command, and one flusher beside its workers
  cwsink replay --all                send what other hosts or configurations left behind
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
                again, or by `cwsink flush`; if none is left that does, by `cwsink replay`

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
Delivers as a sidecar or a unit of systemd. While it leads, workers start no flusher of their own; with
FAPILOG_CLOUDWATCH__FLUSHER=external they never do. Where to send is in the spool's FORMAT, how is in its
settings.json, and credentials are where boto3 would find them.

TERM, which a process manager sends to a sidecar and to the application at once: deliver until no process is
left that has logged (at most 20 s), then what is there (at most drain_timeout_seconds), and exit.
Ctrl-C: deliver what is there, and exit. A second one of either: exit now. Records are never lost by it.

examples:
  cwsink flush /var/lib/cwsink                every spool there, until TERM
  cwsink flush --once                         what crashed workers left; whoever leads may send it
  cwsink flush --once --timeout 30 SPOOL      exit 1 if it takes longer

{_EXIT_CODES}
"""

_RUN = """\
Meant as the entry point of a container: works as process 1. The flusher is a process of its own, started again
if it dies; the command gets FAPILOG_CLOUDWATCH__FLUSHER=external, unless that is set, so its processes only
append, and their end makes no network call. stdin, stdout, stderr, working directory, signals and inherited
descriptors are the command's own, as if it were started without us.

Forwarded to the command: TERM INT HUP QUIT USR1 USR2 WINCH TTIN TTOU. When it has ended, what is left is delivered
for at most --drain-timeout; a second TERM or Ctrl-C cuts that short. What stays in the spool is said on stderr.
A gunicorn that is upgraded by USR2 is followed to the new master (Linux); other processes that the command leaves
behind are not waited for.

examples:
  cwsink run -- gunicorn app:app --workers 4
  cwsink run --drain-timeout 3 -- celery -A tasks worker
  cwsink run --spool /data/spool -- python -m myapp       CMD ["cwsink", "run", "--", ...] in a Dockerfile

Exit codes: the command's; 128 + N if it died of signal N; 127 not found, 126 not executable, 2 usage
"""

_REPLAY = f"""\
An orphan is a spool with pending records, without a leader, and without any process left that has logged there:
its host or container has another name now, or its configuration changed. A replay sends it to the log group and
stream written in its FORMAT; a spool that has a leader is left alone. What was sent is remembered at once, so one
that is interrupted goes on where it was; records keep their own times. The emptied spool stays, and takes a few KiB.

dead letters:
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
  cwsink replay --all --dry-run                        which orphans there are: how many records, of when
  cwsink replay --all --rate 500                       send them, at most 500 records a second
  cwsink replay SPOOL                                  send this one (or all below a root), orphan or not
  cwsink replay --dead-letters --dry-run               how many, and why
  cwsink replay --dead-letters --restamp               also what is too old by now
  cwsink replay --dead-letters --reason poison SPOOL   nothing but these

{_EXIT_CODES}; 1 also if a spool is full: live records come first, and the rest of its dead letters stays.
"""


def _status_options(status: argparse.ArgumentParser) -> None:
    status.add_argument("--json", action="store_true", help="print one JSON object")
    status.add_argument(
        "--watch",
        metavar="SECONDS",
        nargs="?",
        type=_positive,
        const=_WATCH_SECONDS,
        help=f"look again every SECONDS ({_WATCH_SECONDS:.0f}), until Ctrl-C; with --json one object a line",
    )


def _tail_options(tail: argparse.ArgumentParser) -> None:
    tail.add_argument("-f", "--follow", action="store_true", help="go on with new records as they are appended")
    lines = "the last N records on disk, also delivered ones"
    tail.add_argument("-n", "--lines", metavar="N", type=_at_least(0, "N"), help=lines)
    tail.add_argument("--grep", metavar="TEXT", help="only records that contain TEXT, in upper or lower case")
    tail.add_argument("--level", metavar="LEVEL", type=_level, help="only records of at least LEVEL, e.g. WARNING")
    tail.add_argument("--json", action="store_true", help="one JSON object a line")


def _flush_options(flush: argparse.ArgumentParser) -> None:
    flush.add_argument("--once", action="store_true", help="deliver what is there now, then exit")
    flush.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=_positive,
        help="give up after SECONDS: with --once in all (default: after 60 without any progress), else after TERM, "
        "waiting for workers included (default: 25)",
    )
    # For `cwsink run`, which says on stdin when to end (cwsink.cli.serve).
    flush.add_argument("--supervised", action="store_true", help=argparse.SUPPRESS)


def _run_options(run: argparse.ArgumentParser) -> None:
    run.usage = "cwsink run [-h] [--drain-timeout SECONDS] [--spool PATH] -- COMMAND ..."
    run.add_argument(
        "--drain-timeout",
        metavar="SECONDS",
        type=_positive,
        default=_DRAIN_SECONDS,
        help=f"when the command has ended, deliver what is left for at most SECONDS (default: {_DRAIN_SECONDS:.0f})",
    )
    run.add_argument(
        "--spool",
        metavar="PATH",
        help="the directory below which spools lie, for the command and the flusher "
        "(default: what both find, see `cwsink flush --help`)",
    )
    run.add_argument("words", metavar="COMMAND", nargs=argparse.REMAINDER, help="the command and its arguments")


def _replay_options(replay: argparse.ArgumentParser) -> None:
    replay.add_argument("--all", action="store_true", help="every orphan at PATH, and nothing else")
    rate = "the most records to send in a second (default: no limit)"
    replay.add_argument("--rate", metavar="RECORDS", type=_at_least(1, "RECORDS"), help=rate)
    replay.add_argument("--dead-letters", action="store_true", help="what is in dead_letters.jsonl")
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


class Command(NamedTuple):
    """What `--help` says of a command, what adds its options, and whether it takes the PATH of spools."""

    what: str
    epilog: str
    add_options: Callable[[argparse.ArgumentParser], None]
    has_path: bool = True


COMMANDS: Final = {
    "status": Command("is everything delivered, how far behind is it, and why", _STATUS, _status_options),
    "tail": Command("print the records that are in the spool", _TAIL, _tail_options),
    "flush": Command("be a dedicated flusher: deliver what is in the spool", _FLUSH, _flush_options),
    "run": Command("run a command, with one flusher beside it for all of its processes", _RUN, _run_options, False),
    "replay": Command("send what spools left behind hold, or what CloudWatch refused", _REPLAY, _replay_options),
    "demo": Command("see it survive kills and outages", "", lambda _: None, False),
}


def parse(words: list[str]) -> argparse.Namespace:
    """Return the options of `words`, and which `command` it is. Raises SystemExit: help was asked for, or is needed."""
    if words[:1] == ["demo"]:  # it has arguments of its own
        return argparse.Namespace(command="demo", words=words[1:])
    top = parser()
    options = top.parse_args(words)
    if options.command is None:
        top.print_help(sys.stderr)
        top.exit(2)
    return options


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands. `error` is among its options, for what only all arguments together tell."""
    top = argparse.ArgumentParser(
        prog="cwsink",
        description="Logs of many processes, spooled on local disk, to AWS CloudWatch Logs.",
        epilog=_MAIN,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"cwsink {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND")
    for name, (what, epilog, add_options, has_path) in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=what,
            description=f"{what[0].upper()}{what[1:]}.",
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(error=command.error)
        add_options(command)
        if has_path:
            command.add_argument("path", metavar="PATH", nargs="?", help=_PATH)
    return top


def _positive(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds above 0")
    return seconds


_positive.__name__ = "SECONDS"  # what argparse calls it in "invalid ... value"


def _at_least(least: int, name: str) -> Callable[[str], int]:
    def convert(text: str) -> int:
        number = int(text)
        if number < least:
            raise argparse.ArgumentTypeError(f"{text} is less than {least}")
        return number

    convert.__name__ = name
    return convert


def _level(text: str) -> int:
    if text.upper() not in LEVELS:
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(LEVELS)}")
    return LEVELS[text.upper()]
