"""Sends one request until each of its events is settled: delivered, or a dead letter with a reason.

A row of cwsink.flusher.outcome says what an answer means, and what the leader then does, which is done here (`_put`).
Every try sends the same events. Before every call the leader proves that it still leads (`check`). While it waits
for the next try, its owner may want to leave (`wait` returns False). Events that are not settled then stay in the spool
for the next leader.

**An event that CloudWatch refuses.** CloudWatch refuses a request as a whole and does not say for which event. So the
leader sends its halves, and their halves, the earlier one first, until the event is alone. A piece that is taken is
settled at once, and the owner commits it. Therefore no event is sent again because one beside it is refused.

**Is it the event, or the target?** A wrong setting may have every event refused. So an event becomes a dead letter only
if it is refused alone after CloudWatch has taken something else: an earlier piece of the request, or else the *canary*,
a line of our own that is sent to the same stream. If CloudWatch refuses the canary too, the target is wrong. Then the
events stay in the spool, and the leader tries again every few seconds, with two calls each time, until somebody has
corrected the target.

Two pieces may be sent twice: one whose answer is lost, and one that CloudWatch had taken when the leader died before
the commit. Each is one request at most. A leader that takes over before the commit may also send the canary again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Final, NamedTuple, Protocol

from cwsink.config import SinkConfig
from cwsink.diagnostics import report, reset_quiet
from cwsink.flusher.backoff import Backoff, SendInterval
from cwsink.flusher.chunk import Request
from cwsink.flusher.cloudwatch import CloudWatch
from cwsink.flusher.dead_letter import DeadLetters
from cwsink.flusher.outcome import Act, Answer, Outcome, classify, rejected_indexes
from cwsink.flusher.publisher import LeaderState
from cwsink.spool.alerts import SAFE
from cwsink.spool.directory import SpoolFormat
from cwsink.spool.record import NOTICE, Event


class Stopped(Exception):  # noqa: N818  # it is an answer, not a fault
    """The owner wants to leave. Events that are not settled stay in the spool."""


class Leadership(Protocol):
    """What a delivery asks of its owner."""

    def check(self) -> None:
        """Raise Fenced unless the owner can prove that it still leads."""

    def wait(self, seconds: float) -> bool:
        """Wait, but no longer than until the owner is to leave. Returns False if it is to leave."""


class Tally(NamedTuple):
    """How many records were delivered, and how many became dead letters, by reason. Notices are not records."""

    delivered: int
    dead: Counter[str]


class Settled(NamedTuple):
    """One more piece of a request is settled.

    Attributes:
        done: how many events of the request are settled by now, always its first ones.
        tally: what became of the events of this piece.
        events: how many events this piece has.
        answer: the last answer of CloudWatch to it.
        resent: how many of its records were sent before, although they may have arrived.
        is_refused: CloudWatch refuses the piece, which is one event.
    """

    done: int
    tally: Tally
    events: int
    answer: Answer
    resent: int = 0
    is_refused: bool = False


# So many single events may become dead letters, after CloudWatch has taken something, until it is tested again.
MOST_BELIEVED: Final = 16
# So often a stream that was just created may not be found, until the operator is told to look for the cause.
MOST_NOT_FOUND: Final = 5
CANARY: Final = "cwsink: CloudWatch has just refused records of this stream. This line tests whether it takes any."


class Delivery:
    """Sends requests to one log group."""

    def __init__(
        self,
        cloudwatch: CloudWatch,
        spool_format: SpoolFormat,
        config: SinkConfig,
        dead_letters: DeadLetters,
        leader_state: LeaderState,
        leadership: Leadership,
        *,
        uniform: Callable[[], float],
        fate: Callable[[], str] = lambda: SAFE,
        beside: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Begin.

        `fate` says what becomes of the records meanwhile, for lines about trouble. `beside` is entered for each call.
        """
        self._fate = fate
        self._beside = beside
        self._cloudwatch = cloudwatch
        self._format = spool_format
        self._may_create_group = config.create_log_group
        self._may_create_stream = config.create_log_stream
        self._dead_letters = dead_letters
        self._leader_state = leader_state
        self._leadership = leadership
        self._uniform = uniform
        self._backoff = Backoff(
            config.retry_base_delay,
            config.max_retries,
            config.circuit_breaker_threshold if config.circuit_breaker_enabled else None,
        )
        self._interval = SendInterval(config.batch_timeout_seconds)
        self._resent = 0
        self._is_trouble_told = False

    @property
    def gather_seconds(self) -> float:
        """How many seconds to gather records for the next request."""
        return self._interval.seconds

    def send(self, request: Request) -> Iterator[Settled]:
        """Settle every event of the request, the first ones first. Yields each time that more of them are settled.

        Usually that is once, for all events. The owner commits each piece before it asks for the next.

        Raises:
            Stopped: the owner wants to leave. Events of pieces that were not yielded are not settled.
            Fenced: another process leads now.
        """
        stream, events = request
        pieces = [events]  # the next piece to send is the last of the list
        done = believed = 0
        is_in_doubt = False
        while pieces:
            piece = pieces.pop()
            before = self._resent
            act, answer = self._put(stream, piece)
            if act is Act.SETTLE:
                is_in_doubt, believed = False, MOST_BELIEVED
                done += len(piece)
                resent = self._resent - before
                yield Settled(done, self._taken(piece, answer), len(piece), answer, resent)
            elif not believed and (is_in_doubt or len(piece) == 1):
                if self._takes_canary(stream):
                    # The target may have been corrected since the piece was refused. So send the piece again.
                    is_in_doubt, believed = False, MOST_BELIEVED
                    pieces.append(piece)
                else:
                    is_in_doubt, pieces = True, [events[done:]]
            elif len(piece) > 1:
                middle = len(piece) // 2
                pieces += (piece[middle:], piece[:middle])
            else:
                believed -= 1
                done += 1
                dead = self._bury("poison", f"{answer.code}: {answer.message}", piece)
                yield Settled(done, Tally(0, dead), 1, answer, is_refused=True)

    def take_resent(self) -> int:
        """Return how many records were sent again since the last call of this, although they may have arrived."""
        resent, self._resent = self._resent, 0
        return resent

    def close(self) -> None:
        """Close the connection."""
        self._cloudwatch.close()

    def _put(self, stream: str, events: list[Event]) -> tuple[Act, Answer]:
        """Send events until CloudWatch takes or refuses them. Returns SETTLE or SPLIT, and the answer."""
        token: str | None = None
        # An answer must not make the leader repair and send without a pause. So it repairs once for each wait.
        is_repaired = False
        not_found = 0  # how often the stream was not found although it had just been created
        while True:
            self._leadership.check()
            answer, outcome = self._request(stream, events, token)
            act = outcome.value.act
            if act in (Act.SETTLE, Act.SPLIT):
                return act, answer
            if outcome.value.is_quota and not self._backoff.failures:
                self._interval.throttled()
            if answer.is_ambiguous:
                self._resent += sum(event.is_record for event in events)
            trouble: Answer | None = answer
            if act is Act.USE_TOKEN:
                token = answer.expected_token
                trouble = answer if is_repaired or token is None else None
            elif act is Act.CREATE_TARGET and not is_repaired:
                trouble = self._create_target(stream)
            elif act is Act.CREATE_TARGET:
                # CloudWatch may need a few seconds until it finds what it has just created. No setting is wrong then.
                not_found += 1
                if not_found <= MOST_NOT_FOUND:
                    text = f"log stream {stream} was created a moment ago"
                    trouble = Answer(code="NotFoundYet", status=503, message=text)
            is_repaired = trouble is None
            if trouble is not None:
                self._failed(trouble)

    def _request(self, stream: str, events: list[Event], token: str | None) -> tuple[Answer, Outcome]:
        """Make one call, and publish how it ended, how long it took, and how many bytes were sent."""
        before, began = self._cloudwatch.sent_bytes, time.monotonic()
        with self._beside():
            answer = self._cloudwatch.put(stream, events, token)
        outcome, seconds = classify(answer), time.monotonic() - began
        self._leader_state.answered(outcome.name.lower(), seconds, self._cloudwatch.sent_bytes - before)
        return answer, outcome

    def _create_target(self, stream: str) -> Answer | None:
        """Create the stream, and the group if that is missing. Returns the trouble for which the leader has to wait."""
        if not self._may_create_stream:
            return Answer(
                code="ResourceNotFoundException",
                status=400,
                message=f"log stream {stream} of {self._format.log_group_name} does not exist, and "
                "create_log_stream is off",
            )
        answer = self._create(self._cloudwatch.create_stream, stream)
        if answer.code == "ResourceNotFoundException" and self._may_create_group:
            answer = self._create(self._cloudwatch.create_group)
            if classify(answer) is Outcome.DELIVERED:
                answer = self._create(self._cloudwatch.create_stream, stream)
        return None if classify(answer) is Outcome.DELIVERED else answer

    def _create(self, call: Callable[..., Answer], *names: str) -> Answer:
        self._leadership.check()
        with self._beside():
            return call(*names)

    def _takes_canary(self, stream: str) -> bool:
        """Tell whether CloudWatch takes a line of our own. If not, the target is wrong: say so, and wait."""
        # CloudWatch may have refused the events for their times. So the canary has the time of now.
        act, answer = self._put(stream, [Event(int(time.time() * 1000), 0, NOTICE, CANARY)])
        if act is Act.SETTLE:
            self._succeeded()
            return True
        self._failed(answer)
        return False

    def _taken(self, events: list[Event], answer: Answer) -> Tally:
        """Count the events that CloudWatch has taken, and make dead letters of those that its answer rejects."""
        self._succeeded()
        if answer.rejected_entity:
            report(
                "entity",
                f"CloudWatch rejects the entity ({answer.rejected_entity}), and takes the events without it. "
                "Correct the setting `entity`, or leave it out.",
            )
        dead: Counter[str] = Counter()
        # `is_record` is spelled out, because it is asked of each event.
        delivered = len([True for event in events if event.sequence >= 0])
        reasons = rejected_indexes(answer.rejected or {}, len(events))
        for reason in set(reasons.values()):
            letters = [event for index, event in enumerate(events) if reasons.get(index) == reason]
            buried = self._bury(reason, "rejectedLogEventsInfo", letters)
            delivered -= sum(buried.values())
            dead += buried
        return Tally(delivered, dead)

    def _succeeded(self) -> None:
        """Note that CloudWatch has taken something, so that the trouble is over."""
        if self._is_trouble_told:
            # The line about the trouble is held back while trouble comes and goes. So this answer to it is as rare.
            self._is_trouble_told = False
            reset_quiet("recovered")
            group = self._format.log_group_name
            report("recovered", f"CloudWatch accepts records again. What is pending for {group} is being delivered.")
        self._backoff.succeeded()
        self._interval.accepted()
        self._leader_state.succeeded()

    def _failed(self, answer: Answer) -> None:
        """Tell the operator and `cwsink status` of the trouble, and wait. Raises Stopped."""
        reaction = classify(answer).value
        error = f"{answer.code}: {answer.message}"
        if reaction.is_slow:
            # Somebody must change something, and it may be the credentials: a denied key, or one of another account.
            self._cloudwatch.close()
        delay = self._backoff.failed(self._uniform(), slow=reaction.is_slow)
        self._leader_state.failed(error, reaction.obstacle, is_open=self._backoff.is_open)
        if self._backoff.failures > 1 or reaction.is_slow:
            # In one outage, time-outs and refused connections may take turns. They are one trouble, and get one line.
            # It is that of all groups, but for what CloudWatch does not allow: that it may not allow for this group.
            kind = reaction.obstacle if reaction.is_slow else "retry"
            key = f"send_{kind}_{self._format.log_group_name}" if kind == "denied" else f"send_{kind}"
            self._is_trouble_told |= report(
                key,
                f"cannot deliver to {self._format.log_group_name}: {error.rstrip('.')}. {reaction.advice} "
                f"{self._fate()} The leader tries again until it succeeds.",
            )
        if not self._leadership.wait(delay):
            raise Stopped

    def _bury(self, reason: str, error: str, events: list[Event]) -> Counter[str]:
        """Keep `events` as dead letters, except notices. Returns how many records they are, by reason."""
        letters = [event for event in events if not event.is_notice]
        if letters:
            self._dead_letters.add(reason, error, letters)
        records = sum(event.is_record for event in letters)
        return Counter({reason: records} if records else {})
