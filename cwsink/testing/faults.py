"""How the strict server misbehaves, on request (state only, no I/O).

Set up by a test, asked by `gateway` once for each call. Three kinds:

* settings, true until changed: `latency_seconds`, `sequence_tokens`, `poison`;
* standing refusals: `throttle_rate`, `deny`;
* the script: the `..._next`, `drop_...` and `hang` calls add steps, and each call to
  the server uses up the first step that is meant for its action. So
  `pass_next(2); fail_next(1, "ThrottlingException")` fails the third call.
"""

from __future__ import annotations

import enum
import threading
import time
from collections import deque
from collections.abc import Callable
from itertools import repeat

import msgspec

from cwsink.testing.rules import ERRORS

PUT = "PutLogEvents"

JUNK = b"<html><body><h1>It works!</h1></body></html>"


class Kind(enum.Enum):
    """What a step does to the call that meets it."""

    PASS = "pass"
    FAIL = "fail"
    JUNK = "junk"
    DROP_BEFORE_STORING = "drop before storing"
    DROP_AFTER_STORING = "drop after storing"
    HANG = "hang"
    HANG_AFTER_STORING = "hang after storing"
    DELETE_STREAM = "delete stream"
    DELETE_GROUP = "delete group"


# These wait for a call that stored something; one that did not leaves the step in the script.
AFTER_STORING = frozenset((Kind.DROP_AFTER_STORING, Kind.HANG_AFTER_STORING))


class Step(msgspec.Struct, frozen=True):
    """One step of the script, for one call. `action` None means any action."""

    kind: Kind
    action: str | None = None
    code: str = ""
    status: int = 0
    message: str = ""
    seconds: float = 0.0
    body: bytes = b""


class Bucket(msgspec.Struct):
    """The token bucket of one rate."""

    rate: float
    burst: float
    tokens: float
    refilled_at: float

    def is_empty(self, now: float) -> bool:
        """Take a token; True when there is none."""
        self.tokens = min(self.burst, self.tokens + (now - self.refilled_at) * self.rate)
        self.refilled_at = now
        if self.tokens < 1.0:
            return True
        self.tokens -= 1.0
        return False


class Faults:
    """The misbehaviours of one server. Thread-safe.

    Attributes:
        latency_seconds: every answer is sent that much later; the call itself is
            judged and stored when it arrives.
        sequence_tokens: as before 2023, PutLogEvents needs the stream's next token.
        poison: PutLogEvents calls with a message that contains this text are refused
            with InvalidParameterException; not a violation.
    """

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._script: deque[Step] = deque()
        self.clear()

    def clear(self) -> None:
        """Behave again: no step, no refusal, no latency."""
        with self._lock:
            self.latency_seconds = 0.0
            self.sequence_tokens = False
            self.poison: str | None = None
            self._denied: set[str] = set()
            self._buckets: dict[str | None, Bucket] = {}
            self._script.clear()

    @property
    def pending(self) -> int:
        """Steps of the script that no call has met yet."""
        with self._lock:
            return len(self._script)

    def pass_next(self, n: int = 1, *, action: str | None = None) -> None:
        """Let n calls through before the steps that follow."""
        self._add(n, Step(Kind.PASS, action))

    def fail_next(
        self,
        n: int = 1,
        code: str = "ThrottlingException",
        status: int | None = None,
        *,
        action: str | None = None,
        message: str | None = None,
    ) -> None:
        """Answer n calls with an error, nothing stored.

        Args:
            code: the error code; "" sends an empty body, like a proxy in between.
            status: HTTP status; by default the one AWS sends with that code, else 400.
            action: only calls of this action; None means any.
        """
        if status is None:
            status = ERRORS.get(code, 400)
        if message is None:
            message = "Rate exceeded" if code == "ThrottlingException" else f"{code} on request"
        self._add(n, Step(Kind.FAIL, action, code, status, message))

    def junk_next(self, n: int = 1, body: bytes = JUNK, *, action: str | None = None) -> None:
        """Answer n calls with HTTP 200, a body that is not JSON and no request id; nothing stored."""
        self._add(n, Step(Kind.JUNK, action, body=body))

    def drop_connection_before_storing(self, n: int = 1) -> None:
        """Close the connection on n PutLogEvents calls, unread."""
        self._add(n, Step(Kind.DROP_BEFORE_STORING, PUT))

    def drop_connection_after_storing(self, n: int = 1) -> None:
        """Store n PutLogEvents calls and close the connection: the lost answer."""
        self._add(n, Step(Kind.DROP_AFTER_STORING, PUT))

    def hang(self, seconds: float, n: int = 1, *, action: str | None = None, after_storing: bool = False) -> None:
        """Keep n calls waiting for `seconds`, then close the connection without an answer.

        With `after_storing` only PutLogEvents calls that stored something are kept waiting.
        """
        if after_storing:
            self._add(n, Step(Kind.HANG_AFTER_STORING, PUT, seconds=seconds))
        else:
            self._add(n, Step(Kind.HANG, action, seconds=seconds))

    def delete_stream_under_way(self, n: int = 1) -> None:
        """On n PutLogEvents calls, delete the stream just before it is looked up."""
        self._add(n, Step(Kind.DELETE_STREAM, PUT))

    def delete_group_under_way(self, n: int = 1) -> None:
        """On n PutLogEvents calls, delete the group just before it is looked up."""
        self._add(n, Step(Kind.DELETE_GROUP, PUT))

    def deny(self, *permissions: str) -> None:
        """Answer AccessDeniedException to e.g. "logs:CreateLogGroup" until `allow`."""
        with self._lock:
            self._denied.update(name.removeprefix("logs:") for name in permissions)

    def allow(self, *permissions: str) -> None:
        """Take back `deny`."""
        with self._lock:
            self._denied.difference_update(name.removeprefix("logs:") for name in permissions)

    def throttle_rate(self, calls_per_second: float | None, *, action: str | None = None) -> None:
        """Answer ThrottlingException above this rate; the burst is one second's worth, at least 1.

        With `action` only calls of that action count and are refused; each may have a rate of its own, as in
        an AWS account. None turns it off, without `action` all of them.
        """
        with self._lock:
            if calls_per_second is not None:
                burst = max(1.0, calls_per_second)
                self._buckets[action] = Bucket(calls_per_second, burst, burst, self._monotonic())
            elif action is None:
                self._buckets.clear()
            else:
                self._buckets.pop(action, None)

    def is_denied(self, action: str) -> bool:
        """True when the action was denied."""
        with self._lock:
            return action in self._denied

    def is_over_rate(self, action: str) -> bool:
        """Count one call; True when it must be throttled."""
        with self._lock:
            now = self._monotonic()
            return any(bucket.is_empty(now) for key, bucket in self._buckets.items() if key in (None, action))

    def take(self, action: str) -> Step | None:
        """Use up the step that this call meets."""
        with self._lock:
            for index, step in enumerate(self._script):
                if step.action in (None, action):
                    del self._script[index]
                    return step
        return None

    def give_back(self, step: Step) -> None:
        """Put a step back that waits for a call that stores something."""
        with self._lock:
            self._script.appendleft(step)

    def _add(self, n: int, step: Step) -> None:
        with self._lock:
            self._script.extend(repeat(step, n))
