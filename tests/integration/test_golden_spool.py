"""Spools written by each released version are read, replayed and accounted for, for ever.

`golden/<version>/spool/` is a spool as that version left it, `golden/<version>/expected.json` what becomes of
it. To make the one of the current version:

    python -m tests.integration.test_golden_spool
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import pytest
from msgspec.structs import asdict

from cwsink import host
from cwsink.config import SinkConfig
from cwsink.flusher.commits import Cursor
from cwsink.spool import cursor, directory, disk, frame, record, segment
from cwsink.spool.survey import survey
from cwsink.testing import StrictCloudWatch
from tests.harness.interleave import deliver, segments
from tests.harness.support import quick_config

GOLDEN = Path(__file__).parent / "golden"
VERSIONS = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())
# When the golden records were written: 2024-05-06T07:08:09Z. The server's clock stands an hour later.
WRITTEN_MS = 1_714_979_289_000
HOUR_MS = 3_600_000


def test_there_is_a_golden_spool_of_the_current_format() -> None:
    """A change of the format brings a new golden spool, and keeps the old one."""
    assert f"format-{directory.FORMAT_VERSION}" in VERSIONS


@pytest.mark.parametrize("version", VERSIONS)
def test_a_golden_spool_is_replayed_as_it_always_was(tmp_path: Path, version: str) -> None:
    """Its events arrive byte for byte, in order, once; its damage, losses and ledger are what they were.

    What cwsink itself says of losses is worded by the version that sends.
    """
    expected = json.loads((GOLDEN / version / "expected.json").read_text(encoding="utf-8"))
    path = tmp_path / "spools" / "golden"
    shutil.copytree(GOLDEN / version / "spool", path)
    path.chmod(0o700)
    with StrictCloudWatch(clock=lambda: (WRITTEN_MS + HOUR_MS) / 1000) as server:
        assert outcome(str(path), server) == expected
        server.assert_clean()


@pytest.mark.parametrize("version", VERSIONS)
def test_a_golden_spool_can_be_appended_to(tmp_path: Path, version: str) -> None:
    """The current version goes on where the old one stopped: the newest segment, the ledger, the epoch."""
    path = tmp_path / "spools" / "golden"
    shutil.copytree(GOLDEN / version / "spool", path)
    path.chmod(0o700)
    spool = directory.open_existing(str(path))
    before = survey(spool)
    newest = segments(spool)[-1]
    attached = segment.attach_newest(spool.ring)
    assert attached is not None
    assert attached.key.number == newest
    data = frame.encode(record.encode((WRITTEN_MS, 9, 0, "of the current version")), attached.key.salt)
    assert os.write(attached.fd, data) == len(data)
    del attached
    after = survey(spool)
    assert (after.adds_up, after.appended, after.pending) == (True, before.appended + 1, before.pending + 1)


def outcome(path: str, server: StrictCloudWatch) -> dict[str, Any]:
    """Replay the spool at `path` and return what became of it, JSON-ready."""
    config = quick_config(server.endpoint_url, flusher="external")
    spool = directory.open_existing(path)
    spool = directory.SpoolDirectory(path, msgspec.structs.replace(spool.format, endpoint_url=server.endpoint_url))
    before = survey(spool)
    for _ in range(2):  # the second leader finishes what the first could prove only at its end
        deliver(spool, config)
    books = survey(spool)
    letters = Path(spool.dead_letters)
    return {
        "target": [spool.format.log_group_name, spool.format.log_stream_name, spool.format.region],
        "pending_before": before.pending,
        "events": [[event.timestamp, event.message] for event in server.events()],
        "dead_letters": [
            {name: value for name, value in json.loads(line).items() if name != "time"}
            for line in (letters.read_text(encoding="utf-8").splitlines() if letters.exists() else [])
        ],
        "ledger": {name: value for name, value in asdict(books).items() if name not in ("epoch", "oldest_pending_ms")},
        "segments_left": segments(spool),
    }


def make(path: Path) -> None:
    """Write a spool that has one of everything, the same bytes each time."""
    salts = itertools.count(0x5A17_0001)
    config = SinkConfig(log_group_name="/golden/group", log_stream_name="golden-stream", region="eu-central-1")

    def urandom(count: int) -> bytes:
        return next(salts).to_bytes(4, "little") * (count // 4)

    with (
        mock.patch.object(os, "urandom", urandom),
        mock.patch.object(host, "name", return_value="golden-host"),
        mock.patch.object(directory.time, "strftime", return_value="2024-05-06T07:08:09Z"),
        mock.patch.object(segment.time, "time", return_value=WRITTEN_MS / 1000),
        mock.patch.object(disk, "reserve", return_value=False),
    ):
        spool = directory.open_for(
            SinkConfig(**{**asdict(config), "spool_directory": str(path.parent)}), {"HOME": str(path.parent)}
        )
        spool_id = bytes.fromhex(spool.format.spool_id)
        write_ring(spool, spool_id)
    os.truncate(spool.cursor, 512)  # the slot that counts; the older one begins at 64 KiB
    os.rename(spool.path, path)


def write_ring(spool: directory.SpoolDirectory, spool_id: bytes) -> None:
    """Three segments: one partly committed, one with a torn fragment and damage in it, one with a torn end."""
    producer = 0x1122_3344_5566_7788
    sequence = itertools.count()

    def event(text: str, seconds: int) -> bytes:
        return record.encode(record.Event(WRITTEN_MS + 1000 * seconds, producer, next(sequence), text))

    texts = ["delivered already", "and this one too", "plain", "späte Züge 🚂 日本語", "two\nlines \0 and a NUL"]
    first = segment_with(spool, spool_id, 1)
    ends = [append(first, event(text, number)) for number, text in enumerate(texts)]

    second = segment_with(spool, spool_id, 2)
    append(second, event("before the torn fragment", 10))
    torn = frame.encode(event("never finished by a killed writer", 11), second.key.salt)
    os.write(second.fd, torn[: len(torn) // 2])
    append(second, event("after the torn fragment", 12))
    start = os.fstat(second.fd).st_size
    append(second, event("changed on disk", 13))
    with open(segment.path_of(spool.ring, 2), "r+b") as file:
        file.seek(start + frame.HEADER_BYTES + 20)
        file.write(b"????")
    append(second, event("after the damage", 14))
    append(second, record.encode(record.Loss(1234, WRITTEN_MS, WRITTEN_MS + 9000, "spool_full", producer)), frame.LOSS)
    append(second, b"of a later version", 200, frame.FLAG_OPTIONAL)

    third = segment_with(spool, spool_id, 3)
    append(third, event("an hour before the others", -3600))
    append(third, event("x" * 300, 20))
    append(third, event("the last whole one", 21))
    os.write(third.fd, frame.encode(event("cut by the end", 22), third.key.salt)[:33])

    leader = Cursor(spool.cursor)
    state = leader.take_over("golden-host/1")
    state.offsets = [cursor.Offset(first.key.number, first.key.salt, ends[1])]
    state.ledger.appended = state.ledger.delivered = 2
    leader.commit(state)
    leader.close()


def segment_with(spool: directory.SpoolDirectory, spool_id: bytes, number: int) -> segment.AttachedSegment:
    assert segment.create(spool.ring, number, spool_id, 0)
    attached = segment.attach_newest(spool.ring)
    assert attached is not None
    assert attached.key.number == number
    return attached


def append(attached: segment.AttachedSegment, payload: bytes, kind: int = frame.EVENT, flags: int = 0) -> int:
    """Append a frame and return the offset of its end."""
    os.write(attached.fd, frame.encode(payload, attached.key.salt, kind, flags))
    return os.fstat(attached.fd).st_size


def write_golden() -> None:
    """Make the golden spool of the current format, unless there is one: it never changes."""
    target = GOLDEN / f"format-{directory.FORMAT_VERSION}"
    if target.exists():
        raise SystemExit(f"{target} is there already, and stays as it is")
    target.mkdir(parents=True)
    make(target / "spool")
    copy = target / "copy"
    shutil.copytree(target / "spool", copy)
    copy.chmod(0o700)
    os.environ.update(AWS_ACCESS_KEY_ID="golden", AWS_SECRET_ACCESS_KEY="golden")
    with StrictCloudWatch(clock=lambda: (WRITTEN_MS + HOUR_MS) / 1000) as server:
        expected = outcome(str(copy), server)
        server.assert_clean()
    shutil.rmtree(copy)
    text = json.dumps(expected, indent=1, ensure_ascii=False)
    (target / "expected.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_golden()
