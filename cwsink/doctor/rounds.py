"""Asks all questions, each within its time, and all of them within one time (threads).

What hangs is left alone: its thread ends with the process. What a question raises is an "unknown" finding.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

from cwsink.clock import monotonic
from cwsink.doctor import application, course, given, place, reach, trial
from cwsink.doctor.finding import Finding, Verdict, unknown
from cwsink.doctor.patient import Patient
from cwsink.flusher import confidential
from cwsink.flusher.outcome import MOST_TEXT_BYTES, shortened
from cwsink.printable import printable

MOST_SECONDS: Final = 60.0
_MOST_PROBE_SECONDS: Final = trial.SECONDS + 15.0


class Question(NamedTuple):
    """A question.

    Attributes:
        topic: what it is called if it does not answer.
        ask: see above.
        seconds: how long it may take.
        if_silent: what it means if it takes longer.
    """

    topic: str
    ask: Callable[[Patient], Iterable[Finding]]
    seconds: float = 5.0
    if_silent: Verdict = "unknown"


QUESTIONS: Final = (
    Question("settings", given.settings),
    Question("target", given.targets),
    Question("writers", given.writers),
    Question("root", place.root),
    Question("disk", place.survival),
    Question("room", place.room),
    Question("user", place.users),
    Question("leader", course.leader),
    Question("delivery", course.delivery),
    Question("fapilog", application.fapilog, 10.0),
    Question("server", application.server),
    Question("stopping", application.stopping),
    Question("region", reach.region, 10.0),
    Question("name", reach.name, 10.0, "wrong"),
    Question("endpoint", reach.endpoint, 20.0, "wrong"),
    Question("credentials", reach.credentials, 15.0),
    Question("permissions", reach.permissions, 30.0),
)
PROBE: Final = Question("probe", trial.probe, _MOST_PROBE_SECONDS)


def examine(
    patient: Patient, questions: Iterable[Question] = QUESTIONS, *, seconds: float = MOST_SECONDS, probe: bool = False
) -> Iterator[Finding]:
    """Yield all findings as they come, harmless and without secrets, within `seconds` (and those of the probe)."""
    until = monotonic() + seconds
    for question in questions:
        yield from _ask(question, patient, min(question.seconds, until - monotonic()))
    if probe:
        yield from _ask(PROBE, patient, PROBE.seconds)


def _ask(question: Question, patient: Patient, seconds: float) -> Iterator[Finding]:
    if seconds <= 0:
        yield unknown(question.topic, "not asked, because the time is over")
        return
    answers: queue.SimpleQueue[Finding | None] = queue.SimpleQueue()

    def ask() -> None:
        try:
            for finding in question.ask(patient):
                answers.put(finding)
        except Exception as error:  # the other questions are asked all the same
            answers.put(unknown(question.topic, f"it cannot be told: {type(error).__name__}: {error}"))
        answers.put(None)

    until = monotonic() + seconds
    threading.Thread(target=ask, name=f"cwsink-doctor-{question.topic}", daemon=True).start()
    try:
        while (found := answers.get(timeout=max(0.0, until - monotonic()))) is not None:
            yield _harmless(found, patient)
    except queue.Empty:
        seen = f"no answer within {seconds:.0f} s: something hangs there"
        yield Finding(question.topic, question.if_silent, seen, _IF_IT_HANGS)


_IF_IT_HANGS: Final = "Look at /etc/resolv.conf, the proxy, the metadata service, and mounted disks."


def _harmless(finding: Finding, patient: Patient) -> Finding:
    def shown(text: str) -> str:
        text = confidential.hidden(confidential.hidden(text), patient.env)
        return printable(shortened(text, MOST_TEXT_BYTES), one_line=True)

    return Finding(shown(finding.topic), finding.verdict, shown(finding.seen), shown(finding.advice))
