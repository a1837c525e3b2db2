"""`cwsink verify` against a server that lies: the account says what CloudWatch has of what was delivered."""

from __future__ import annotations

import json
import os
import time
from unittest import mock

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import asdict

from cwsink.cli import main
from cwsink.config import SinkConfig
from cwsink.errors import ReadBackError
from cwsink.flusher import collector, delivery, self_metrics, verification
from cwsink.flusher.account import Span, compare, key_of, windows
from cwsink.flusher.verification import Account, Verification
from cwsink.frontends.writer import Writer
from cwsink.spool import segment
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.record import Loss
from cwsink.testing import StrictCloudWatch
from tests.harness.interleave import SMALL, deliver
from tests.harness.support import quick_config

FAST = 1_000.0  # calls a second: the quota is the account's, and nobody's here


@pytest.fixture
def keeping(server: StrictCloudWatch) -> SinkConfig:
    """Small segments and requests, and a history."""
    return quick_config(
        server.endpoint_url, segment_bytes=SMALL, flusher="external", max_batch_events=10, keep_delivered="1h"
    )


def log(config: SinkConfig, count: int, *, first: int = 0, text: str = "y" * 100) -> SpoolDirectory:
    writer = Writer(config)
    for number in range(first, first + count):
        assert writer.append(f"{number:05d} {text}")
    writer.close()
    return writer.directory


def verify(directory: SpoolDirectory, *, patience: float = 0.0, window_events: int = 50_000) -> Account:
    with mock.patch.object(verification, "WINDOW_EVENTS", window_events):
        return Verification(directory, lambda *_: None, calls_per_second=FAST).run(patience_seconds=patience)


def test_what_cwsink_says_itself_is_known_as_that() -> None:
    """As those word it who say it: a notice of loss, the trial line, metrics. A record that speaks of cwsink is not."""
    said = collector.notice(Loss(12, 0, 9_000, "spool_full", 1)).message
    metrics = self_metrics.embedded(0, "/shop/prod", "shop", {"Pending": 1.0})
    assert all(map(verification.is_of_cwsink, (said, metrics, delivery.CANARY)))
    assert not verification.is_of_cwsink('{"message":"cwsink: started","logger":"shop"}')


def test_all_that_was_delivered_is_found(server: StrictCloudWatch, keeping: SinkConfig) -> None:
    """In parts, cut, of several streams, embedded metrics, and lines that others wrote; in small windows."""
    config = SinkConfig(
        **{**asdict(keeping), "log_stream_name": "s-{date:%H-%M}", "oversize": "split", "max_event_bytes": 2_000}
    )
    writer, now = Writer(config), int(time.time() * 1000)
    for number in range(100):
        text = (
            json.dumps({"_aws": {}, "n": number})
            if number % 5 == 0
            else f"{number} " + "é" * (1_500 * (number % 7 == 0))
        )
        assert writer.append(text, now - number * 1_000)
        assert writer.append("the same text at the same time", now)
    writer.close()
    deliver(writer.directory, config)
    account = verify(writer.directory, window_events=17)
    parts = sum(event.message.startswith('{"_cwsink_part"') for event in server.events())
    assert parts > 15
    assert account.is_whole
    assert account.found == len(list(server.events())) > 200
    assert (account.others, account.repeated, account.forgotten, account.unnoted_bytes) == (0, {}, 0, 0)


