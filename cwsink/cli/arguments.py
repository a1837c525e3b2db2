"""All commands with their options and help texts. Imports nothing of ours but the version.

The parsers stand apart from the commands, so that no command loads what another one imports.
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

# Reasons of dead letters that may have a second chance. Damage has none, because it holds no record.
REPLAYABLE: Final = ("too_old", "too_new", "expired", "oversize", "poison")

_WATCH_SECONDS: Final = 2.0
# `docker stop` leaves this time for everything. Nearly always there is next to nothing to deliver.
_DRAIN_SECONDS: Final = 10.0

_PATH = """\
a spool (the directory with the file FORMAT), or a directory that holds several. The default is where a
worker would put its spool: CWSINK_SPOOL_DIRECTORY, FAPILOG_CLOUDWATCH__SPOOL_DIRECTORY, or the first of
/var/lib/cwsink, ~/.local/state/cwsink, /var/tmp/cwsink-<uid>"""

_EXIT_CODES = """\
Exit codes: 0 done, 1 not done (stderr says why), 2 usage"""

_MAIN = f"""\
examples:
  cwsink status                      is everything delivered? if not, why?
  cwsink check --max-age 2m          one line and an exit code, for monitoring
  cwsink tail -f --level WARNING     what the workers log, as they log it
  cwsink flush --once                deliver what is there, then exit
  cwsink run -- gunicorn app:app     a command, and one flusher beside its workers
  cwsink replay --all                send what other hosts or configurations left behind
  cwsink replay --dead-letters       a second chance for what CloudWatch refused
  cwsink verify --since 24h          has CloudWatch all that was delivered?
  cwsink export --since 2h           records as JSON, delivered ones as well
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
  no_leader     records are pending and no process leads. They are sent when a worker logs
                again, or by `cwsink flush`. If no worker will, send them by `cwsink replay`

The books add up: appended = delivered + dead_lettered + evicted + pending (records).
This command only looks. It writes nothing, needs no leader, and as root works on another user's spool.

examples:
  cwsink status
  cwsink status /var/lib/cwsink --watch
  cwsink status --json | jq '.spools[] | {{path, state, pending}}'

{_EXIT_CODES}; 1 also if there is no spool, or if one cannot be read.
"""

_CHECK = """\
It reads files only, so it answers while everything else is stuck. Losses are those since the spool was made: records
that were refused or evicted. Let a readiness probe, a cron job or Nagios call it, and never a liveness probe: a restart
does not bring CloudWatch back.

examples:
  cwsink check --max-age 2m --no-losses
  exec: {command: [cwsink, check, --max-age, 5m]}      a probe of Kubernetes

Exit codes: 0 all is well, 1 warning, 2 critical (records are lost, or will be; or wrong usage)
"""

_TAIL = f"""\
Without -n it prints the records that are not delivered yet. With --since, also the delivered ones, oldest first: those
that are still on disk (see keep_delivered). With --level, records that have no level (plain text) are left out.

examples:
  cwsink tail -f                              all spools, as records are appended
  cwsink tail -n 50 --level error             the last 50 errors on disk
  cwsink tail --since 2h --logger 'shop.*'    what was logged there, delivered or not
  cwsink tail -f --grep order_id=17 /var/lib/cwsink
  cwsink tail --json | jq -r .message         {{"id", "timestamp_ms", "message"}} a line

{_EXIT_CODES}
"""

_FLUSH = f"""\
It delivers as a sidecar or as a unit of systemd. While it leads, workers start no flusher. With
CWSINK_FLUSHER=external they never start one. The spool's FORMAT says where to send, its settings.json
says how, and credentials are found as boto3 finds them.

TERM: a process manager sends it to a sidecar and to the application at once. So wait until no process is left
that has logged (at most 20 s), and deliver meanwhile. Then deliver the rest (at most drain_timeout_seconds), and exit.
Ctrl-C: deliver what is there, and exit. A second TERM or Ctrl-C: exit now. No record is lost by that.

examples:
  cwsink flush /var/lib/cwsink                every spool there, until TERM
  cwsink flush --once                         have delivered what crashed workers left
  cwsink flush --once --timeout 30 SPOOL      exit 1 if it takes longer

