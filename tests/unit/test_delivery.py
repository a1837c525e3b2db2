"""A request is sent until every event of it is settled, and nothing is dropped on the way.

CloudWatch is a script: each put is answered by the next answer, the last one for ever.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest

from cwsink import diagnostics
from cwsink.config import SinkConfig
from cwsink.flusher.chunk import Request
from cwsink.flusher.commits import Fenced
from cwsink.flusher.delivery import CANARY, MOST_BELIEVED, MOST_NOT_FOUND, Delivery, Settled, Stopped, Tally
from cwsink.flusher.outcome import Answer
from cwsink.spool.record import NOTICE, Event
from tests.harness.support import SPOOL_FORMAT

OK = Answer(status=200, request_id="r", is_ambiguous=True)
NO_REQUEST_ID = Answer(status=200, is_ambiguous=True)
TIMEOUT = Answer(code="ReadTimeoutError", message="read timed out", is_ambiguous=True)
REFUSED = Answer(code="EndpointConnectionError", message="could not connect")
UNAVAILABLE = Answer(status=503, code="ServiceUnavailableException", message="later", is_ambiguous=True)


def error(code: str, **more: Any) -> Answer:
    """An answer with status 400."""
    return Answer(**{"status": 400, "code": code, "message": f"why {code}", "request_id": "r", **more})


THROTTLED = error("ThrottlingException")
MISSING = error("ResourceNotFoundException")
DENIED = error("AccessDeniedException")
EXPIRED = error("ExpiredTokenException")
INVALID = error("InvalidParameterException")


def wrong_token(expected: str | None) -> Answer:
    return error("InvalidSequenceTokenException", expected_token=expected)


def events(count: int) -> list[Event]:
    return [Event(1_700_000_000_000 + number, 7, number, f"m{number}") for number in range(count)]


class World:
    """Everything a Delivery touches: CloudWatch, dead letters, leader state, time. Writes down what happens."""

    sent_bytes = 0

    def __init__(self, answers: Iterable[Answer] | Callable[[list[Event]], Answer], **settings: Any) -> None:
        self._answers = answers if callable(answers) else list(answers)
        self.creations: dict[str, list[Answer]] = {"create_stream": [], "create_group": []}
        self.log: list[str] = []
        self.accepted: list[int] = []
        self.sent: list[list[int]] = []
        self.messages: list[str] = []
        self.tokens: list[str | None] = []
        self.waits: list[float] = []
        self.letters: list[tuple[str, str, list[int]]] = []
        self.obstacles: list[str] = []
        self.commits: list[Settled] = []
        self.most_waits = 1_000_000
        self.fence_at = -1
        self.uniform = 0.5
        config = SinkConfig(**{"circuit_breaker_enabled": False, **settings})
        self.delivery = Delivery(
            self,  # CloudWatch
            SPOOL_FORMAT,
            config,
            self,  # the dead letters
            self,  # leader.json
            self,  # the leader
            uniform=lambda: self.uniform,
        )

    def send(self, sent: list[Event], stream: str = "host") -> Tally:
        """Send events until all are settled, commit each piece as the leader does, and return the sum."""
        total = Tally(0, Counter())
        for settled in self.delivery.send(Request(stream, sent)):
            assert settled.done > (self.commits[-1].done if self.commits else 0), "each piece is new"
            self.commits.append(settled)
            total = Tally(total.delivered + settled.tally.delivered, total.dead + settled.tally.dead)
        assert self.commits.pop().done == len(sent), "all of it is settled"
        self.commits.clear()
        return total

    def check(self) -> None:
        if len(self.log) == self.fence_at:
            raise Fenced
        self.log.append("check")

    def wait(self, seconds: float) -> bool:
        self.log.append("wait")
        self.waits.append(seconds)
        return len(self.waits) < self.most_waits

    # CloudWatch

    def put(self, stream: str, events: Sequence[Event], sequence_token: str | None = None) -> Answer:
        sent = list(events)
        self.log.append(f"put {stream}")
        self.sent.append([event.sequence for event in sent])
        self.messages += [event.message for event in sent]
        self.tokens.append(sequence_token)
        if callable(self._answers):
            answer = self._answers(sent)
        else:
            answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if answer.status == 200 and answer.request_id:
            self.accepted += [event.sequence for event in sent]
        return answer

    def create_stream(self, stream: str) -> Answer:
        return self._create("create_stream")

    def create_group(self) -> Answer:
        return self._create("create_group")

    def _create(self, action: str) -> Answer:
        self.log.append(action)
        answers = self.creations[action]
        return answers.pop(0) if answers else OK

    def close(self) -> None:
        self.log.append("close")

    # DeadLetters

    def add(self, reason: str, error: str, events: list[Event]) -> None:
        self.letters.append((reason, error, [event.sequence for event in events]))

    # LeaderState

    def answered(self, outcome: str, seconds: float, sent_bytes: int) -> None:
        """Nobody asks here."""

    def succeeded(self) -> None:
        self.log.append("succeeded")

    def failed(self, error: str, obstacle: str, *, is_open: bool) -> None:
        self.log.append(f"failed {error}{' open' if is_open else ''}")
        self.obstacles.append(obstacle)

    @property
    def records(self) -> list[int]:
        """The sequences of the records that were accepted."""
        return [sequence for sequence in self.accepted if sequence >= 0]

    @property
    def actions(self) -> list[str]:
        """What was asked of CloudWatch, in order."""
        return [line for line in self.log if line.startswith(("put", "create", "forget", "close"))]


@pytest.fixture(autouse=True)
def said(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What was reported."""
    lines: list[tuple[str, str]] = []
    monkeypatch.setattr(diagnostics, "_subscribers", [lambda key, message: lines.append((key, message))])
    return lines


