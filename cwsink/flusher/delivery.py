"""One part, sent until it is settled: delivered, or dead-lettered with a reason.

What to do about an answer is `outcome.classify`'s; how to do it is one method each,
in a table. A part is the same in every try. Before every call `check` proves that
this process still leads; `wait` returns False when the owner wants to leave, and the
part stays in the spool for whoever leads next.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Final, NamedTuple

from cwsink.config import SinkConfig
from cwsink.diagnostics import report, settled
from cwsink.flusher.backoff import Backoff, Gathering
from cwsink.flusher.batch import Part
from cwsink.flusher.cloudwatch import CloudWatch
from cwsink.flusher.dead_letter import DeadLetters
from cwsink.flusher.outcome import THROTTLING, UNREACHABLE, Answer, Outcome, classify, rejected_indexes
from cwsink.spool.directory import SpoolFormat
from cwsink.spool.leader_state import LeaderState, Obstacle
from cwsink.spool.record import NOTICE, Event


class Stopped(Exception):  # noqa: N818  # it is an answer, not a fault
    """The owner wants to leave; what was not settled stays in the spool."""


class Tally(NamedTuple):
    """What became of records: `delivered`, and dead letters by reason. Notices are not records."""

    delivered: int
    dead: Counter[str]


class Refusal(NamedTuple):
    """An event that CloudWatch did not take on its own, and why."""

    event: Event
    answer: Answer


class _NothingAccepted(Exception):  # noqa: N818  # an answer, too
    """Event after event was refused and none accepted: it is not the events that are wrong."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.code)
        self.answer = answer


# So many single events refused, and none accepted, are no poison: something about the target or a
# setting is wrong, and dead-lettering would go through the whole spool.
_ALL_REFUSED: Final = 32
_UNPROVEN_TRIES: Final = 3

_SLOW: Final = frozenset({Outcome.CREDENTIALS, Outcome.DENIED})
_WHAT_TO_DO: Final = {
    Outcome.RETRY: "It is tried again until it succeeds.",
    Outcome.CREDENTIALS: "Check the AWS credentials, the region and this host's clock; credentials are read anew "
    "at each try.",
    Outcome.DENIED: "Allow the action it names, or correct the setting; it is tried again every few seconds.",
}