{_EXIT_CODES}
"""

_RUN = """\
It is meant as the entry point of a container, and works as process 1. The flusher is a process of its own, and is
started again if it dies. The processes of the command only append: they start a flusher only if this one stays away
for 5 s, and do not wait for delivery at their end. stdin, stdout, stderr, working directory, signals and inherited
descriptors are as if the command was started without cwsink.

Signals forwarded to the command: TERM INT HUP QUIT USR1 USR2 WINCH TTIN TTOU. After its end, the flusher delivers what
is left for at most --drain-timeout. A second TERM or Ctrl-C cuts that short. stderr says what stays in the spool.
If a gunicorn is upgraded by USR2, the new master is the command from then on (Linux). Other processes that the command
leaves behind are not waited for.

examples:
  cwsink run -- gunicorn app:app --workers 4
  cwsink run --drain-timeout 3 -- celery -A tasks worker
  cwsink run --spool /data/spool -- python -m myapp       CMD ["cwsink", "run", "--", ...] in a Dockerfile

Exit codes: the command's; 128 + N if it died of signal N; 127 not found, 126 not executable, 2 usage
"""

_REPLAY = f"""\
An orphan is a spool with pending records, without a leader, and without any process left that has logged there.
Its host or container may have another name now, or the configuration was changed. A replay sends the records to the
log group and stream in the spool's FORMAT. It leaves a spool alone that has a leader. It remembers at once what was
sent, so an interrupted replay goes on where it was. Records keep their own times. The emptied spool takes a few KiB.

dead letters:
What CloudWatch refused is kept in dead_letters.jsonl of its spool. A replay appends these records to the spool
again, and takes them out of that file. Then the leader sends them, or `cwsink flush --once`.
A replay that is killed in between may send some of them twice, and loses none.

reasons:
  too_old    more than 14 days: only with --restamp
  too_new    more than 2 hours ahead of CloudWatch's clock
  expired    older than the group's retention
  oversize   if it is short enough by now; or if named, which helps with oversize=truncate or split
  poison     CloudWatch found it invalid
  corrupt    damage, which holds no record: never

--restamp sends too_old, too_new and expired with the present time. Their own time goes inside, in a JSON object as
{{"_cwsink": {{"original_timestamp_ms": 1700000000000, "original_time": "2023-11-14T22:13:20.000Z"}}}},
before plain text as [2023-11-14T22:13:20.000Z].

examples:
  cwsink replay --all --dry-run                        which orphans there are, with how many records
  cwsink replay --all --rate 500                       send them, at most 500 records a second
  cwsink replay SPOOL                                  send this one (or all below a root), orphan or not
  cwsink replay --dead-letters --dry-run               how many, and why
  cwsink replay --dead-letters --restamp               also what is too old by now
  cwsink replay --dead-letters --reason poison SPOOL   nothing but these

{_EXIT_CODES}; 1 also if a spool is full. Live records come first, and the rest of the letters stays.
"""


_VERIFY = f"""\
It reads the log streams back, and compares them, by time and byte for byte, with what was delivered according to the
history of the spool (keep_delivered). Events that were delivered in the last 10 minutes may be shown late: it waits.
It needs one more IAM action, logs:GetLogEvents. Interrupted, the same command goes on. It never runs by itself.

examples:
  cwsink verify --since 24h
  cwsink verify --since 26h --until 2h --json

{_EXIT_CODES}; 0 only if nothing is missing
"""

_EXPORT = f"""\
A record is in its place if it is less than 10,000 records out of order. Times are those of the events.

examples:
  cwsink export --since 2h > events.jsonl          {{"id", "timestamp_ms", "message"}} a line
  cwsink export --since 26h --until 2h -o yesterday.jsonl.gz

