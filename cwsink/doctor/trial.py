"""The trial (`--probe`): append one record, wait until it is delivered, and read it back if that is allowed."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from typing import Final

from msgspec.structs import replace

from cwsink import diagnostics, naming
from cwsink.doctor.finding import Finding, ok, unknown, wrong
from cwsink.doctor.patient import Case, Patient
from cwsink.flusher.examination import Examination
from cwsink.flusher.outcome import Outcome, advice_on, classify
from cwsink.frontends.writer import Writer
from cwsink.spool import leader_state
from cwsink.spool.survey import survey

SECONDS: Final = 20.0
# CloudWatch shows an event a moment after it has taken it.
_READ_TRIES: Final = 6
_READ_PAUSE_SECONDS: Final = 0.5


def probe(patient: Patient) -> Iterator[Finding]:
    """Does a record arrive?"""
    if not patient.cases:
        yield unknown(
            "probe", "there is no target to send to", "CWSINK_LOG_GROUP_NAME=/myapp/prod cwsink doctor --probe"
        )
        return
    case = patient.cases[0]
    text = json.dumps({"level": "INFO", "logger": "cwsink.doctor", "message": f"cwsink doctor {os.urandom(6).hex()}"})
    now_ms = time.time_ns() // 1_000_000
    with diagnostics.collected() as said, contextlib.closing(_writer(case, patient)) as writer:
        before = sum(survey(writer.directory).dead_lettered.values())
        is_spooled = writer.append(text, now_ms)
        is_settled = is_spooled and writer.flush(SECONDS)
        books = survey(writer.directory)
        published = leader_state.read(writer.directory)
    if not is_spooled:
        yield wrong("probe", f"{case.name}: the record was refused. {' '.join(said)}", "Look at root, disk and room.")
    elif not is_settled:
        obstacle = published.obstacle if published else ""
        error = published.last_error if published and obstacle else None
        seen = f"{case.name}: the record was spooled, and is not delivered after {SECONDS:g} s"
        yield wrong(
            "probe", f"{seen}: {error}" if error else seen, advice_on(error, obstacle) if error else "cwsink status"
        )
    elif sum(books.dead_lettered.values()) > before:
        yield wrong("probe", f"{case.name}: CloudWatch can never take it", "cwsink replay --dead-letters --dry-run")
    else:
        yield from _read_back(case, text, now_ms)


def _writer(case: Case, patient: Patient) -> Writer:
    """Open a writer with the settings that hold there. Raises CwsinkError."""
    if case.directory is None:
        return Writer(case.config)
    target = {name: value for name, value in case.target.settings().items() if value is not None}
    return Writer(replace(case.config, **target, spool_directory=case.directory.root))


def _read_back(case: Case, text: str, now_ms: int) -> Iterator[Finding]:
    stream = naming.stream_at(case.target.log_stream_name, now_ms)
    asked = Examination(case.target, case.config)
    with diagnostics.collected(), contextlib.closing(asked):
        for _ in range(_READ_TRIES):
            answer = asked.read(stream, now_ms)
            if answer.code or any(event.get("message") == text for event in asked.found.get("events", ())):
                break
            time.sleep(_READ_PAUSE_SECONDS)
        else:
            yield ok("probe", f"{case.name}: CloudWatch has taken the record, but does not show it yet")
            return
    if not answer.code:
        yield ok("probe", f"{case.name}: a record has arrived, and was read back")
    elif classify(answer) is Outcome.DENIED:
        yield ok("probe", f"{case.name}: CloudWatch has taken a record. It cannot be read back: {answer.code}")
    else:
        yield unknown("probe", f"{case.name}: CloudWatch has taken a record. To read it back fails: {answer.code}")
