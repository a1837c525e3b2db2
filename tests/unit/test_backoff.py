"""Waiting grows, is jittered, has a ceiling, and never ends in giving up."""

from __future__ import annotations

import pytest

from cwsink.flusher.backoff import MAX_DELAY_SECONDS, OPEN_SECONDS, SLOW_DELAY_SECONDS, Backoff, SendInterval

ALMOST_ONE = 1 - 2**-53


def test_the_wait_doubles_up_to_its_ceiling() -> None:
    """With the same luck each wait is twice the last one, until 20 s."""
    backoff = Backoff(0.5, 3, None)
    waits = [backoff.failed(0.5) for _ in range(10)]
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0, 10.0, 10.0, 10.0]


@pytest.mark.parametrize("failures", [1, 2, 5, 10])
def test_the_jitter_is_full(failures: int) -> None:
    """Any share of the wait, from none to all of it, so that hosts that failed together come back spread out."""
    ceiling = min(MAX_DELAY_SECONDS, 0.5 * 2.0**failures)
    for uniform in (0.0, 0.25, 0.5, ALMOST_ONE):
        backoff = Backoff(0.5, 3, None)
        for _ in range(failures - 1):
            backoff.failed(0.9)
        assert backoff.failed(uniform) == pytest.approx(uniform * ceiling)


def test_there_is_no_last_attempt() -> None:
    """After a hundred thousand failures the wait is what it was after ten; nothing overflows."""
    backoff = Backoff(0.5, 3, None)
    for _ in range(100_000):
        assert 0 <= backoff.failed(ALMOST_ONE) <= MAX_DELAY_SECONDS
    assert backoff.failures == 100_000
    assert not backoff.is_open


def test_without_a_base_nothing_is_waited_for() -> None:
    """`retry_base_delay=0` is what its user asked for."""
    assert Backoff(0.0, 3, None).failed(0.5) == 0.0


def test_a_cause_that_is_not_load_is_waited_for_evenly() -> None:
    """Credentials and policies: 5 to 10 s each time, however often it failed."""
    backoff = Backoff(0.5, 0, None)
    for _ in range(20):
        assert backoff.failed(0.0, slow=True) == SLOW_DELAY_SECONDS / 2
        assert backoff.failed(ALMOST_ONE, slow=True) == pytest.approx(SLOW_DELAY_SECONDS)


@pytest.mark.parametrize(("max_retries", "threshold"), [(0, 1), (3, 5), (1, 2)])
def test_the_circuit_opens_after_threshold_times_all_retries(max_retries: int, threshold: int) -> None:
    """`max_retries` + 1 failures in a row are one for the breaker; open, each wait ends in one probe."""
    backoff = Backoff(0.5, max_retries, threshold)
    opens_at = (max_retries + 1) * threshold
    for failures in range(1, opens_at):
        assert backoff.failed(0.5) <= MAX_DELAY_SECONDS / 2
        assert not backoff.is_open, failures
    assert backoff.failed(0.0) == OPEN_SECONDS / 2
    assert backoff.is_open
    assert backoff.failed(ALMOST_ONE) == pytest.approx(OPEN_SECONDS)
    assert backoff.is_open


def test_one_success_forgets_all_failures() -> None:
    """The circuit closes and the next failure is a first one."""
    backoff = Backoff(0.5, 0, 1)
    backoff.failed(0.5)
    assert backoff.is_open
    backoff.succeeded()
    assert not backoff.is_open
    assert backoff.failures == 0
    assert Backoff(0.5, 3, 5).failed(0.5) == 0.5


def test_a_breaker_that_is_off_never_opens() -> None:
    """`circuit_breaker_enabled=False`: the wait stays the jittered one."""
    backoff = Backoff(0.5, 0, None)
    for _ in range(50):
        backoff.failed(0.5)
    assert not backoff.is_open
    assert backoff.failed(0.5) == MAX_DELAY_SECONDS / 2


def test_who_is_throttled_sends_less_often_and_comes_back() -> None:
    """It doubles with each throttled call, up to 20 s; a hundred accepted ones, and it is what was asked for."""
    interval = SendInterval(1.0)
    seconds = []
    for _ in range(6):
        interval.throttled()
        seconds.append(interval.seconds)
    assert seconds == [2.0, 4.0, 8.0, 16.0, MAX_DELAY_SECONDS, MAX_DELAY_SECONDS]
    for _ in range(100):
        before = interval.seconds
        interval.accepted()
        assert interval.seconds <= before
    assert interval.seconds == 1.0


def test_a_send_interval_is_never_shorter_than_asked_for() -> None:
    """A batch time-out beyond the ceiling stays as it is, throttled or not."""
    interval = SendInterval(60.0)
    interval.throttled()
    assert interval.seconds == 60.0
    interval.accepted()
    assert interval.seconds == 60.0
