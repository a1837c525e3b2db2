"""`python -m cwsink.testing`: runs the strict server until Ctrl-C (I/O)."""

from __future__ import annotations

import argparse
import os
import signal
import threading
from collections.abc import Sequence

from cwsink.testing.server import StrictCloudWatch


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the server until SIGINT or SIGTERM, or, if asked, until stdin closes. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m cwsink.testing", description="A strict, local CloudWatch Logs.")
    parser.add_argument("--port", type=int, default=0, help="0 (default) lets the kernel choose")
    parser.add_argument("--latency-seconds", type=float, default=0.0, help="answer each call this much later")
    parser.add_argument("--forget-events", action="store_true", help="count accepted events, but do not keep them")
    parser.add_argument("--id-pattern", help="regular expression of an event's id, to count repeats")
    parser.add_argument("--until-stdin-closes", action="store_true", help="end when the process at the other end does")
    options = parser.parse_args(arguments)

    # A signal handler that sets an event could interrupt the thread that holds the event's lock. So the signals
    # are blocked before any thread starts, and sigwait takes them below.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    server = StrictCloudWatch(port=options.port, keep_events=not options.forget_events, id_pattern=options.id_pattern)
    server.faults.latency_seconds = options.latency_seconds
    with server:
        # The first line is the URL alone: `spawn` and scripts read it.
        print(server.endpoint_url, flush=True)
        print(f"export AWS_ENDPOINT_URL_CLOUDWATCH_LOGS={server.endpoint_url}", flush=True)
        if options.until_stdin_closes:
            # Ctrl-C at a terminal reaches the whole group, but the process that spawned us may still ask for the
            # counts. So SIGINT does not end this one.
            threading.Thread(target=_terminate_at_end_of_stdin, daemon=True).start()
            signal.sigwait((signal.SIGTERM,))
        else:
            print("Ctrl-C ends it.", flush=True)
            signal.sigwait((signal.SIGINT, signal.SIGTERM))
    if not options.until_stdin_closes:
        counts = server.summary()
        print(f"{counts['events']} events in {counts['requests']} requests, {counts['violations']} violations")
        for text in counts["violation_texts"]:
            print(f"  - {text}")
    return 0


def _terminate_at_end_of_stdin() -> None:
    # Not sys.stdin: a daemon thread that holds its lock would abort the interpreter's shutdown.
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    raise SystemExit(main())
