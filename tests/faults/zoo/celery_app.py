"""The zoo's Celery application: prefork workers, and tasks that log.

The broker is Celery's in-memory one. It does not cross processes, and need not: a thread of the
worker's main process sends the tasks, that process takes them from the queue, and only the pool's
children, to which it hands them over pipes, run them and log.

With such a broker a child that waits for a task holds a lock of the pool. Killed then, it takes the lock
along, and the pool stands still for ever, with cwsink or without. So children are killed in the middle of a
task, by themselves, and whoever sends SIGTERM to all of them has to send SIGKILL afterwards.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

from celery import Celery
from celery.signals import worker_ready, worker_shutting_down

from tests.faults.zoo.plain_programs import RECORDS_OF_A_TASK, is_victim, log_records

PAUSE_SECONDS = 0.005

app = Celery("zoo", broker="memory://")
app.conf.update(task_ignore_result=True, worker_hijack_root_logger=False, broker_connection_retry_on_startup=False)

_stopping = threading.Event()


@app.task
def record_some() -> None:
    """Log a few records, in a child of the pool; and be killed in the middle, if it is this child's turn."""
    log_records(RECORDS_OF_A_TASK // 2)
    if is_victim():
        os.kill(os.getpid(), signal.SIGKILL)
    log_records(RECORDS_OF_A_TASK - RECORDS_OF_A_TASK // 2)


@worker_ready.connect
def start_sending(**_: Any) -> None:
    """Send tasks for as long as the worker takes them."""

    def send() -> None:
        while not _stopping.is_set():
            record_some.delay()
            time.sleep(PAUSE_SECONDS)

    threading.Thread(target=send, daemon=True).start()


@worker_shutting_down.connect
def stop_sending(**_: Any) -> None:
    """The worker is going."""
    _stopping.set()