def test_what_is_accepted_is_delivered() -> None:
    """One call, one tally; nothing is waited for."""
    world = World([OK])
    assert world.send(events(3)) == Tally(3, Counter())
    assert world.log == ["check", "put host", "succeeded"]
    assert world.delivery.take_resent() == 0


def test_notices_are_sent_and_not_counted() -> None:
    """What tells the stream about a loss is no record: it is in no tally."""
    world = World([OK])
    notice = Event(1, 7, NOTICE, "cwsink: 3 records dropped")
    assert world.send([*events(2), notice, notice]) == Tally(2, Counter())
    assert world.accepted == [0, 1, NOTICE, NOTICE]


@pytest.mark.parametrize("failures", [1, 3, 10, 500])
@pytest.mark.parametrize(
    "answer", [THROTTLED, UNAVAILABLE, TIMEOUT, REFUSED, NO_REQUEST_ID], ids=lambda a: a.code or "no request id"
)
def test_a_transient_failure_is_tried_until_it_ends(answer: Answer, failures: int) -> None:
    """However often it fails, the same events are sent again; nothing is dropped, there is no last try."""
    world = World([*[answer] * failures, OK])
    assert world.send(events(3)) == Tally(3, Counter())
    assert world.sent == [[0, 1, 2]] * (failures + 1)
    assert world.accepted == [0, 1, 2]
    assert len(world.waits) == failures
    assert world.letters == []


def test_each_wait_is_a_share_of_one_twice_as_long() -> None:
    """Full jitter: the random number decides where between none and all of it."""
    waits = {}
    for uniform in (0.0, 0.25, 1.0):
        world = World([*[THROTTLED] * 8, OK], retry_base_delay=0.5)
        world.uniform = uniform
        world.send(events(1))
        waits[uniform] = world.waits
    assert waits[1.0] == [1.0, 2.0, 4.0, 8.0, 16.0, 20.0, 20.0, 20.0]
    assert waits[0.25] == [wait / 4 for wait in waits[1.0]]
    assert waits[0.0] == [0.0] * 8


