"""The worked example of `cwsink.spool`, lived: segments, offsets and cursor are at each step what the page says."""

from __future__ import annotations

import os
import re
import time
from unittest import mock

import cwsink.spool
from cwsink.flusher.cloudwatch import CloudWatch
from cwsink.flusher.commits import Cursor
from cwsink.frontends.writer import Writer
from cwsink.spool import cursor, frame, segment
from cwsink.spool.cursor import State
from tests.harness.fake_cloudwatch import FakeCloudWatch
from tests.harness.interleave import SMALL, deliver, segment_path, segments
from tests.harness.support import quick_config

FRAME_BYTES, TORN_BYTES = 100, 30
MESSAGE_BYTES = FRAME_BYTES - 22 - frame.HEADER_BYTES  # time, producer, sequence and lengths take 22


def test_the_worked_example_is_what_happens() -> None:
    """Each step is told in the words of the page, and found there in this order."""
    config = quick_config(segment_bytes=SMALL, max_batch_events=50, flusher="external")
    writer = Writer(config)
    spool = writer.directory
    story: list[str] = []

    def sizes() -> dict[int, int]:
        return {number: os.path.getsize(segment_path(spool, number)) for number in segments(spool)}

    def commit(held: Cursor, state: State) -> None:
        ended.append(sizes())
        real_commit(held, state)
        offsets = ", ".join(f"{each.number}.seg {each.offset}" for each in cursor.read(spool.cursor).offsets)
        ledger = state.ledger
        corrupt = f", corrupt_bytes {ledger.corrupt_bytes}" if ledger.corrupt_bytes else ""
        story.append(f"cursor: {offsets} ledger: delivered {ledger.delivered}{corrupt}")

    def append(count: int, writer: Writer) -> None:
        for number in range(count):
            assert writer.append(f"{number:0{MESSAGE_BYTES}}")

    real_commit, ended = Cursor.commit, list[dict[int, int]]()
    fake = FakeCloudWatch(lambda: time.time_ns() // 1_000_000)
    with mock.patch.object(CloudWatch, "put", fake.method()), mock.patch.object(Cursor, "commit", commit):
        append(90, writer)
        story += [f"{number}.seg {segment.HEADER_BYTES}..{end}" for number, end in sizes().items()]
        deliver(spool, config)
        assert [list(each) for each in ended] == [[1, 2, 3], [2, 3]]
        assert list(sizes()) == [3]
        with open(segment_path(spool, 3), "ab") as file:
            file.write(frame.encode(b"." * (FRAME_BYTES - frame.HEADER_BYTES), writer._ring.attached.salt)[:TORN_BYTES])
        begin = sizes()[3]
        story.append(f"3.seg ends at {begin}")
        append(1, Writer(config))
        story += [f"its frame is {begin}..{sizes()[3]}", f"{begin - TORN_BYTES}..{begin} is torn"]
        deliver(spool, config)
    page = " ".join((cwsink.spool.__doc__ or "").split())
    told = [re.search(re.escape(step), page) for step in story]
    assert all(told), dict(zip(story, told, strict=True))
    places = [found.start() for found in told if found]
    assert places == sorted(places)
    assert len(fake.messages()) == 91
