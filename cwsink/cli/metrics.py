"""`cwsink metrics`: the numbers of all spools as OpenMetrics (cwsink.watching.openmetrics), in a file or over HTTP."""

from __future__ import annotations

import argparse
import signal

from cwsink.cli import DONE
from cwsink.errors import CwsinkError
from cwsink.spool.directory import expect_spools
from cwsink.watching.output import replacing


def run(options: argparse.Namespace) -> int:
    """Write the file once, or answer until TERM or Ctrl-C. Returns the exit code."""
    try:
        import prometheus_client

        from cwsink.watching import openmetrics
    except ImportError as error:
        raise CwsinkError(f"metrics need prometheus-client: pip install 'cwsink[metrics]' ({error})") from error
    if options.textfile is not None:
        expect_spools(options.path)
        content = openmetrics.text_of(options.path)
        with replacing(options.textfile, 0o644) as file:  # a collector is another user
            file.write(content)
        return DONE
    host, port = options.listen
    shown = f"[{host}]" if ":" in host else host  # an IPv6 address, as URLs have it
    openmetrics.text_of(options.path)  # a PATH that cannot be read is said now
    try:
        server, thread = prometheus_client.start_http_server(port, host, openmetrics.registry_of(options.path))
    except OSError as error:
        raise CwsinkError(f"cannot listen at {shown}:{port}: {error.strerror or error}") from error
    print(f"http://{shown}:{server.server_port}/metrics", flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        signal.pause()
    except KeyboardInterrupt:
        server.shutdown()
        thread.join()
    return DONE
