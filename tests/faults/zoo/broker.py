"""A Redis for the zoo's RQ workers, and somebody who sends them jobs: `python -m tests.faults.zoo.broker`.

Prints its port. The Redis is that of the `fakeredis` package: no machine has to have a real one. A job logs a few
records in a process of its own that lives for milliseconds (`job`).
"""

from __future__ import annotations

import os
import signal
import threading
import time

PAUSE_SECONDS = 0.01
MOST_WAITING = 20
# The word in the victim's file that has the next job kill itself.
NEXT = "next"


def job() -> None:
    """Log a few records; and be killed in the middle, if a victim is wanted."""
    from tests.faults.zoo.plain_programs import RECORDS_OF_A_TASK, VICTIM_VARIABLE, log_records

    log_records(RECORDS_OF_A_TASK // 2)
    try:
        os.unlink(os.environ[VICTIM_VARIABLE])  # only one can do that
    except FileNotFoundError:
        pass
    else:
        os.kill(os.getpid(), signal.SIGKILL)
    log_records(RECORDS_OF_A_TASK - RECORDS_OF_A_TASK // 2)


def _send(port: int) -> None:
    from redis import Redis
    from rq import Queue

    queue = Queue(connection=Redis(port=port))
    while True:
        if len(queue) < MOST_WAITING:
            queue.enqueue("tests.faults.zoo.broker.job", result_ttl=0, failure_ttl=1)
        else:
            time.sleep(PAUSE_SECONDS)


def main() -> None:
    """Serve until killed."""
    from fakeredis import TcpFakeServer
    from fakeredis.model import ClientInfo

    def as_bytes(info: ClientInfo) -> bytes:
        return " ".join(f"{name}={value}".replace(" ", "") for name, value in info.items()).encode()

    # Its address is a tuple with a space in it, which redis-py, asked by RQ, cannot take apart.
    ClientInfo.as_bytes = as_bytes  # type: ignore[method-assign, assignment]  # as the comment says
    server = TcpFakeServer(("127.0.0.1", 0), server_type="redis")
    port = server.server_address[1]
    threading.Thread(target=_send, args=(port,), daemon=True).start()
    print(port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
