"""Judges whether a record was lost (pure).

There are three independent kinds of evidence: the answers that the HTTP clients got, the
notes of each worker after `logger.info` has returned (cwsink.demo.oracle), and the events
that botocore reads back from CloudWatch. cwsink's own ledger is no evidence: it is checked
against the evidence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from cwsink.demo.read_back import LogEvent
from cwsink.demo.succession import Takeover
from cwsink.flusher.verification import Account
from cwsink.spool.survey import Survey


@dataclass(frozen=True)
class Evidence:
    """The evidence, as request ids. An id stands for one record.

    Attributes:
        sent: all tries of all requests.
        answered: id -> pid of the worker that answered, which it does after it has logged.
        logged: the requests whose `logger.info` has returned.
        delivered: the requests read back from CloudWatch, each with the number of its events.
        pending: the requests still in the spool, not sent yet.
        books: the spool's ledger.
    """

    sent: Collection[str]
    answered: Mapping[str, int]
    logged: Collection[str]
    delivered: Counter[str]
    pending: Collection[str]
    books: Survey


@dataclass(frozen=True)
class Verdict:
    """Numbers of records, and the problems found.

    Attributes:
        logged: records whose `logger.info` has returned.
        unnoted: other records in CloudWatch or the spool: the worker was killed before it noted them.
        delivered: different records in CloudWatch.
        pending: records in the spool.
        duplicates: events in CloudWatch beyond the first of each record.
        lost: records that were logged, and are neither in CloudWatch nor in the spool.
        problems: a sentence for each thing that is not as promised; empty if all is.
    """

    logged: int
    unnoted: int
    delivered: int
    pending: int
    duplicates: int
    lost: int
    problems: tuple[str, ...]


def judge(evidence: Evidence) -> Verdict:
    """Return what became of the records."""
    logged, delivered, pending = set(evidence.logged), set(evidence.delivered), set(evidence.pending)
    lost = logged - delivered - pending
    silent = evidence.answered.keys() - logged - delivered - pending
    problems = [
        _complain(lost, "logged, and neither in CloudWatch nor in the spool"),
        _complain(pending, "still waiting in the spool, not lost"),
        _complain(silent, "answered, and never noted as logged"),
        _complain(delivered - set(evidence.sent), "in CloudWatch, and never logged"),
        "" if logged else "Nothing was logged.",
        *_complain_of_books(evidence.books, len(delivered - pending)),
    ]
    return Verdict(
        logged=len(logged),
        unnoted=len(delivered | pending) - len(logged - lost),
        delivered=len(delivered),
        pending=len(pending),
        duplicates=evidence.delivered.total() - len(delivered),
        lost=len(lost),
        problems=tuple(filter(None, problems)),
    )


def _complain(names: Collection[str], what: str) -> str:
    count = len(names)
    return f"{count:,} record{'s' if count != 1 else ''} {what}, for example {min(names)}." if names else ""


def _complain_of_books(books: Survey, settled: int) -> Iterator[str]:
    if not books.adds_up:
        yield f"The ledger does not add up: {books}."
    if books.delivered != settled:
        yield f"The ledger says that {books.delivered:,} records are delivered; in CloudWatch are {settled:,}."


@dataclass(frozen=True)
class Ending:
    """Everything that is shown at the end.

    Attributes:
        verdict: what became of the records.
        account: what `cwsink verify` finds.
        books: the spool's ledger.
        takeover: the flusher before and after the kill.
        sent: the number of HTTP requests, with those sent again.
        again: of these, the number that got no answer, and were sent again.
        streams: all streams of the log group.
        events: all events that were read back.
        spool: the spool's directory.
    """

    verdict: Verdict
    account: Account
    books: Survey
    takeover: Takeover
    sent: int
    again: int
    streams: list[str]
    events: list[LogEvent]
    spool: str