def test_a_lie_is_found_out(server: StrictCloudWatch, keeping: SinkConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """CloudWatch says it has an event and has not, or has it twice; somebody else writes to the stream."""
    directory = log(keeping, 10)
    deliver(directory, keeping)
    server.faults.keep_all_but_one(2)
    log(keeping, 20, first=10)
    deliver(directory, keeping)
    server.faults.store_twice()
    log(keeping, 10, first=30)
    deliver(directory, keeping)
    foreign = SinkConfig(**{**asdict(keeping), "spool_directory": f"{directory.root}-other", "keep_delivered": None})
    deliver(log(foreign, 3, text="of another program"), foreign)
    time.sleep(0.002)
    server.faults.drop_connection_after_storing()
    log(keeping, 30, first=40)
    deliver(directory, keeping)
    account = verify(directory)
    assert (account.found, account.not_yet, account.missing, account.others) == (68, 2, 0, 3)
    assert account.repeated == {"leader_death": 10, "lost_answer": 10}  # the first request of a leader
    monkeypatch.setattr(verification, "LATE_SECONDS", 0.0)
    account = verify(directory)
    assert (account.not_yet, account.missing) == (0, 2)
    assert [each.message[:5] for each in account.listed] == ["00015", "00025"]
    assert all(each.request_id and each.stream == "stream" for each in account.listed)
    server.delete_stream("/test/group", "stream")
    account = verify(directory)
    assert (account.found, account.missing) == (0, 70)


def test_what_is_shown_late_is_waited_for(server: StrictCloudWatch, keeping: SinkConfig) -> None:
    """The account is made once CloudWatch shows it; and it says that it waits."""
    directory = log(keeping, 30)
    deliver(directory, keeping)
    server.faults.late_seconds = 3_600.0
    told: list[int] = []

    def show(_done: int, _share: float, late: int) -> None:
        told.append(late)
        if late:
            server.faults.late_seconds = 0.0

    account = Verification(directory, show, calls_per_second=FAST).run(patience_seconds=30.0)
    assert (account.found, account.not_yet, account.is_whole) == (30, 0, True)
    assert 30 in told


def test_an_interrupted_verification_goes_on(server: StrictCloudWatch, keeping: SinkConfig) -> None:
    """What was compared is not read again; an action that is not allowed is named."""
    directory = log(keeping, 100)
    deliver(directory, keeping)
    time.sleep(0.002)
    server.faults.pass_next(4, action="GetLogEvents")
    server.faults.fail_next(1, "AccessDeniedException", action="GetLogEvents")
    with pytest.raises(ReadBackError, match="logs:GetLogEvents"):
        verify(directory, window_events=10)
    before = server.calls["GetLogEvents"]
    account = verify(directory, window_events=10)
    assert (account.found, account.is_whole) == (100, True)
    whole = server.calls["GetLogEvents"] - before
    verify(directory, window_events=10)
    assert server.calls["GetLogEvents"] - before - whole > whole
    assert not os.path.exists(f"{directory.history}/verify.json")


KEYS = st.lists(st.sampled_from("abcdefgh").map(str.encode), max_size=30)


@given(KEYS, KEYS)
def test_each_event_is_in_one_class(sent: list[bytes], shown: list[bytes]) -> None:
    """Found and missing are all that was sent; found, repeated and others are all that is shown."""
    found = compare(sent, shown)
    assert found.found + found.missing.total() == len(sent)
    assert found.found + found.repeated.total() + found.others.total() == len(shown)
    assert not found.missing.keys() & (found.repeated.keys() | found.others.keys())
    assert found.repeated.keys() <= set(sent)
    assert not found.others.keys() & set(sent)


SPANS = st.lists(
    st.tuples(st.integers(0, 1_000), st.integers(0, 50), st.integers(1, 40)).map(
        lambda each: Span(each[0], each[0] + each[1], each[2])
    )
)


@given(SPANS, st.integers(0, 1_100), st.integers(0, 1_100), st.integers(1, 200))
@example([Span(0, 1, 1)], 1, 1, 1)
def test_windows_hold_each_event_once(spans: list[Span], since: int, until: int, most: int) -> None:
    """They follow each other without a gap, from the first time that is wanted to the last."""
    found = windows(spans, since, until, most)
    assert all(start < end for start, end in found)
    assert [start for start, _ in found[1:]] == [end for _, end in found[:-1]]
    times = {time for each in spans for time in (each.first_ms, each.last_ms) if since <= time < until}
    assert all(sum(start <= time < end for start, end in found) == 1 for time in times)
    assert key_of(1, "a") != key_of(2, "a") != key_of(2, "b")


def test_a_command_that_sends_leaves_what_is_kept(server: StrictCloudWatch, keeping: SinkConfig) -> None:
    """`flush --once` and `replay` give back what the spool has reserved, and not what was delivered."""
    config = SinkConfig(**{**asdict(keeping), "segment_bytes": 16 * SMALL})
    directory = log(config, 200)
    deliver(directory, config)
    for words in (["flush", "--once"], ["replay", directory.path]):
        assert main(words) == 0
        log(config, 1, first=len(server.messages()))
        assert main(words) == 0
    account = verify(directory)
    assert (account.found, account.others, account.forgotten, account.is_whole) == (202, 0, 0, True)


def test_if_nothing_can_be_compared_it_is_not_verified(
    server: StrictCloudWatch, keeping: SinkConfig, capfd: pytest.CaptureFixture[str]
) -> None:
    """A cron job must not stay green although all that was delivered has left the history."""
    directory = log(keeping, 40)
    deliver(directory, keeping)
    for place in (directory.history, directory.ring):
        for number in segment.numbers(place):
            segment.remove(place, number)
    assert main(["verify", "--rate", "1000"]) == 1
    said = capfd.readouterr().out
    assert "nothing could be compared" in said
    assert "not compared: 40 events" in said
    assert main(["verify", "--rate", "1000", "--until", "1h"]) == 0  # nothing was delivered then


def test_the_command_says_what_it_finds(
    server: StrictCloudWatch, keeping: SinkConfig, capfd: pytest.CaptureFixture[str]
) -> None:
    """In words and as JSON; the exit code is 0 only if nothing is missing, and each spool was verified."""
    assert main(["verify", "--rate", "1000"]) == 1
    directory = log(keeping, 10)
    deliver(directory, keeping)
    capfd.readouterr()
    assert main(["verify", "--rate", "1000"]) == 0
    assert capfd.readouterr() == ("/test/group → stream: 10 events found, 0 missing.\n", "")
    server.faults.keep_all_but_one()
    log(keeping, 10, first=10)
    deliver(directory, keeping)
    assert main(["verify", "--rate", "1000", "--patience", "1ms"]) == 1
    assert "19 events found, 0 missing, 1 not shown yet.\n" in (said := capfd.readouterr().out)
    assert "→ stream: not shown yet: " in said
    assert "missing: " not in said
    assert "00015 yyy" in said
    assert main(["verify", "--json", "--rate", "1000", "--patience", "1ms"]) == 1
    (spool,) = json.loads(capfd.readouterr().out)["spools"]
    assert (spool["found"], spool["not_yet"], spool["listed"][0]["message"][:5]) == (19, 1, "00015")
    without = SinkConfig(**{**asdict(keeping), "keep_delivered": None, "log_stream_name": "other"})
    deliver(log(without, 3), without)
    assert main(["verify", "--rate", "1000", "--patience", "1ms", "--until", "1h", directory.path]) == 0
    capfd.readouterr()
    assert main(["verify", "--rate", "1000", "--patience", "1ms", "--until", "1h"]) == 1
    said = capfd.readouterr()
    assert "0 missing" in said.out
    assert "has no history, so it is not verified: set keep_delivered" in said.err
