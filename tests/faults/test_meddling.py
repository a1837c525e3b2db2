"""Somebody meddles with the spool while four workers log: none of them ends, and soon all goes on."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import asdict

from cwsink.config import load_config
from cwsink.frontends.writer import Writer
from cwsink.spool import flusher_lock, segment
from cwsink.spool.directory import SpoolDirectory, open_for
from cwsink.spool.survey import survey
from cwsink.testing import StrictCloudWatch
from cwsink.testing.flushers import end_flushers
from tests.conftest import Spawn
from tests.faults.own_processes import kill, ours
from tests.harness.interleave import deliver
from tests.harness.support import is_ours, quick_config
from tests.harness.warm_forker import WarmForker

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

WORKERS = 4
# A writer looks for its segment about once a second; what it appends later than this is safe again.
RECOVERY_SECONDS = 2.0
HANG_SECONDS = 60.0


def work(settings: dict[str, object], name: str, place: str) -> None:
    """Log until there is a file `stop`; then write down what was acknowledged, and when."""
    writer = Writer(load_config(settings))
    acknowledged: list[tuple[str, float]] = []
    number = 0
    while not os.path.exists(f"{place}/stop"):
        message = f"{name} {number:06d} {'.' * 300}"
        if writer.append(message):
            acknowledged.append((message, time.monotonic()))
        number += 1
        time.sleep(0.002)
    Path(place, f"{name}.json").write_text(json.dumps(acknowledged), encoding="utf-8")


def newest(spool: SpoolDirectory) -> str:
    return segment.path_of(spool.ring, segment.numbers(spool.ring)[-1])


def halve(spool: SpoolDirectory) -> None:
    os.truncate(newest(spool), os.path.getsize(newest(spool)) // 2)


def kill_all_of_ours(spool: SpoolDirectory) -> None:
    for each in ours(spool.root):
        kill(each, spool.root)


def replace_cursor(spool: SpoolDirectory) -> None:
    Path(spool.cursor).unlink()
    Path(spool.cursor).write_bytes(b"\xff" * 4096)


MEDDLERS: dict[str, Callable[[SpoolDirectory], object]] = {
    "the spool removed": lambda spool: shutil.rmtree(spool.path, ignore_errors=True),
    "the ring removed": lambda spool: shutil.rmtree(spool.ring, ignore_errors=True),
    "the spool renamed": lambda spool: os.rename(spool.path, f"{spool.path}.old"),
    "the newest segment removed": lambda spool: os.unlink(newest(spool)),
    "the newest segment emptied": lambda spool: os.truncate(newest(spool), 0),
    "the newest segment halved": halve,
    "the cursor overwritten": replace_cursor,
    "all lock files removed": lambda spool: [path.unlink() for path in Path(spool.path).glob("*.lock")],
    "the flusher's lock removed": lambda spool: Path(flusher_lock.path_of(spool.root)).unlink(),
    "the settings overwritten": lambda spool: Path(spool.sending).write_bytes(b"\xff" * 4096),
    "the flusher and its guard killed": kill_all_of_ours,
}


@pytest.mark.parametrize("what", MEDDLERS)
def test_who_meddles_with_a_spool_costs_what_he_takes_and_a_moment(
    server: StrictCloudWatch, spawn: Spawn, tmp_path: Path, what: str
) -> None:
    """What is acknowledged two seconds later is delivered; no worker has noticed; nothing is invented."""
    config = quick_config(server.endpoint_url)
    settings = {name: value for name, value in asdict(config).items() if value is not None}
    forker = WarmForker(spawn, work)
    names = [f"worker{index}" for index in range(WORKERS)]
    pids = [forker.fork(settings, name, str(tmp_path)) for name in names]
    assert server.wait_for(lambda server: arrived_of(server.messages(), names, "000100"), HANG_SECONDS)
    MEDDLERS[what](open_for(config))
    began = time.monotonic()
    time.sleep(RECOVERY_SECONDS + 0.5)
    (tmp_path / "stop").touch()
    assert [forker.wait(pid) for pid in pids] == [0] * WORKERS
    end_flushers(tmp_path)
    spool = open_for(config)
    deliver(spool, config)
    delivered = set(server.messages())
    acknowledged = {
        message: at for name in names for message, at in json.loads((tmp_path / f"{name}.json").read_text("utf-8"))
    }
    lost = {message: at for message, at in acknowledged.items() if message not in delivered}
    last = max(lost.values(), default=began) - began
    assert last < RECOVERY_SECONDS, f"acknowledged {last:.1f} s later and lost"
    assert max(acknowledged.values()) > began + RECOVERY_SECONDS, "nothing more was acknowledged"
    assert not {text for text in delivered if not is_ours(text)} - acknowledged.keys()
    books = survey(spool)
    assert (books.adds_up, books.pending) == (True, 0)
    print(f"{what}: {len(lost)} of {len(acknowledged)} lost, the last one after {max(0.0, last):.2f} s")


def arrived_of(messages: list[str], names: list[str], number: str) -> bool:
    """Tell whether that record of each worker has arrived."""
    found = {message[: len(names[0]) + 1 + len(number)] for message in messages}
    return found >= {f"{name} {number}" for name in names}
