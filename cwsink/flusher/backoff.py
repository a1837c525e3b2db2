"""How long to wait after a failure (pure: randomness comes in as an argument).

Full jitter (AWS Architecture Blog, "Exponential Backoff And Jitter"): a uniform
share of `base * 2^n`, so that hosts that failed together do not come back together.
There is no last attempt: the batch stays in the spool until it is delivered.
"""

from __future__ import annotations

from typing import Final

# Two minutes of waiting after an outage that has ended would be felt; more calls than this would not help.
MAX_DELAY_SECONDS: Final = 20.0
# Credentials and policies are changed by people or agents; within a minute of it we must be back.
SLOW_DELAY_SECONDS: Final = 10.0
# fapilog's own circuit breaker probes after 30 s.
OPEN_SECONDS: Final = 30.0
_SLOWER: Final = 2.0
_FASTER: Final = 0.95


class Backoff:
    """Consecutive failures, and the delay they ask for."""

    def __init__(self, base_seconds: float, max_retries: int, breaker_threshold: int | None) -> None:
        """`max_retries` + 1 failures in a row count as one for the breaker; None: no breaker."""
        self._base = base_seconds
        self._per_breaker_failure = max_retries + 1
        self._threshold = breaker_threshold
        self.failures = 0

    @property
    def is_open(self) -> bool:
        """Tell whether the circuit is open: sending pauses, and each delay ends in one probe."""
        return self._threshold is not None and self.failures >= self._per_breaker_failure * self._threshold

    def failed(self, uniform: float, *, slow: bool = False) -> float:
        """Count a failure; return the seconds to wait.

        Args:
            uniform: a random number in [0, 1).
            slow: the cause is not load: wait evenly rather than ever longer.
        """
        self.failures += 1
        if slow:
            return SLOW_DELAY_SECONDS * (0.5 + uniform / 2)
        if self.is_open:
            return OPEN_SECONDS * (0.5 + uniform / 2)
        return uniform * min(MAX_DELAY_SECONDS, self._base * 2.0 ** min(self.failures, 16))

    def succeeded(self) -> None:
        """Forget the failures."""
        self.failures = 0


class Gathering:
    """How long to gather records for a call: longer than asked for, while the account's quota is used up.

    Back-off alone is unfair among hosts that share a quota: who was throttled waits ever longer, who was lucky
    sends as often as ever and leaves nothing to the others. 50 hosts with half the calls they ask for
    (benchmarks.fleet): the worst lag is 40 s with back-off alone, 13 s if all of them send less often.
    """

    def __init__(self, least_seconds: float) -> None:
        self._least_seconds = self.seconds = least_seconds

    def throttled(self) -> None:
        """Send half as often. For the first of several failures in a row: more of them say nothing new."""
        self.seconds = min(self.seconds * _SLOWER, max(self._least_seconds, MAX_DELAY_SECONDS))

    def accepted(self) -> None:
        """Come back, little by little, to what was asked for."""
        self.seconds = max(self._least_seconds, self.seconds * _FASTER)
