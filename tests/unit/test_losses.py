"""What is refused is counted exactly, and told in few markers."""

from __future__ import annotations

from cwsink.frontends.losses import Losses
from cwsink.spool.record import Loss

PRODUCER = 7


def test_refusals_are_counted_by_reason_with_their_times() -> None:
    """One marker for each reason, with the count and the first and last time, whatever order they came in."""
    losses = Losses()
    assert not losses.pending
    for reason, time in [("spool_full", 20), ("io_error", 50), ("spool_full", 10), ("spool_full", 30)]:
        losses.add(reason, time)
    assert losses.pending
    taken = losses.take(0.0, PRODUCER, still_full=False)
    assert taken == [Loss(3, 10, 30, "spool_full", PRODUCER), Loss(1, 50, 50, "io_error", PRODUCER)]


def test_taking_begins_anew() -> None:
    """What was taken is not told twice."""
    losses = Losses()
    losses.add("spool_full", 1)
    losses.take(0.0, PRODUCER, still_full=False)
    assert not losses.pending
    assert losses.take(0.0, PRODUCER, still_full=False) == []
    losses.add("spool_full", 9)
    assert losses.take(0.0, PRODUCER, still_full=False) == [Loss(1, 9, 9, "spool_full", PRODUCER)]


def test_markers_of_an_outage_come_ever_more_rarely() -> None:
    """While the spool is full: at once, after 1 s, 2, 4 ... and then every 60 s."""
    losses, now, pauses, last = Losses(), 100.0, [], 100.0
    while len(pauses) < 10:
        losses.add("spool_full", 1)
        if losses.is_due(now):
            losses.take(now, PRODUCER, still_full=True)
            pauses.append(now - last)
            last = now
        now += 0.5
    assert pauses == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]


def test_an_hour_of_a_full_spool_is_few_markers() -> None:
    """An hour at fifty refusals a second is at most 70 markers, and every refusal is in one of them."""
    losses, told, markers = Losses(), 0, 0
    for tick in range(3_600 * 10):
        now = tick / 10
        for _ in range(5):
            losses.add("spool_full", tick)
        if losses.is_due(now):
            told += sum(loss.count for loss in losses.take(now, PRODUCER, still_full=True))
            markers += 1
    told += sum(loss.count for loss in losses.take(3_600.0, PRODUCER, still_full=False))
    assert told == 3_600 * 50
    assert markers <= 70


def test_room_again_ends_the_pauses() -> None:
    """The next time the spool is full, the first marker is written at once."""
    losses = Losses()
    for now in (0.0, 1.0, 3.0):
        losses.add("spool_full", 1)
        assert losses.is_due(now)
        losses.take(now, PRODUCER, still_full=True)
    losses.add("spool_full", 1)
    assert not losses.is_due(3.5)
    losses.take(3.5, PRODUCER, still_full=False)
    losses.add("spool_full", 1)
    assert losses.is_due(3.5)


def test_nothing_lost_is_nothing_due() -> None:
    """No marker is written for no loss, however long it has been."""
    assert not Losses().is_due(1e9)


def test_a_marker_that_could_not_be_written_is_counted_again() -> None:
    """Put back, losses add to what came meanwhile: counts sum up, times cover both."""
    losses = Losses()
    losses.add("spool_full", 10)
    losses.add("io_error", 11)
    taken = losses.take(0.0, PRODUCER, still_full=True)
    losses.add("spool_full", 5)
    losses.put_back(taken)
    assert losses.pending
    assert losses.take(1.0, PRODUCER, still_full=False) == [
        Loss(2, 5, 10, "spool_full", PRODUCER),
        Loss(1, 11, 11, "io_error", PRODUCER),
    ]


def test_a_marker_that_is_put_back_alone_is_unaltered() -> None:
    """No count and no time is lost between taking and putting back."""
    losses = Losses()
    for time in (10, 20):
        losses.add("spool_full", time)
    losses.put_back(losses.take(0.0, PRODUCER, still_full=True))
    assert losses.take(1.0, PRODUCER, still_full=False) == [Loss(2, 10, 20, "spool_full", PRODUCER)]
