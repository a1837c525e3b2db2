"""Was anything lost? Evidence in, verdict out. Pure.

The evidence is of three independent kinds: what the HTTP clients saw, what each worker
noted after `logger.info` returned (cwsink.demo.oracle), and what botocore reads back from
CloudWatch. cwsink's own ledger is not evidence, it is what is checked against it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from cwsink.spool.survey import Survey


@dataclass(frozen=True)
class Evidence:
    """Everything is by request id; an id stands for one record.

    Attributes:
        sent: all tries of all requests.
        answered: id -> pid of the worker that answered, having logged the request.
        logged: `logger.info` returned.
        delivered: read back from CloudWatch, with how often.
        pending: still in the spool, not sent yet.
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
    """Counts are records. `problems` is empty if all is as promised.

    Attributes:
        logged: for which `logger.info` returned.
        unnoted: beyond those, in CloudWatch or the spool: the kill came before it was noted.
        delivered: distinct ones in CloudWatch.
        pending: in the spool.
        duplicates: events in CloudWatch beyond the first of each record.
        lost: logged, and neither in CloudWatch nor in the spool.
        problems: what is wrong, one sentence each.
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
