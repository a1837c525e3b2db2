"""All commands with their options and help texts. Imports next to nothing of ours.

The parsers stand apart from the commands, so that no command loads what another one imports.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from cwsink import units
from cwsink.cli import epilogs
from cwsink.version import __version__
from cwsink.words import LEVELS, did_you_mean

# Reasons of dead letters that may have a second chance. Damage has none, because it holds no record.
REPLAYABLE: Final = ("too_old", "too_new", "expired", "oversize", "poison")

_WATCH_SECONDS: Final = 2.0
# Some 30 years. Python's clocks and `sleep` cannot take much more, and would end the command with an OverflowError.
_MOST_SECONDS: Final = 1_000_000_000
_LISTEN: Final = "127.0.0.1:9464"
# `docker stop` leaves this time for everything. Nearly always there is next to nothing to deliver.
_DRAIN_SECONDS: Final = 10.0


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
    export.add_argument("-o", "--output", metavar="FILE", type=_named, help="write FILE as a whole; .gz is compressed")


def _status_options(status: argparse.ArgumentParser) -> None:
    status.add_argument("--json", action="store_true", help="print one JSON object")
    status.add_argument(
        "--watch",
        metavar="SECONDS",
        nargs="?",
        type=_seconds,
        const=_WATCH_SECONDS,
        help=f"look again every SECONDS ({_WATCH_SECONDS:.0f}), until Ctrl-C; with --json one object a line",
    )


def _check_options(check: argparse.ArgumentParser) -> None:
    check.add_argument("--max-age", type=_duration, default=60.0, help="how long a record may wait (default: 60s)")
    check.add_argument("--max-fill", type=_percent, default=80.0, help="how full a spool may be (default: 80%%)")
    check.add_argument("--no-losses", action="store_true", help="any record that was lost is critical")
    check.add_argument("--no-dead-letters", action="store_true", help="any dead letter is a warning")


def _doctor_options(doctor: argparse.ArgumentParser) -> None:
    doctor.usage = "cwsink doctor [-h] [--probe] [--json] [-- COMMAND ...]"
    doctor.add_argument("--probe", action="store_true", help="append one record, and wait until it has arrived")
    doctor.add_argument("--json", action="store_true", help="print one JSON object")
    doctor.add_argument("words", metavar="COMMAND", nargs=argparse.REMAINDER, help="what starts the workers")


def _top_options(top: argparse.ArgumentParser) -> None:
    top.add_argument("--once", action="store_true", help="print one picture, and exit")


def _metrics_options(metrics: argparse.ArgumentParser) -> None:
    how = metrics.add_mutually_exclusive_group(required=True)
    how.add_argument("--textfile", metavar="FILE", type=_named, help="write FILE once, as a whole (- is stdout)")
    listen = f"answer at ADDRESS (default: {_LISTEN}) until TERM"
    how.add_argument("--listen", metavar="ADDRESS:PORT", nargs="?", type=_address, const=_address(_LISTEN), help=listen)


def _alarms_options(alarms: argparse.ArgumentParser) -> None:
    alarms.add_argument("--prometheus", action="store_true", help="print rules for the metrics of `cwsink metrics`")


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
        type=_seconds,
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
        type=_seconds,
        default=_DRAIN_SECONDS,
        help=f"when the command has ended, deliver what is left for at most SECONDS (default: {_DRAIN_SECONDS:.0f})",
    )
    run.add_argument(
        "--spool",
        metavar="PATH",
        type=_named,
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
    clear = "throw dead letters away instead, all or those of --reason; they are counted as dead no more"
    replay.add_argument("--clear", action="store_true", help=clear)
    replay.add_argument("--dry-run", action="store_true", help="only count; change nothing")


def _manual_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("topic", metavar="TOPIC", nargs="?", default="index", help="a page; the default lists them")


class Command(NamedTuple):
    """A command: its help text, the function that adds its options, and whether it takes a PATH of spools."""

    what: str
    epilog: str
    add_options: Callable[[argparse.ArgumentParser], None]
    has_path: bool = True


COMMANDS: Final = {
    "status": Command("is everything delivered, how far behind is it, and why", epilogs.STATUS, _status_options),
    "check": Command("all is well, a warning, or critical: one line, for monitoring", epilogs.CHECK, _check_options),
    "top": Command("all spools on one screen, which refreshes itself", epilogs.TOP, _top_options),
    "doctor": Command(
        "why do my logs not arrive? Each question, and what to type", epilogs.DOCTOR, _doctor_options, False
    ),
    "tail": Command("print the records that are in the spool", epilogs.TAIL, _tail_options),
    "flush": Command("be a dedicated flusher: deliver what is in the spool", epilogs.FLUSH, _flush_options),
    "run": Command(
        "run a command, with one flusher beside it for all of its processes", epilogs.RUN, _run_options, False
    ),
    "replay": Command("send what spools left behind hold, or what CloudWatch refused", epilogs.REPLAY, _replay_options),
    "metrics": Command("the numbers of all spools, for Prometheus", epilogs.METRICS, _metrics_options),
    "alarms": Command("print alarms and a dashboard, for CloudFormation", epilogs.ALARMS, _alarms_options, False),
    "manual": Command("read the manual", epilogs.MANUAL, _manual_options, False),
    "verify": Command(
        "has CloudWatch what was delivered? Compare it with the history", epilogs.VERIFY, _verify_options
    ),
    "export": Command("print delivered and pending records as JSON lines", epilogs.EXPORT, _export_options),
    "demo": Command("see it survive kills and outages", "", lambda _: None, False),
}


def parse(words: list[str]) -> argparse.Namespace:
    """Return the options of `words`, with the `command`. Raises SystemExit: help was asked for, or words are wrong."""
    if words[:1] == ["demo"]:  # the demo has arguments of its own
        return argparse.Namespace(command="demo", words=words[1:])
    # A probe that runs `cwsink check` each second need not pay for the options of all others.
    top = parser({name: row for name, row in COMMANDS.items() if name in words[:1]} or COMMANDS)
    if words and not words[0].startswith("-") and words[0] not in COMMANDS:
        top.error(f"there is no command {words[0]!r}.{did_you_mean(words[0], COMMANDS)} `cwsink --help` lists them.")
    options, unknown = top.parse_known_args(words)
    if unknown:  # argparse itself would show the usage of `cwsink`, and not of the command
        getattr(options, "error", top.error)(f"unrecognized arguments: {' '.join(unknown)}")
    since, until = getattr(options, "since", None), getattr(options, "until", None)
    if since is not None and until is not None and since <= until:
        options.error("no event is both of the last --since AGE and older than --until AGE: give a longer --since.")
    if options.command is None:
        top.print_help(sys.stderr)
        top.exit(2)
    return options


def parser(known: Mapping[str, Command] = COMMANDS) -> argparse.ArgumentParser:
    """Return the parser of these commands. Its option `error` is for a command that finds its arguments wrong."""
    top = argparse.ArgumentParser(
        prog="cwsink",
        description="Logs of many processes, spooled on local disk, to AWS CloudWatch Logs.",
        epilog=epilogs.MAIN,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"cwsink {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND")
    for name, (what, epilog, add_options, has_path) in known.items():
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
            command.add_argument("path", metavar="PATH", nargs="?", type=_named, help=epilogs.PATH)
    return top


def _named(path: str) -> str:
    if not path:  # an unset variable of a shell must not mean all spools
        raise argparse.ArgumentTypeError("it is empty. Give a path, or leave the argument out for the default")
    return path


def _duration(text: str) -> float:
    seconds = units.seconds(text)
    if seconds is None:
        raise argparse.ArgumentTypeError(f"{text!r}: {units.DURATION_FORMS}")
    return _within(text, seconds)


def _seconds(text: str) -> float:
    return _within(text, _positive(text, "number of seconds"))


def _within(text: str, seconds: float) -> float:
    if not 0 < seconds <= _MOST_SECONDS:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0 s and up to {_MOST_SECONDS:,} s")
    return seconds


def _positive(text: str, what: str = "number") -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a {what} above 0")
    return number


def _percent(text: str) -> float:
    percentage = _positive(text.removesuffix("%"), "percentage")
    if percentage > 100:
        raise argparse.ArgumentTypeError(f"{text!r} is more than 100%")
    return percentage


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or len(port) > 5 or int(port) > 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is not like {_LISTEN}")
    return host.strip("[]") or "127.0.0.1", int(port)


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