{_EXIT_CODES}
"""


def _period_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--since", metavar="AGE", type=_duration, help="only events of the last AGE, e.g. 2h or 90m")
    command.add_argument("--until", metavar="AGE", type=_duration, help="only events older than AGE")


def _verify_options(verify: argparse.ArgumentParser) -> None:
    _period_options(verify)
    verify.add_argument("--json", action="store_true", help="print one JSON object")
    verify.add_argument("--rate", metavar="CALLS", type=_positive, default=4.0, help="calls a second (default: 4)")
    patience = "how long to wait for events that are not shown yet (default: 3m)"
    verify.add_argument("--patience", metavar="TIME", type=_duration, default=180.0, help=patience)


def _export_options(export: argparse.ArgumentParser) -> None:
    _period_options(export)
    export.add_argument("-o", "--output", metavar="FILE", help="write to FILE; compressed if its name ends with .gz")


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


def _check_options(check: argparse.ArgumentParser) -> None:
    check.add_argument("--max-age", type=_duration, default=60.0, help="how long a record may wait (default: 60s)")
    check.add_argument("--max-fill", type=_percent, default=80.0, help="how full a spool may be (default: 80%%)")
    check.add_argument("--no-losses", action="store_true", help="any record that was lost is critical")
    check.add_argument("--no-dead-letters", action="store_true", help="any dead letter is a warning")


def _tail_options(tail: argparse.ArgumentParser) -> None:
    _period_options(tail)
    tail.add_argument("--logger", metavar="NAME", help="only records of this logger, e.g. 'shop.*'")
    tail.add_argument("-f", "--follow", action="store_true", help="go on with new records as they are appended")
    lines = "print the last N records on disk, also delivered ones"
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
        help="with --once, give up after SECONDS in all (default: after 60 s without progress); else, end SECONDS "
        "after TERM, with the wait for workers (default: 25)",
    )
    # Only `cwsink run` uses it. It says on stdin when to end (cwsink.cli.serve).
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
        help="the directory of the spools, for the command and the flusher "
        "(default: as for PATH of `cwsink flush --help`)",
    )
    run.add_argument("words", metavar="COMMAND", nargs=argparse.REMAINDER, help="the command and its arguments")


def _replay_options(replay: argparse.ArgumentParser) -> None:
    replay.add_argument("--all", action="store_true", help="send every orphan at PATH, and no other spool")
    rate = "the most records to send in a second (default: no limit)"
    replay.add_argument("--rate", metavar="RECORDS", type=_at_least(1, "RECORDS"), help=rate)
    replay.add_argument("--dead-letters", action="store_true", help="replay dead_letters.jsonl")
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
        help="send what was refused for its time with the present time, with its own time inside",
    )
    replay.add_argument("--dry-run", action="store_true", help="only count; change nothing")


class Command(NamedTuple):
    """A command: its help text, the function that adds its options, and whether it takes a PATH of spools."""

    what: str
    epilog: str
    add_options: Callable[[argparse.ArgumentParser], None]
    has_path: bool = True


COMMANDS: Final = {
    "status": Command("is everything delivered, how far behind is it, and why", _STATUS, _status_options),
    "check": Command("all is well, a warning, or critical: one line, for monitoring", _CHECK, _check_options),
    "tail": Command("print the records that are in the spool", _TAIL, _tail_options),
    "flush": Command("be a dedicated flusher: deliver what is in the spool", _FLUSH, _flush_options),
    "run": Command("run a command, with one flusher beside it for all of its processes", _RUN, _run_options, False),
    "replay": Command("send what spools left behind hold, or what CloudWatch refused", _REPLAY, _replay_options),
    "verify": Command("has CloudWatch what was delivered? compare it with the history", _VERIFY, _verify_options),
    "export": Command("print delivered and pending records as JSON lines", _EXPORT, _export_options),
    "demo": Command("see it survive kills and outages", "", lambda _: None, False),
}


def parse(words: list[str]) -> argparse.Namespace:
    """Return the options of `words`, with the `command`. Raises SystemExit: help was asked for, or words are wrong."""
    if words[:1] == ["demo"]:  # the demo has arguments of its own
        return argparse.Namespace(command="demo", words=words[1:])
    top = parser()
    options = top.parse_args(words)
    if options.command is None:
        top.print_help(sys.stderr)
        top.exit(2)
    return options


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands. Its option `error` is for a command that finds its arguments wrong."""
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


_positive.__name__ = "SECONDS"  # argparse says "invalid SECONDS value"


def _duration(text: str) -> float:
    number = text.rstrip("smh")
    return _positive(number) * {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "ms": 0.001}[text[len(number) :]]


def _percent(text: str) -> float:
    return _positive(text.rstrip("%"))


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