def test_a_success_ends_the_growth_of_waits() -> None:
    """The next request begins with a short wait again."""
    world = World([THROTTLED, THROTTLED, THROTTLED, OK, THROTTLED, OK], retry_base_delay=0.5)
    world.send(events(1))
    world.send(events(1))
    assert world.waits == [0.5, 1.0, 2.0, 0.5]


def test_an_open_circuit_pauses_and_drops_nothing() -> None:
    """After threshold x (retries + 1) failures each wait is a long one, said to be open; then it is delivered."""
    world = World([*[UNAVAILABLE] * 6, OK], circuit_breaker_enabled=True, circuit_breaker_threshold=2, max_retries=1)
    assert world.send(events(2)) == Tally(2, Counter())
    assert [line.endswith(" open") for line in world.log if line.startswith("failed")] == [False] * 3 + [True] * 3
    assert world.waits[3:] == [22.5] * 3


def test_an_outage_is_said_once_and_its_end_too(said: list[tuple[str, str]]) -> None:
    """One clear line that names the group and what becomes of the records; one when it is over."""
    world = World([*[THROTTLED] * 50, OK])
    world.send(events(1))
    assert [key for key, _ in said] == ["send_retry", "recovered"]
    assert "/app" in said[0][1]
    assert "ThrottlingException: why ThrottlingException" in said[0][1]
    assert "stay in the spool" in said[0][1]


