"""How long to wait after a failure (pure: randomness comes in as an argument).

Hosts that failed together must not come back together. So the wait is a random share of `base * 2^n` ("full jitter",
AWS Architecture Blog, "Exponential Backoff And Jitter"). There is no last attempt: the records stay in the spool until
they are delivered.
"""

from __future__ import annotations

from typing import Final

# A longer wait would be felt after an outage has ended, and a shorter one would only make more calls.
MAX_DELAY_SECONDS: Final = 20.0
# People or programs correct credentials and policies. The leader must notice that well within a minute.
SLOW_DELAY_SECONDS: Final = 10.0
# As in fapilog, whose own circuit breaker probes after 30 s.
OPEN_SECONDS: Final = 30.0
_SLOWER: Final = 2.0
_FASTER: Final = 0.95


class Backoff:
    """Counts failures in a row, and says how long to wait after each."""

    def __init__(self, base_seconds: float, max_retries: int, breaker_threshold: int | None) -> None:
        """`max_retries` + 1 failures in a row count as one for the breaker. None: there is no breaker."""
        self._base = base_seconds
        self._per_breaker_failure = max_retries + 1
        self._threshold = breaker_threshold
        self.failures = 0

    @property
    def is_open(self) -> bool:
        """Tell whether the circuit is open: sending pauses, and each pause ends with one probe."""
        return self._threshold is not None and self.failures >= self._per_breaker_failure * self._threshold

    def failed(self, uniform: float, *, slow: bool = False) -> float:
        """Count a failure; return the seconds to wait.

        Args:
            uniform: a random number in [0, 1).
            slow: waiting longer each time would not help, because the cause is not load. The delay does not grow.
        """
        self.failures += 1
        if slow:
            return SLOW_DELAY_SECONDS * (0.5 + uniform / 2)
        if self.is_open:
            return OPEN_SECONDS * (0.5 + uniform / 2)
        return uniform * min(MAX_DELAY_SECONDS, self._base * 2.0 ** min(self.failures, 16))

    def succeeded(self) -> None:
        """Forget the failures, because a call has succeeded."""
        self.failures = 0


class SendInterval:
    """How long to gather records for a call: longer than asked for, while the account's quota is used up.

    Hosts may share a quota. With back-off alone, a throttled host waits longer each time, while a lucky host sends as
    often as ever and leaves nothing to the others. So every throttled host sends less often for a while. In
    benchmarks.fleet 50 hosts share half the calls they ask for: the worst lag is 40 s with back-off alone, and 13 s so.
    """

    def __init__(self, least_seconds: float) -> None:
        self._least_seconds = self.seconds = least_seconds

    def throttled(self) -> None:
        """Send half as often. To be called for the first of several failures in a row: the others say nothing new."""
        self.seconds = min(self.seconds * _SLOWER, max(self._least_seconds, MAX_DELAY_SECONDS))

    def accepted(self) -> None:
        """Come back a little towards the interval that was asked for, because CloudWatch has taken a request."""
        self.seconds = max(self._least_seconds, self.seconds * _FASTER)
