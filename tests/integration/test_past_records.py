"""`cwsink tail --since` and `cwsink export`: delivered and pending records, in order of time."""

from __future__ import annotations

import gzip
import json
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cwsink.cli import export, main, tail
from cwsink.config import SinkConfig
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
    with mock.patch.object(tail, "Follower", side_effect=AssertionError("it opens each segment in vain")):
        assert main(["tail", "--since", "2h", "--logger", "shop.*", "--level", "error", "--grep", "n5"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.split("ERROR")[1].split()[1] for line in lines] == ["n5", "n53", "n51", "n55", "n57", "n59"]
    assert main(["tail", "--json"]) == 0
    assert len(capfd.readouterr().out.splitlines()) == 19  # what is pending, as before
    with pytest.raises(SystemExit):
        main(["tail", "-f", "--since", "1h"])
    idle.close()
    writer.close()


def test_an_export_replaces_its_file_as_a_whole(
    small: SinkConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """No spool, or Ctrl-C in between: the file is as before. Its mode and a link to it stay; a pipe stays one."""
    target, link = tmp_path / "events.jsonl", tmp_path / "link"
    target.write_text("before")
    target.chmod(0o600)
    link.symlink_to(target)
    assert main(["export", "-o", str(link), str(tmp_path)]) == 1
    assert "holds no spool" in capfd.readouterr().err
    writer = Writer(small)
    assert writer.append("x")
    with monkeypatch.context() as patch:
        patch.setattr(export.heapq, "merge", interrupted)
        assert main(["export", "-o", str(link)]) == 1
    assert target.read_text() == "before"
    assert main(["export", "-o", str(link)]) == 0
    assert json.loads(target.read_text())["message"] == "x"
    assert (target.stat().st_mode & 0o777, link.is_symlink()) == (0o600, True)
    assert not list(tmp_path.glob("*.tmp")), "nothing is left beside it"
    capfd.readouterr()
    assert main(["export", "-o", "/dev/stdout"]) == 0
    assert json.loads(capfd.readouterr().out)["message"] == "x"
    pipe = tmp_path / "pipe.gz"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    assert main(["export", "-o", str(pipe)]) == 0
    assert json.loads(gzip.decompress(os.read(reader, 65536)))["message"] == "x"
    os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.parametrize("words", [("export", "-o"), ("metrics", "--textfile")], ids=" ".join)
def test_a_file_that_cannot_be_written_is_named(
    small: SinkConfig, tmp_path: Path, capfd: pytest.CaptureFixture[str], words: tuple[str, str]
) -> None:
    """As the user has named it: the name of a temporary file tells nobody anything."""
    writer = Writer(small)
    assert writer.append("x")
    (tmp_path / "file").touch()
    for path, why in (
        (tmp_path / "missing" / "x", "No such file or directory"),
        (tmp_path, "Is a directory"),
        (tmp_path / "file" / "x", "Not a directory"),
        (tmp_path / ("x" * 250), "File name too long"),
        ("/dev/full", "No space left on device"),
    ):
        assert main([*words, str(path)]) == 1
        assert capfd.readouterr() == ("", f"cwsink: cannot write {path}: {why}\n")


def interrupted(*_: object, **__: object) -> Iterator[Event]:
    """A first event, then Ctrl-C."""
    yield Event(1, 7, 0, "a part")
    raise KeyboardInterrupt


@given(st.lists(st.integers(0, 50)), st.integers(1, 20))
def test_a_record_is_in_its_place_if_it_is_not_too_late(times: list[int], most: int) -> None:
    """None is lost; those that come less than so many records late are in order, and equal times stay as they are."""
    events = [Event(each, 1, index, "") for index, each in enumerate(times)]
    found = list(past_records.in_order(events, most))
    assert sorted(found, key=lambda each: each.sequence) == events
    late = [sum(other > each for other in times[:index]) for index, each in enumerate(times)]
    if max(late, default=0) < most:
        assert found == sorted(events, key=lambda each: each.timestamp_ms)
