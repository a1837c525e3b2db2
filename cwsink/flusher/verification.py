"""Asks CloudWatch whether it has what was delivered: the work of `cwsink verify`.

For each log stream, window by window: read what CloudWatch shows, make again what was sent (`past`), and compare the
two (`account`). A window holds some 50,000 events, so memory does not grow with the history.

CloudWatch shows events a while after it has taken them. So what was delivered in the last ten minutes and is not shown
is "not yet": such windows are looked at again, after pauses that grow, until the caller's patience is over.

How far it is stands in history/verify.json. If it is interrupted, the same call goes on from there.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Final, Literal

import msgspec

from cwsink import naming
from cwsink.flusher import deadline
from cwsink.flusher.account import Difference, Span, compare, key_of, windows
from cwsink.flusher.instructions import config_of
from cwsink.flusher.log_reader import CALLS_PER_SECOND, LogReader
from cwsink.flusher.past import Past, Sent
from cwsink.spool import files, history
from cwsink.spool.directory import SpoolDirectory

WINDOW_EVENTS: Final = 50_000
# CloudWatch shows an event after some seconds. What it does not show after this time, it has lost.
LATE_SECONDS: Final = 600.0
_FIRST_PAUSE_SECONDS: Final = 1.0
_LONGEST_PAUSE_SECONDS: Final = 30.0
# The leader may have delivered these since the journal was read.
_FRESH_MS: Final = 60_000
_MOST_LISTED: Final = 1_000
_MOST_CHARACTERS: Final = 200
# How an event begins, or what is in it, that cwsink has put into the stream beside the records.
_OURS: Final = "cwsink: "
_OURS_WITHIN: Final = ('"logger":"cwsink","_cwsink":{"lost":', '"Namespace":"cwsink"')
# A work that was interrupted longer ago than this is begun anew.
_GO_ON_SECONDS: Final = 3_600.0
_SAVE_SECONDS: Final = 1.0
_MOST_BYTES: Final = 8 * 1024 * 1024

Cause = Literal["leader_death", "lost_answer", "unknown"]
_CAUSES: Final[dict[Cause, str]] = {
    "leader_death": "a flusher died between an answer and its commit",
    "lost_answer": "the answer to a request was lost",
    "unknown": "the cause is not known",
}
_MOST_SHOWN: Final = 20
Window = tuple[str, int, int]  # a stream, and [start, end) in ms


class MissingEvent(msgspec.Struct):
    """An event that was delivered, and that CloudWatch does not show.

    `at_ms`: when CloudWatch has taken it. `is_not_yet`: that was only now.
    """

    stream: str
    timestamp_ms: int
    id: str
    request_id: str
    at_ms: int
    message: str
    is_not_yet: bool = False


class Account(msgspec.Struct):
    """What was found. Counts are of events: a record that was split is several.

    Attributes:
        found: were delivered, and CloudWatch shows them, byte for byte.
        missing: were delivered, and CloudWatch does not show them.
        not_yet: the same, but they were delivered only now.
        repeated: CloudWatch shows an event more often than once: how much more, by cause.
        others: CloudWatch shows them, and history does not know them: not ours, or not in the history any more.
        notices: lines of cwsink itself: about losses, and metrics.
        forgotten: were delivered, but their records are not in the history any more, so they cannot be compared.
        unnoted_bytes: of the history; what became of them is not noted.
        listed: the first of the missing, and of those not shown yet.
    """

    found: int = 0
    missing: int = 0
    not_yet: int = 0
    repeated: dict[Cause, int] = {}
    others: int = 0
    notices: int = 0
    forgotten: int = 0
    unnoted_bytes: int = 0
    listed: list[MissingEvent] = []

    @property
    def is_whole(self) -> bool:
        """Tell whether nothing is missing, and something was compared if there was anything to compare."""
        return not (self.missing or self.not_yet or self.is_blind)

    @property
    def is_blind(self) -> bool:
        """Tell whether events were delivered, and history has none of them any more."""
        return bool(self.forgotten) and not (self.found or self.missing or self.not_yet)

    def add(self, more: Account) -> None:
        """Add what was found in one more window."""
        for name in ("found", "missing", "not_yet", "others", "notices", "forgotten"):
            setattr(self, name, getattr(self, name) + getattr(more, name))
        self.repeated = dict(Counter(self.repeated) + Counter(more.repeated))
        self.listed = (self.listed + more.listed)[:_MOST_LISTED]


class _Work(msgspec.Struct):
    """The content of verify.json."""

    asked: tuple[float | None, float | None]
    since_ms: int
    until_ms: int
    done: dict[str, int] = {}
    account: Account = msgspec.field(default_factory=Account)
    unsettled: list[Window] = []
    saved_at: float = 0.0


# Is told how far it is: how many events were compared, what share of all that is (from 0 to 1), and how many events are
# not shown yet and are waited for.
Show = Callable[[int, float, int], object]


class Verification:
    """One comparison of a spool's history with CloudWatch."""

    def __init__(
        self,
        directory: SpoolDirectory,
        show: Show,
        *,
        calls_per_second: float = CALLS_PER_SECOND,
    ) -> None:
        """Prepare. Raises OSError, ConfigError."""
        self._directory = directory
        self._show = show
        self._reader = LogReader(directory.format, config_of(directory), calls_per_second)
        self._path = f"{directory.history}/verify.json"
        self._past = Past(directory)
        self._began = time.time()

    @deadline.for_pages()
    def run(self, since: float | None = None, until: float | None = None, *, patience_seconds: float) -> Account:
        """Compare, and wait for what is not shown yet.

        Args:
            since, until: the events' own times, as seconds before now; None: all.
            patience_seconds: how long to wait for what is not shown yet.

        Raises:
            ReadBackError: CloudWatch does not answer, or does not allow it. The next call goes on.
            OSError: the history cannot be read.
        """
        work = self._resumed((since, until)) or self._begun(since, until)
        spans: defaultdict[str, list[Span]] = defaultdict(list)
        for each in self._past.entries:
            if each.request_id:
                spans[each.stream].append(Span(each.first_ms, each.last_ms, each.events))
        total = sum(each.events for of_stream in spans.values() for each in of_stream) or 1
        try:
            for stream in sorted(spans):
                begin = max(work.since_ms, work.done.get(stream, 0))
                for start, end in windows(spans[stream], begin, work.until_ms, WINDOW_EVENTS):
                    account = self._compare((stream, start, end))
                    if account.not_yet or (account.others and end > self._began * 1000 - _FRESH_MS):
                        work.unsettled.append((stream, start, end))
                    else:
                        work.account.add(account)
                    work.done[stream] = end
                    self._save(work)
                    self._show(work.account.found, min(1.0, work.account.found / total), 0)
            self._settle(work, patience_seconds)
        except BaseException:
            self._save(work, at_once=True)
            raise
        finally:
            self._reader.close()
        with contextlib.suppress(OSError):
            files.remove(self._path)
        work.account.unnoted_bytes = self._past.unnoted_bytes()
        return work.account

    def _settle(self, work: _Work, patience_seconds: float) -> None:
        """Look again at the windows that had events that were not shown yet, or not noted yet."""
        pause, until = _FIRST_PAUSE_SECONDS, time.monotonic() + patience_seconds
        while work.unsettled:
            self._past = Past(self._directory)
            accounts = [(window, self._compare(window)) for window in work.unsettled]
            is_over = time.monotonic() + pause > until
            work.unsettled = []
            for window, account in accounts:
                if account.not_yet and not is_over:
                    work.unsettled.append(window)
                else:
                    work.account.add(account)
            if work.unsettled:
                late = sum(account.not_yet for _, account in accounts)
                self._show(work.account.found, 1.0, late)
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _compare(self, window: Window) -> Account:
        """Compare one window."""
        shown: list[bytes] = []
        notices: set[bytes] = set()
        for event in self._reader.events(*window):
            shown.append(key := key_of(event.timestamp, event.message))
            if is_of_cwsink(event.message):
                notices.add(key)
        account = Account()
        lines: dict[bytes, int] = {}
        again: set[bytes] = set()
        sent: list[bytes] = []
        for each in self._sent(window, account):
            key = key_of(each.event.timestamp_ms, each.event.message)
            if each.is_again:
                again.add(key)
            else:
                sent.append(key)
            lines[key] = each.entry
        found = compare(sent, shown)
        account.found = found.found
        account.notices = sum(count for key, count in found.others.items() if key in notices)
        account.others = found.others.total() - account.notices
        account.repeated = dict(self._causes(found, lines, again))
        if found.missing:
            self._list_missing(window, found.missing, account)
        return account

    def _sent(self, window: Window, account: Account | None = None) -> Iterator[Sent]:
        """Yield what was sent in a window. Counts in `account` what is not in the history any more."""
        stream, start, end = window
        for index, entry in enumerate(self._past.entries):
            if entry.stream != stream or entry.last_ms < start or entry.first_ms >= end or not entry.request_id:
                continue
            found = self._past.sent(index)
            if found is not None:
                yield from (each for each in found if start <= each.event.timestamp_ms < end)
            elif account is not None and entry.first_ms >= start:
                account.forgotten += entry.events

    def _causes(self, found: Difference, lines: dict[bytes, int], again: set[bytes]) -> Counter[Cause]:
        """Say why events are there more than once."""
        causes: Counter[Cause] = Counter()
        for key, count in found.repeated.items():
            if key not in again and self._past.entries[lines[key]].resent:
                causes["lost_answer"] += count
            else:
                # Of a leader that dies before it notes its request, there is no line. The next one sends that first.
                causes["leader_death" if key in again or self._past.is_first(lines[key]) else "unknown"] += count
        return causes

    def _list_missing(self, window: Window, missing: Counter[bytes], account: Account) -> None:
        left = Counter(missing)
        latest_ms = (time.time() - LATE_SECONDS) * 1000
        for each in self._sent(window):
            key = key_of(each.event.timestamp_ms, each.event.message)
            if each.is_again or not left[key]:
                continue
            left[key] -= 1
            entry = self._past.entries[each.entry]
            is_not_yet = entry.at_ms >= latest_ms
            account.not_yet += is_not_yet
            account.missing += not is_not_yet
            if len(account.listed) < _MOST_LISTED:
                event, text = each.event, each.event.message[:_MOST_CHARACTERS]
                account.listed.append(
                    MissingEvent(
                        entry.stream, event.timestamp_ms, event.id, entry.request_id, entry.at_ms, text, is_not_yet
                    )
                )

    def _begun(self, since: float | None, until: float | None) -> _Work:
        now = self._began
        since_ms = 0 if since is None else int((now - since) * 1000)
        return _Work((since, until), since_ms, 1 << 53 if until is None else int((now - until) * 1000))

    def _resumed(self, asked: tuple[float | None, float | None]) -> _Work | None:
        with contextlib.suppress(OSError, ValueError, RecursionError):
            work = msgspec.json.decode(files.read(self._path, _MOST_BYTES)[0], type=_Work)
            if work.asked == asked and 0 <= self._began - work.saved_at < _GO_ON_SECONDS:
                return work
        return None

    def _save(self, work: _Work, *, at_once: bool = False) -> None:
        if at_once or time.time() - work.saved_at >= _SAVE_SECONDS:
            work.saved_at = time.time()
            with contextlib.suppress(OSError):  # it begins anew then
                files.replace(self._path, msgspec.json.encode(work))


