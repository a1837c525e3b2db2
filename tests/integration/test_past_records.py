"""`cwsink tail --since` and `cwsink export`: delivered and pending records, in order of time."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cwsink.cli import main
from cwsink.frontends.writer import Writer
from cwsink.spool import past_records, segment
from cwsink.spool.record import Event
from cwsink.testing import StrictCloudWatch
from tests.harness.interleave import SMALL, deliver
from tests.harness.support import quick_config


def test_what_was_logged_is_shown_whether_delivered_or_not(
    server: StrictCloudWatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Over history, the newest segment and a hollow one, in order of time; filtered; also compressed."""
    config = quick_config(server.endpoint_url, segment_bytes=SMALL, flusher="external", keep_delivered="1h")
    now, idle, writer = int(time.time() * 1000), Writer(config), Writer(config)
    entry = {"level": "INFO", "logger": "idle", "message": "first", "timestamp": "2026-01-02T00:00:00.000Z"}
    assert idle.append(json.dumps(entry), now - 3_000_000)
    for number in range(60):
        late = 5 if number % 10 == 3 else 0  # it is appended after newer ones
        name, level = ("shop.cart", "ERROR") if number % 2 else ("web", "INFO")
        text = json.dumps({**entry, "level": level, "logger": name, "message": f"n{number}", "pad": "x" * 200})
        assert writer.append(text, now - (60 - number + late) * 60_000 - 30_000)
        if number == 40:
            deliver(writer.directory, config)
    assert len(segment.numbers(writer.directory.history)) > 1
    assert main(["export"]) == 0
    whole = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert len(whole) == 61
    assert [each["timestamp_ms"] for each in whole] == sorted(each["timestamp_ms"] for each in whole)
    assert len({each["id"] for each in whole}) == 61
    target = tmp_path / "events.jsonl.gz"
    assert main(["export", "--since", "30m", "--until", "10m", "-o", str(target)]) == 0
    with gzip.open(target, "rt") as file:
        found = [json.loads(line)["timestamp_ms"] for line in file]
    assert found == [each["timestamp_ms"] for each in whole if now - 1_800_000 <= each["timestamp_ms"] < now - 600_000]
    capfd.readouterr()
    assert main(["tail", "--since", "2h", "--logger", "shop.*", "--level", "error", "--grep", "n5"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.split("ERROR")[1].split()[1] for line in lines] == ["n5", "n53", "n51", "n55", "n57", "n59"]
    assert main(["tail", "--json"]) == 0
    assert len(capfd.readouterr().out.splitlines()) == 19  # what is pending, as before
    with pytest.raises(SystemExit):
        main(["tail", "-f", "--since", "1h"])
    idle.close()
    writer.close()


@given(st.lists(st.integers(0, 50)), st.integers(1, 20))
def test_a_record_is_in_its_place_if_it_is_not_too_late(times: list[int], most: int) -> None:
    """None is lost; those that come less than so many records late are in order, and equal times stay as they are."""
    events = [Event(each, 1, index, "") for index, each in enumerate(times)]
    found = list(past_records.in_order(events, most))
    assert sorted(found, key=lambda each: each.sequence) == events
    late = [sum(other > each for other in times[:index]) for index, each in enumerate(times)]
    if max(late, default=0) < most:
        assert found == sorted(events, key=lambda each: each.timestamp_ms)
