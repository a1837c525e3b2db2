"""The misbehaviours of the strict server, on request (state only, no I/O).

A test sets them up, and `gateway` asks for them at each call. There are three kinds:

* settings, which stay until they are changed: `latency_seconds`, `drip_seconds`, `sequence_tokens`, `poison`,
  `late_seconds`;
* refusals, which stay, too: `throttle_rate`, `deny`, `deny_key`;
* the script: `..._next`, `drop_...`, `hang`, `delete_...`, `keep_...` and `store_...` add steps. Each call to the
  server uses up the first step that is meant for its action. For example,
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
    """What a step does to the call that uses it up."""

    PASS = "pass"
    FAIL = "fail"
    JUNK = "junk"
    DROP_BEFORE_STORING = "drop before storing"
    DROP_AFTER_STORING = "drop after storing"
    HANG = "hang"
    HANG_AFTER_STORING = "hang after storing"
    DELETE_STREAM = "delete stream"
    DELETE_GROUP = "delete group"
    KEEP_ALL_BUT_ONE = "keep all but one"
    STORE_TWICE = "store twice"


# These steps wait for a call that has stored something. A call that has not leaves the step in the script.
AFTER_STORING = frozenset((Kind.DROP_AFTER_STORING, Kind.HANG_AFTER_STORING))


class Step(msgspec.Struct, frozen=True):
    """One step of the script, for one call. If `action` is None, a call of any action uses it up."""

    kind: Kind
    action: str | None = None
    code: str = ""
    status: int = 0
    message: str = ""
    seconds: float = 0.0
    body: bytes = b""


class Bucket(msgspec.Struct):
    """The token bucket that limits the rate of calls."""

    rate: float
    burst: float
    tokens: float
    refilled_at: float

    def is_empty(self, now: float) -> bool:
        """Take a token. True: there is none, and the call is over the rate."""
        self.tokens = min(self.burst, self.tokens + (now - self.refilled_at) * self.rate)
        self.refilled_at = now
        if self.tokens < 1.0:
            return True
        self.tokens -= 1.0
        return False


class Faults:
    """The misbehaviours of one server. Thread-safe.

    Attributes:
        latency_seconds: every answer is sent that much later. The call itself is
            judged and stored when it arrives.
        drip_seconds: answers are sent one byte at a time, with this pause before each. If it
            is set to 0 meanwhile, the rest of an answer is sent at once.
        sequence_tokens: True makes PutLogEvents need the stream's next token. AWS ignores
            tokens since 2023, but emulators and older partitions do not.
        poison: PutLogEvents calls with a message that contains this text are refused
            with InvalidParameterException. They are no violation.
        late_seconds: GetLogEvents and FilterLogEvents show an event only so long after it was accepted.
    """

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._script: deque[Step] = deque()
        self.clear()

    def clear(self) -> None:
        """Take all misbehaviours back: no step, no refusal, no latency."""
        with self._lock:
            self.latency_seconds = 0.0
            self.drip_seconds = 0.0
            self.sequence_tokens = False
            self.poison: str | None = None
            self.late_seconds = 0.0
            self._denied: set[str] = set()
            self._denied_keys: set[str] = set()
            self._buckets: dict[str | None, Bucket] = {}
            self._script.clear()

    @property
    def pending(self) -> int:
        """How many steps of the script no call has used up yet."""
        with self._lock:
            return len(self._script)

    def forget_steps(self) -> None:
        """Take back the steps that no call has used up yet."""
        with self._lock:
            self._script.clear()

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
        """Answer n calls with an error. They store nothing.

        Args:
            code: the error code. With "" the body is empty, as a proxy in between sends it.
            status: HTTP status; by default the one that AWS sends with the code, or 400.
            action: only calls of this action; None means any.
        """
        if status is None:
            status = ERRORS.get(code, 400)
        if message is None:
            message = "Rate exceeded" if code == "ThrottlingException" else f"{code} on request"
        self._add(n, Step(Kind.FAIL, action, code, status, message))

    def junk_next(self, n: int = 1, body: bytes = JUNK, *, action: str | None = None) -> None:
        """Answer n calls with HTTP 200, a body that is not JSON, and no request id. They store nothing."""
        self._add(n, Step(Kind.JUNK, action, body=body))

    def drop_connection_before_storing(self, n: int = 1) -> None:
        """Close the connection on n PutLogEvents calls, before their bodies are judged or stored."""
        self._add(n, Step(Kind.DROP_BEFORE_STORING, PUT))

    def drop_connection_after_storing(self, n: int = 1) -> None:
        """Store n PutLogEvents calls, and close the connection instead of an answer: the answer is lost."""
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
        """Delete the stream of n PutLogEvents calls, just before the call looks it up."""
        self._add(n, Step(Kind.DELETE_STREAM, PUT))

    def delete_group_under_way(self, n: int = 1) -> None:
        """Delete the group of n PutLogEvents calls, just before the call looks it up."""
        self._add(n, Step(Kind.DELETE_GROUP, PUT))

    def keep_all_but_one(self, n: int = 1) -> None:
        """Lie on n PutLogEvents calls: store all events but the one in the middle, and answer that all is well."""
        self._add(n, Step(Kind.KEEP_ALL_BUT_ONE, PUT))

    def store_twice(self, n: int = 1) -> None:
        """Store the events of n PutLogEvents calls twice, and answer that all is well."""
        self._add(n, Step(Kind.STORE_TWICE, PUT))

    def deny(self, *permissions: str) -> None:
        """Answer AccessDeniedException to calls of e.g. "logs:CreateLogGroup", until `allow`."""
        with self._lock:
            self._denied.update(name.removeprefix("logs:") for name in permissions)

    def allow(self, *permissions: str) -> None:
        """Take back `deny`."""
        with self._lock:
            self._denied.difference_update(name.removeprefix("logs:") for name in permissions)

    def deny_key(self, *access_keys: str) -> None:
        """Answer AccessDeniedException to calls that are signed with one of these access keys, until `allow_key`."""
        with self._lock:
            self._denied_keys.update(access_keys)

    def allow_key(self, *access_keys: str) -> None:
        """Take back `deny_key`."""
        with self._lock:
            self._denied_keys.difference_update(access_keys)

    def throttle_rate(self, calls_per_second: float | None, *, action: str | None = None) -> None:
        """Answer ThrottlingException to calls above this rate. The burst is the calls of one second, at least 1.

        With `action`, only calls of that action count and are refused. Each action may have a rate of its own, as in
        an AWS account. None turns the rate of `action` off; without `action` it turns all rates off.
        """
        with self._lock:
            if calls_per_second is not None:
                burst = max(1.0, calls_per_second)
                self._buckets[action] = Bucket(calls_per_second, burst, burst, self._monotonic())
            elif action is None:
                self._buckets.clear()
            else:
                self._buckets.pop(action, None)

    def is_denied(self, action: str, access_key: str) -> bool:
        """Tell whether `deny` has denied the action, or `deny_key` the access key."""
        with self._lock:
            return action in self._denied or access_key in self._denied_keys

    def is_over_rate(self, action: str) -> bool:
        """Count one call. True: it must be throttled."""
        with self._lock:
            now = self._monotonic()
            return any(bucket.is_empty(now) for key, bucket in self._buckets.items() if key in (None, action))

    def take(self, action: str) -> Step | None:
        """Return the first step that is meant for this action, and remove it. None: there is none."""
        with self._lock:
            for index, step in enumerate(self._script):
                if step.action in (None, action):
                    del self._script[index]
                    return step
        return None

    def give_back(self, step: Step) -> None:
        """Put a step back, because it waits for a call that stores something."""
        with self._lock:
            self._script.appendleft(step)

    def _add(self, n: int, step: Step) -> None:
        with self._lock:
            self._script.extend(repeat(step, n))