class Delivery:
    """Sends parts to one log group."""

    def __init__(
        self,
        cloudwatch: CloudWatch,
        spool_format: SpoolFormat,
        config: SinkConfig,
        dead_letters: DeadLetters,
        leader_state: LeaderState,
        *,
        check: Callable[[], None],
        wait: Callable[[float], bool],
        uniform: Callable[[], float],
    ) -> None:
        self._cloudwatch = cloudwatch
        self._format = spool_format
        self._may_create_group = config.create_log_group
        self._may_create_stream = config.create_log_stream
        self._dead_letters = dead_letters
        self._leader_state = leader_state
        self._check = check
        self._wait = wait
        self._uniform = uniform
        self._backoff = Backoff(
            config.retry_base_delay,
            config.max_retries,
            config.circuit_breaker_threshold if config.circuit_breaker_enabled else None,
        )
        self._gathering = Gathering(config.batch_timeout_seconds)
        self._resent = 0
        self._requests_accepted = 0
        self._is_trouble_told = False

    @property
    def gather_seconds(self) -> float:
        """How long records are to be gathered for the next part."""
        return self._gathering.seconds

    def send(self, part: Part) -> Tally:
        """Settle every event of the part.

        Raises:
            Stopped: the owner wants to leave; nothing of the part is settled.
            Fenced: another process leads now.
        """
        for suspicions in itertools.count():
            refusals: list[Refusal] = []
            accepted = self._requests_accepted
            try:
                tally = self._send(part, refusals)
            except _NothingAccepted as doubt:
                self._failed(Outcome.DENIED, doubt.answer)
                continue
            # Nothing accepted beside it proves little against an event: it gets a few more chances.
            is_proven = self._requests_accepted > (accepted if len(part.events) > 1 else 0)
            if refusals and not is_proven and suspicions < _UNPROVEN_TRIES:
                self._failed(Outcome.DENIED, refusals[0].answer)
                continue
            for event, answer in refusals:
                tally.dead.update(self._bury("poison", f"{answer.code}: {answer.message}", [event]))
            return tally
        raise AssertionError  # the count has no end

    def _send(self, part: Part, refusals: list[Refusal]) -> Tally:
        """Settle the part, but for the single events that CloudWatch refuses: they are added to `refusals`."""
        token: str | None = None
        # One repair at once for each failure that is waited for, so that no answer makes us spin.
        may_repair = True
        while True:
            self._check()
            answer = self._cloudwatch.put(part.stream, part.events, token)
            outcome = classify(answer)
            if answer.code in THROTTLING and not self._backoff.failures:
                self._gathering.throttled()
            if answer.rejected_entity:
                report(
                    "entity",
                    f"CloudWatch rejects the entity ({answer.rejected_entity}), and takes the events without it. "
                    "Correct the setting `entity`, or leave it out.",
                )
            if outcome is Outcome.DELIVERED:
                return self._succeeded(part.events, {})
            if outcome is Outcome.REJECTED:
                reasons = rejected_indexes(answer.rejected or {}, len(part.events))
                return self._succeeded(part.events, reasons)
            if outcome is Outcome.BISECT:
                return self._bisect(part, answer, refusals)
            if answer.is_ambiguous:
                self._resent += len(part.events)
            if outcome is Outcome.RESEND:
                token = answer.expected_token
                if may_repair and token is not None:
                    may_repair = False
                    continue
            if outcome is Outcome.CREATE_TARGET and may_repair:
                may_repair = False
                answer = self._create_target(part.stream)
                outcome = classify(answer)
                if outcome is Outcome.DELIVERED:
                    continue
            may_repair = True
            self._failed(outcome, answer)

    def take_resent(self) -> int:
        """Return how many records were sent again since the last call, though the first send may have arrived."""
        resent, self._resent = self._resent, 0
        return resent

    def close(self) -> None:
        """Close the connection."""
        self._cloudwatch.close()

    def _succeeded(self, events: list[Event], reasons: dict[int, str]) -> Tally:
        if self._is_trouble_told:
            # As rare as what it answers, which is held back while trouble comes and goes.
            self._is_trouble_told = False
            settled("recovered")
            report("recovered", "CloudWatch accepts records again. What is pending is being delivered.")
        self._requests_accepted += 1
        self._backoff.succeeded()
        self._gathering.accepted()
        self._leader_state.succeeded()
        dead: Counter[str] = Counter()
        for reason in set(reasons.values()):
            letters = [event for index, event in enumerate(events) if reasons.get(index) == reason]
            dead += self._bury(reason, "rejectedLogEventsInfo", letters)
        delivered = len([True for event in events if event.sequence >= 0])  # is_record, spelled out: it is per event
        return Tally(delivered - sum(dead.values()), dead)

    def _bisect(self, part: Part, answer: Answer, refusals: list[Refusal]) -> Tally:
        """Find the event CloudWatch does not take: send the halves, each until it is settled."""
        events = part.events
        if len(events) == 1:
            refusals.append(Refusal(events[0], answer))
            return Tally(0, Counter())
        middle = len(events) // 2
        accepted = self._requests_accepted
        first = self._send(Part(part.stream, events[:middle]), refusals)
        second = self._send(Part(part.stream, events[middle:]), refusals)
        if self._requests_accepted == accepted and len(refusals) >= _ALL_REFUSED:
            raise _NothingAccepted(answer)
        return Tally(first.delivered + second.delivered, first.dead + second.dead)

    def _bury(self, reason: str, error: str, events: list[Event]) -> Counter[str]:
        """Keep `events`, but notices, as dead letters; return how many records they are, by reason."""
        letters = [event for event in events if event.sequence != NOTICE]
        if letters:
            self._dead_letters.add(reason, error, letters)
        records = sum(event.is_record for event in letters)
        return Counter({reason: records} if records else {})

    def _create_target(self, stream: str) -> Answer:
        """Create what is missing: the stream, and the group if that is missing too."""
        if not self._may_create_stream:
            return Answer(
                code="ResourceNotFoundException",
                status=400,
                message=f"log stream {stream} of {self._format.log_group_name} does not exist, and "
                "create_log_stream is off",
            )
        self._check()
        answer = self._cloudwatch.create_stream(stream)
        if answer.code == "ResourceNotFoundException" and self._may_create_group:
            self._check()
            created = self._cloudwatch.create_group()
            if classify(created) is not Outcome.DELIVERED:
                return created
            self._check()
            answer = self._cloudwatch.create_stream(stream)
        return answer

    def _failed(self, outcome: Outcome, answer: Answer) -> None:
        """Say so, once, and wait."""
        if outcome is Outcome.CREATE_TARGET:
            outcome = Outcome.DENIED
        error = f"{answer.code}: {answer.message}"
        if outcome is Outcome.CREDENTIALS:
            self._cloudwatch.forget_session()
        delay = self._backoff.failed(self._uniform(), slow=outcome in _SLOW)
        self._leader_state.failed(error, _obstacle_of(outcome, answer), is_open=self._backoff.is_open)
        if self._backoff.failures > 1 or outcome in _SLOW:
            self._is_trouble_told |= report(
                f"send_{outcome.value}",
                f"cannot deliver to {self._format.log_group_name}: {error.rstrip('.')}. The records stay in the spool. "
                f"{_WHAT_TO_DO.get(outcome, _WHAT_TO_DO[Outcome.RETRY])}",
            )
        if not self._wait(delay):
            raise Stopped


def _obstacle_of(outcome: Outcome, answer: Answer) -> Obstacle:
    if outcome is Outcome.CREDENTIALS:
        return "credentials"
    if outcome is Outcome.DENIED:
        return "denied"
    return "unreachable" if answer.code in UNREACHABLE else "busy"