def in_words(account: Account) -> Iterator[str]:
    """Yield an account as lines for people."""
    late = f", {account.not_yet:,} not shown yet" if account.not_yet else ""
    yield f"{account.found:,} events found, {account.missing:,} missing{late}."
    for cause, count in account.repeated.items():
        yield f"{count:,} more than once: {_CAUSES[cause]}."
    if account.others or account.notices:
        yield f"{account.others:,} that history does not know, {account.notices:,} notices of cwsink."
    if account.is_blind:
        yield "nothing could be compared, so nothing is known of what was delivered."
    if account.forgotten or account.unnoted_bytes:
        unnoted = f"and {account.unnoted_bytes:,} bytes of which nothing is noted"
        yield f"not compared: {account.forgotten:,} events that are not in the history any more, {unnoted}."
    for each in account.listed[:_MOST_SHOWN]:
        what = "not shown yet" if each.is_not_yet else "missing"
        where = f"{each.stream}, request {each.request_id}, id {each.id}"
        yield f"{what}: {naming.rfc3339(each.timestamp_ms)} {where}: {each.message}"
    if len(account.listed) > _MOST_SHOWN:
        yield f"and {account.missing + account.not_yet - _MOST_SHOWN:,} more (--json lists them)."


def is_of_cwsink(message: str) -> bool:
    """Tell whether cwsink itself has put an event into the stream: a notice, a trial line, or its metrics."""
    return message.startswith(_OURS) or any(each in message for each in _OURS_WITHIN)


def has_history(directory: SpoolDirectory) -> bool:
    """Tell whether there is anything to compare. Raises OSError."""
    return next(history.lines(directory), None) is not None
