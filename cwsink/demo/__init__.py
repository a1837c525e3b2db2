"""`cwsink demo`: kills workers and the flusher, and shows that nothing is lost.

```text
app          the web application, an example to copy: open this one first
story        the sequence of events
oracle       notes, outside of cwsink, each record whose logger.info has returned
verdict      judges the evidence; pure
load         the HTTP clients                succession  finds the flusher, kills it, times the next one
webserver    gunicorn                        read_back   moto's server, and what it has got
sandbox      directory, environment, processes
report       the output on the screen
```
"""

from __future__ import annotations

import argparse
import importlib.util
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

DEFAULT_REQUESTS: Final = 4_000
# With fewer requests, the demo is over before there is a process to kill.
MIN_REQUESTS: Final = 200
MAX_WORKERS: Final = 16


def main(argv: list[str] | None = None) -> int:
    """Run the demo.

    Args:
        argv: the arguments after `cwsink demo`; by default, those of the process.

    Returns:
        0: no logged record was lost, and the ledger adds up. 1: otherwise, or if the demo
        could not run. Then the reason is on stderr or the screen.
    """
    options = _parse(argv)
    if lacking := _lacking(options):
        print(f"cwsink demo needs {' and '.join(lacking)}: pip install 'cwsink[demo]'", file=sys.stderr)
        return 1
    try:
        with _signals_end_it():
            return _run(options)
    except KeyboardInterrupt:
        print("\ncwsink demo: interrupted; all its processes are gone.", file=sys.stderr)
        return 1


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="cwsink demo",
        description="Run a web application of several processes. While it logs, kill two of them and the process that "
        "sends. Then compare the logged records with those in CloudWatch. Takes less than a minute.",
        epilog="Exit code 0: no logged record was lost, and the ledger adds up; 1: otherwise.",
    )
    parser.add_argument(
        "--requests",
        type=_requests,
        default=DEFAULT_REQUESTS,
        metavar="N",
        help="HTTP requests to send, each logs one record (default %(default)s); no more than fit into half a minute",
    )
    parser.add_argument(
        "--workers",
        type=int,
        choices=range(2, MAX_WORKERS + 1),
        default=4,
        metavar="N",
        help=f"gunicorn workers, 2 to {MAX_WORKERS} (default %(default)s)",
    )
    parser.add_argument("--keep", action="store_true", help="keep the directory with the spool and all logs")
    parser.add_argument(
        "--endpoint-url",
        type=_url,
        metavar="URL",
        help="send to this CloudWatch instead of moto's server on this machine: LocalStack, or AWS with your own "
        "credentials. The demo leaves one log group /cwsink/demo-... there",
    )
    return parser.parse_args(argv)


def _requests(text: str) -> int:
    number = int(text)
    if number < MIN_REQUESTS:
        raise argparse.ArgumentTypeError(f"{number} is too few: to kill two workers meanwhile takes {MIN_REQUESTS}")
    return number


def _url(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"{text!r} does not start with http:// or https://")
    return text


def _lacking(options: argparse.Namespace) -> list[str]:
    """Return the packages of the extra `demo` that are not installed. `moto[server]` brings flask, `moto` does not."""
    needed = {"gunicorn": ["gunicorn"]} | ({} if options.endpoint_url else {"moto[server]": ["moto", "flask"]})
    return [name for name, modules in needed.items() if not all(map(importlib.util.find_spec, modules))]


def _run(options: argparse.Namespace) -> int:
    # `cwsink.cli` imports this module for the command. Only a run of the demo is to load rich and botocore.
    from rich.console import Console

    from cwsink.demo import report
    from cwsink.demo.sandbox import DemoError, Sandbox
    from cwsink.demo.story import Story

    console = Console(highlight=False)
    where = options.endpoint_url or "CloudWatch (moto's)"
    report.show_introduction(console, workers=options.workers, requests=options.requests, where=where)
    with Sandbox(keep=options.keep) as sandbox:
        try:
            with report.Screen(console) as screen:
                ending = Story(
                    sandbox,
                    screen,
                    requests=options.requests,
                    workers=options.workers,
                    endpoint_url=options.endpoint_url,
                ).run()
        except DemoError as error:
            sandbox.keep = True
            report.show_breakdown(console, error, sandbox)
            return 1
        is_good = not ending.verdict.problems
        sandbox.keep = sandbox.keep or not is_good
        report.show_ending(console, ending)
        report.show_what_is_left(console, sandbox, ending.spool)
    return 0 if is_good else 1


@contextmanager
def _signals_end_it() -> Iterator[None]:
    """Make SIGTERM and a closed terminal raise KeyboardInterrupt, so that the demo cleans up as after Ctrl-C."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {each: signal.signal(each, interrupt) for each in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for each, handler in former.items():
            signal.signal(each, handler)