def test_trouble_that_comes_and_goes_is_told_once_a_minute(
    said: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A throttled account fails and recovers all day: a pair of lines a minute, and the last one is how it stands."""
    now = [1_000.0]
    monkeypatch.setattr(diagnostics, "monotonic", lambda: now[0])
    answers = [THROTTLED, THROTTLED, OK]
    world = World(answers * 200)
    for _ in range(200):
        world.send(events(1))
        now[0] += 1.0
    assert [key for key, _ in said] == ["send_retry", "recovered"] * 4
    assert "(and 59 more like this)" in said[2][1]


def test_a_single_hiccup_is_not_worth_a_line(said: list[tuple[str, str]]) -> None:
    """One throttled call between two that succeed is nobody's business."""
    World([THROTTLED, OK]).send(events(1))
    assert said == []


@pytest.mark.parametrize(
    ("info", "dead", "letters"),
    [
        ({"tooOldLogEventEndIndex": 2}, {"too_old": 2}, {"too_old": [0, 1]}),
        ({"tooNewLogEventStartIndex": 4}, {"too_new": 1}, {"too_new": [4]}),
        ({"expiredLogEventEndIndex": 1}, {"expired": 1}, {"expired": [0]}),
        (
            {"tooOldLogEventEndIndex": 1, "expiredLogEventEndIndex": 2, "tooNewLogEventStartIndex": 3},
            {"too_old": 1, "expired": 1, "too_new": 2},
            {"too_old": [0], "expired": [1], "too_new": [3, 4]},
        ),
        ({"tooOldLogEventEndIndex": 5}, {"too_old": 5}, {"too_old": [0, 1, 2, 3, 4]}),
        ({"somethingNew": 1}, {}, {}),
    ],
)
def test_exactly_what_was_rejected_is_dead_lettered(
    info: dict[str, int], dead: dict[str, int], letters: dict[str, list[int]]
) -> None:
    """The named events are kept with their reason, the others are delivered; every record is in the tally once."""
    world = World([Answer(status=200, request_id="r", rejected=info)])
    tally = world.send(events(5))
    assert tally == Tally(5 - sum(dead.values()), Counter(dead))
    assert {reason: kept for reason, _, kept in world.letters} == letters
    assert len(world.sent) == 1


def test_a_rejected_notice_is_neither_counted_nor_kept() -> None:
    """A notice about an old loss may be too old itself: it is no record, so it is no dead letter."""
    world = World([Answer(status=200, request_id="r", rejected={"tooOldLogEventEndIndex": 2})])
    notice = Event(1, 7, NOTICE, "cwsink: 3 records dropped")
    assert world.send([notice, *events(2)]) == Tally(1, Counter(too_old=1))
    assert world.letters == [("too_old", "rejectedLogEventsInfo", [0])]
    alone = World([Answer(status=200, request_id="r", rejected={"tooOldLogEventEndIndex": 1})])
    assert alone.send([notice]) == Tally(0, Counter())
    assert alone.letters == []


def poisoned(*sequences: int) -> Callable[[list[Event]], Answer]:
    return lambda sent: INVALID if any(event.sequence in sequences for event in sent) else OK


@pytest.mark.parametrize(
    ("count", "poison"),
    [(count, poison) for count in (1, 2, 3, 4, 5, 8, 17) for poison in range(count)],
)
def test_one_poison_event_is_found_and_the_rest_delivered_in_order(count: int, poison: int) -> None:
    """Whatever its place, it alone is dead-lettered, with CloudWatch's own words, and nothing is waited for."""
    world = World(poisoned(poison))
    assert world.send(events(count)) == Tally(count - 1, Counter(poison=1))
    assert world.letters == [("poison", "InvalidParameterException: why InvalidParameterException", [poison])]
    assert world.records == [number for number in range(count) if number != poison]
    assert world.waits == []


def test_an_event_that_nothing_is_accepted_before_is_proven_by_a_line_of_our_own() -> None:
    """A test line to the same stream tells that the target is right; then the event is judged once more."""
    world = World(poisoned(0, 1))
    world.send(events(2), stream="host/2023")
    assert world.sent == [[0, 1], [0], [NOTICE], [0], [1]]
    assert world.actions == ["put host/2023"] * 5
    assert CANARY in world.messages
    assert [kept for _, _, kept in world.letters] == [[0], [1]]
    assert world.waits == []


def test_nothing_of_ours_is_sent_where_a_record_is_accepted_first() -> None:
    """What is accepted before it proves the same."""
    for poison in (1, 4, 5, 7):
        world = World(poisoned(poison))
        world.send(events(8))
        assert NOTICE not in world.accepted


@pytest.mark.parametrize("count", [1, 2, 31, 1_000])
def test_a_target_that_takes_nothing_is_not_taken_for_poison(count: int) -> None:
    """Our own line is refused too: nothing is dead-lettered, each try is two calls, and it is waited for."""
    world = World(poisoned(NOTICE, *range(count)))
    world.most_waits = 5
    with pytest.raises(Stopped):
        world.send(events(count))
    assert world.letters == []
    assert world.waits == [7.5] * 5
    assert set(world.obstacles) == {"denied"}
    assert len(world.sent) <= math.log2(count) + 3 + 4 * 2
    assert world.sent[-2:] == [list(range(count)), [NOTICE]]


def test_a_target_that_is_wrong_says_so(said: list[tuple[str, str]]) -> None:
    """The line has CloudWatch's words, and that it is the setting, not the records."""
    world = World([INVALID] * 6 + [OK])
    assert world.send(events(1)) == Tally(1, Counter())
    assert [key.partition("_/")[0] for key, _ in said] == ["send_denied", "recovered"]
    assert "InvalidParameterException: why InvalidParameterException" in said[0][1]
    assert "correct the setting" in said[0][1]
    assert "stay in the spool" in said[0][1]


def test_a_target_that_has_become_right_has_all_events_judged_anew() -> None:
    """Refused by a wrong target is no proof against an event; what is refused by the right one is a dead letter."""
    for refused in range(20):
        answers = iter([INVALID] * refused)
        world = World(lambda sent, answers=answers: next(answers, poisoned(2)(sent)))  # type: ignore[misc]
        assert world.send(events(4)) == Tally(3, Counter(poison=1))
        assert world.records == [0, 1, 3]


def test_a_target_that_becomes_wrong_on_the_way_costs_few_events() -> None:
    """So many in a row are believed after one that was accepted; then our own line is refused, and all else waits."""
    count = 1_000
    world = World(lambda sent: OK if sent[0].sequence == 0 and len(sent) <= count // 4 else INVALID)
    world.most_waits = 3
    with pytest.raises(Stopped):
        world.send(events(count))
    assert world.accepted == list(range(count // 4))
    assert len(world.letters) == MOST_BELIEVED
    assert world.commits[-1].done == count // 4 + MOST_BELIEVED


def test_each_piece_is_settled_as_soon_as_it_is_accepted() -> None:
    """The owner commits each before the next call, so that no later refusal, stop or death repeats it."""
    world = World(poisoned(3, 6))
    pieces = world.delivery.send(Request("host", events(8)))
    seen = [(settled.done, settled.tally, len(world.sent)) for settled in pieces]
    one_dead = Tally(0, Counter(poison=1))
    assert seen == [
        (2, Tally(2, Counter()), 3),
        (3, Tally(1, Counter()), 5),
        (4, one_dead, 6),
        (6, Tally(2, Counter()), 8),
        (7, one_dead, 10),
        (8, Tally(1, Counter()), 11),
    ]


def test_a_request_that_is_refused_for_its_size_goes_in_halves() -> None:
    """A proxy takes small requests only: all arrive, and none is taken for poison."""
    too_large = Answer(status=413, code="413", message="Request Entity Too Large")
    world = World(lambda sent: too_large if len(sent) > 3 else OK)
    assert world.send(events(16)) == Tally(16, Counter())
    assert world.accepted == list(range(16))
    assert world.letters == []


@pytest.mark.parametrize("poison", [(0, 1), (0, 15), (3, 4, 11), tuple(range(16)), tuple(range(0, 16, 2))])
def test_several_poison_events_are_found(poison: tuple[int, ...]) -> None:
    """Each is dead-lettered alone; all others arrive, in order, once."""
    world = World(poisoned(*poison))
    assert world.send(events(16)) == Tally(16 - len(poison), Counter(poison=len(poison)))
    assert [kept for _, _, kept in world.letters] == [[number] for number in poison]
    assert world.records == [number for number in range(16) if number not in poison]


def test_finding_a_poison_event_takes_few_calls() -> None:
    """One among 10,000 is found with about two calls for each halving."""
    world = World(poisoned(6_789))
    assert world.send(events(10_000)) == Tally(9_999, Counter(poison=1))
    assert len(world.sent) <= 2 * 14 + 1


def test_a_poison_notice_is_not_counted() -> None:
    """Should CloudWatch refuse a notice, no record was lost by it."""
    world = World(lambda sent: INVALID if any(event.message.endswith("dropped") for event in sent) else OK)
    notice = Event(1, 7, NOTICE, "cwsink: 3 records dropped")
    assert world.send([*events(2), notice]) == Tally(2, Counter())
    assert world.letters == []


def test_the_halves_of_a_refused_request_are_retried_like_any() -> None:
    """Throttled in the middle of it: the half is sent again, nothing is lost or sent twice without need."""
    answers = iter([INVALID, THROTTLED, OK, INVALID, INVALID, OK])
    world = World(lambda _: next(answers))
    assert world.send(events(4)) == Tally(3, Counter(poison=1))
    assert world.sent == [[0, 1, 2, 3], [0, 1], [0, 1], [2, 3], [2], [3]]
    assert len(world.waits) == 1


def test_a_missing_stream_is_created_and_the_request_sent_again_at_once() -> None:
    """No wait, no failure counted, and the lease is checked before each call."""
    world = World([MISSING, OK])
    assert world.send(events(2)) == Tally(2, Counter())
    assert world.log == ["check", "put host", "check", "create_stream", "check", "put host", "succeeded"]


def test_a_missing_group_is_created_before_its_stream() -> None:
    """Stream, group, stream, request: five calls, each after a check, without a wait."""
    world = World([MISSING, OK])
    world.creations["create_stream"] = [MISSING]
    assert world.send(events(2)) == Tally(2, Counter())
    assert world.actions == ["put host", "create_stream", "create_group", "create_stream", "put host"]
    assert world.log[::2][:5] == ["check"] * 5
    assert world.waits == []


def test_a_stream_that_is_not_found_yet_is_waited_for(said: list[tuple[str, str]]) -> None:
    """Created and still not found: no spin, one creation for each try, short waits, and no setting is blamed."""
    world = World([MISSING, MISSING, MISSING, MISSING, OK], retry_base_delay=0.5)
    assert world.send(events(1)) == Tally(1, Counter())
    assert world.actions == ["put host", "create_stream", "put host"] * 2 + ["put host"]
    assert world.waits == [0.5, 1.0]
    assert not [line for _, line in said if "Allow the action" in line or "could not be created" in line]


def test_a_stream_that_stays_missing_is_told_of(said: list[tuple[str, str]]) -> None:
    """After some short waits the operator is asked to look, and the leader tries slowly."""
    world = World([MISSING] * 2 * (MOST_NOT_FOUND + 1) + [OK])
    assert world.send(events(1)) == Tally(1, Counter())
    assert world.waits[-1] == 7.5
    assert [line for _, line in said if "is missing, and could not be created" in line]


@pytest.mark.parametrize(
    ("settings", "missing", "actions"),
    [
        pytest.param({"create_log_stream": False}, [], ["put host"], id="stream"),
        pytest.param(
            {"create_log_group": False}, [MISSING] * 9, ["put host", "create_stream"], id="group, which is missing"
        ),
    ],
)
def test_with_creation_off_it_is_tried_slowly_until_somebody_creates_it(
    settings: dict[str, bool], missing: list[Answer], actions: list[str], said: list[tuple[str, str]]
) -> None:
    """Nothing is created that was not allowed, nothing is dropped, and one line says so."""
    world = World([MISSING, MISSING, MISSING, OK], **settings)
    world.creations["create_stream"] = list(missing)
    assert world.send(events(2)) == Tally(2, Counter())
    assert world.actions == [*actions, "close"] * 3 + ["put host"]
    assert world.waits == [7.5] * 3
    assert [key.partition("_/")[0] for key, _ in said] == ["send_denied", "recovered"]
    assert "ResourceNotFoundException" in said[0][1]


def test_the_line_about_a_missing_stream_names_it_and_the_setting(said: list[tuple[str, str]]) -> None:
    """With create_log_stream off, the reader learns which stream to create or what to switch on."""
    world = World([MISSING, OK], create_log_stream=False)
    world.send(events(1), stream="host/2023")
    assert "log stream host/2023 of /app does not exist, and create_log_stream is off" in said[0][1]


@pytest.mark.parametrize("action", ["create_stream", "create_group"])
def test_a_creation_that_is_denied_is_tried_slowly(action: str, said: list[tuple[str, str]]) -> None:
    """The message is the creation's, which names the missing permission; after the grant all is delivered."""
    world = World([MISSING, MISSING, OK])
    denied = error("AccessDeniedException", message=f"not authorized to perform logs:{action}")
    world.creations[action] = [denied]
    if action == "create_group":
        world.creations["create_stream"] = [MISSING]
    assert world.send(events(2)) == Tally(2, Counter())
    assert world.waits == [7.5]
    assert f"logs:{action}" in said[0][1]


@pytest.mark.parametrize("code", ["LimitExceededException", "OperationAbortedException", "ThrottlingException"])
def test_a_creation_that_fails_for_a_while_is_tried_again(code: str) -> None:
    """Races and limits of creation are transient like those of sending."""
    world = World([MISSING, MISSING, OK], retry_base_delay=0.5)
    world.creations["create_stream"] = [error(code)]
    assert world.send(events(2)) == Tally(2, Counter())
    assert world.actions == ["put host", "create_stream"] * 2 + ["put host"]
    assert world.waits == [0.5]


def test_an_expected_sequence_token_is_used_at_once() -> None:
    """Emulators still ask for one: the same request with the named token, without a wait."""
    world = World([wrong_token("42"), OK])
    assert world.send(events(2)) == Tally(2, Counter())
    assert world.tokens == [None, "42"]
    assert world.waits == []


def test_tokens_that_are_never_right_do_not_make_us_spin() -> None:
    """One token at once, then a wait for each further one; leaving stays possible."""
    tokens = iter(range(10**6))
    world = World(lambda _: wrong_token(str(next(tokens))))
    world.most_waits = 3
    with pytest.raises(Stopped):
        world.send(events(1))
    assert world.tokens == [None, "0", "1", "2", "3", "4"]


def test_a_wrong_token_without_a_right_one_is_waited_for() -> None:
    """Nothing named, nothing to do at once; a token that is not expected any more is not sent again."""
    world = World([wrong_token("42"), wrong_token(None), wrong_token(None), OK])
    assert world.send(events(1)) == Tally(1, Counter())
    assert world.tokens == [None, "42", None, None]
    assert len(world.waits) == 2


def test_data_already_accepted_counts_as_delivered() -> None:
    """The first send had arrived after all."""
    world = World([TIMEOUT, error("DataAlreadyAcceptedException")])
    assert world.send(events(3)) == Tally(3, Counter())


@pytest.mark.parametrize("code", ["ExpiredTokenException", "UnrecognizedClientException", "NoCredentialsError"])
def test_credentials_are_read_anew_at_each_try(code: str, said: list[tuple[str, str]]) -> None:
    """The session is closed before each slow wait, and one line says to check the credentials."""
    world = World([*[error(code)] * 3, OK])
    assert world.send(events(2)) == Tally(2, Counter())
    assert world.actions == ["put host", "close"] * 3 + ["put host"]
    assert world.waits == [7.5] * 3
    assert said[0][0] == "send_credentials"
    assert "credentials" in said[0][1]


def test_a_denied_call_is_tried_slowly_with_credentials_that_are_read_anew() -> None:
    """People change the policy, or the credentials: no growing wait, a new session each time, nothing dropped."""
    world = World([*[DENIED] * 5, OK])
    assert world.send(events(2)) == Tally(2, Counter())
    assert world.actions == ["put host", "close"] * 5 + ["put host"]
    assert world.waits == [7.5] * 5


def test_a_denied_creation_has_credentials_read_anew_too() -> None:
    """The key may send, but not create. The one that the operator gives instead may."""
    world = World([MISSING, MISSING, OK])
    world.creations["create_stream"] = [DENIED]
    assert world.send(events(2)) == Tally(2, Counter())
    assert world.actions == ["put host", "create_stream", "close", "put host", "create_stream", "put host"]


def test_a_target_that_is_missing_may_be_one_of_another_account() -> None:
    """It is not to be created, and the credentials may be those of a wrong account: they are read anew."""
    world = World([MISSING, OK], create_log_stream=False)
    assert world.send(events(2)) == Tally(2, Counter())
    assert world.actions == ["put host", "close", "put host"]


@pytest.mark.parametrize(
    ("answer", "obstacle"),
    [
        (THROTTLED, "busy"),
        (UNAVAILABLE, "busy"),
        (TIMEOUT, "busy"),
        (NO_REQUEST_ID, "busy"),
        (REFUSED, "unreachable"),
        (Answer(code="ConnectTimeoutError"), "unreachable"),
        (Answer(code="ProxyConnectionError"), "unreachable"),
        (Answer(code="SSLError"), "unreachable"),
        (DENIED, "denied"),
        (EXPIRED, "credentials"),
        (Answer(code="NoCredentialsError"), "credentials"),
        (Answer(code="NoRegionError"), "credentials"),
    ],
    ids=lambda each: (each.code or "no request id") if isinstance(each, Answer) else each,
)
def test_what_keeps_it_from_delivering_is_published(answer: Answer, obstacle: str) -> None:
    """Who is the last one out reads whether waiting makes sense; who has other credentials, whether to offer them."""
    world = World([answer, OK])
    assert world.send(events(2)) == Tally(2, Counter())
    assert world.obstacles == [obstacle]


@pytest.mark.parametrize("answer", [THROTTLED, DENIED, EXPIRED, MISSING, TIMEOUT], ids=lambda a: a.code)
def test_the_owner_may_leave_at_every_wait(answer: Answer) -> None:
    """`wait` says no: Stopped, nothing is settled, and no further call is made."""
    world = World([answer], create_log_stream=False)
    world.most_waits = 2
    with pytest.raises(Stopped):
        world.send(events(2))
    assert len(world.sent) == 2
    assert (world.accepted, world.letters) == ([], [])
    assert world.log[-1] == "wait"


def test_no_call_is_made_without_a_check_before_it() -> None:
    """Fenced at any of the checks: the call after it is not made."""

    def script() -> World:
        world = World([THROTTLED, MISSING, wrong_token("1"), INVALID, OK])
        world.creations["create_stream"] = [MISSING]
        return world

    rehearsal = script()
    rehearsal.send(events(3))
    calls = [line.startswith(("put", "create")) for line in rehearsal.log]
    checks = [index for index, line in enumerate(rehearsal.log) if line == "check"]
    assert all(calls[index + 1] for index in checks)
    assert len(checks) == sum(calls) == 9
    for index in checks:
        world = script()
        world.fence_at = index
        with pytest.raises(Fenced):
            world.send(events(3))
        assert world.log == rehearsal.log[:index]


@pytest.mark.parametrize(
    ("answer", "resent"),
    [
        (TIMEOUT, 3),
        (UNAVAILABLE, 3),
        (NO_REQUEST_ID, 3),
        (REFUSED, 0),
        (THROTTLED, 0),
        (DENIED, 0),
        (EXPIRED, 0),
        (MISSING, 0),
        (wrong_token("1"), 0),
    ],
    ids=lambda value: value.code or "no request id" if isinstance(value, Answer) else str(value),
)
def test_only_what_may_have_arrived_counts_as_sent_again(answer: Answer, resent: int) -> None:
    """A lost answer may mean a duplicate; a refusal cannot."""
    world = World([answer, OK])
    world.send(events(3))
    assert world.delivery.take_resent() == resent
    assert world.delivery.take_resent() == 0


def test_close_closes_the_connection() -> None:
    """The socket goes with the delivery."""
    world = World([OK])
    world.delivery.close()
    assert world.actions == ["close"]


def test_a_throttled_call_has_the_next_ones_sent_less_often() -> None:
    """However often the same request is throttled, gathering doubles once; an accepted one shortens it again."""
    world = World([THROTTLED] * 5 + [OK])
    assert world.delivery.gather_seconds == 1.0
    world.send(events(3))
    assert world.delivery.gather_seconds == pytest.approx(2.0 * 0.95)
    for _ in range(20):
        world.send(events(1))
    assert world.delivery.gather_seconds == 1.0


@pytest.mark.parametrize("failure", [TIMEOUT, REFUSED, UNAVAILABLE, DENIED, EXPIRED], ids=lambda answer: answer.code)
def test_only_a_used_up_quota_has_calls_sent_less_often(failure: Answer) -> None:
    """After an outage the stream is as prompt as before."""
    world = World([failure, failure, OK])
    world.send(events(3))
    assert world.delivery.gather_seconds == 1.0


def test_a_throttled_creation_says_nothing_about_how_often_to_send() -> None:
    """CreateLogStream has a quota of its own, and is called once."""
    world = World([MISSING, MISSING, OK])
    world.creations["create_stream"] = [THROTTLED, OK]
    world.send(events(3))
    assert world.delivery.gather_seconds == 1.0
