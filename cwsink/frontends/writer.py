"""`Writer`: appends records to a spool, for every front end.

`Writer.append` is all that an application's thread does for us: it encodes the record and calls `write` once. When it
returns True the record is in the spool, and survives whatever happens to this process. It raises nothing of ours (a
signal handler that raises in the middle of it is heard), and never waits for the network. It blocks only under
`on_full="block"`, for at most `block_timeout_seconds`.

A record that the writer refuses is counted by reason, in the spool, and said (cwsink.frontends.losses).
"""

from __future__ import annotations

import itertools
import os
import time
from time import time_ns
from typing import TYPE_CHECKING, Final
from zlib import crc32 as _crc32

from msgspec.structs import replace

from cwsink import diagnostics
from cwsink.clock import monotonic
from cwsink.config import SinkConfig
from cwsink.errors import SpoolAccessError
from cwsink.frontends import console, losses, presence, sharing, static_fields
from cwsink.frontends.syncing import Syncing
from cwsink.frontends.turn import Turn
from cwsink.interruption import is_a, is_interruption
from cwsink.spool import capacity, descriptors, directory, frame, record, root
from cwsink.spool.record import MAX_PAYLOAD_BYTES, Event
from cwsink.spool.ring import Append, Ring, code_of
from cwsink.spool.segment import SegmentKey
from cwsink.target import Target

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from cwsink.settings import Settings

_BLOCK_POLL_SECONDS: Final = 0.005
_REOPEN_SECONDS: Final = 1.0
# While one thread opens another spool, which takes a few ms, the other threads of the process wait so long for it.
_REOPEN_WAIT_SECONDS: Final = 0.04
_MOST_MS: Final = 1 << 53
_APPENDED: Final = Append.APPENDED
_encode = record.encode
_fork_sentinel: Final = descriptors.fork_sentinel
_pack_checked = frame.pack_checked
_pack_header = frame.pack_header
_MAGIC: Final = frame.MAGIC_NUMBER
_HEADER_BYTES: Final = frame.HEADER_BYTES
_PLAIN_EVENT: Final = frame.PLAIN_EVENT
_write = os.write


class Writer(sharing.Shared):
    """Appends to one spool. Safe from threads, signal handlers, `__del__`, and across forks."""

    _presence: presence.Presence | None
    _losses: losses.Losses
    _is_begun: bool

    def __init__(self, config: SinkConfig, adds_fields: bool = True) -> None:
        """Open the spool of the config's target, and make it if it is missing. The first append attaches.

        `adds_fields`: add the static fields to each message that is a JSON object. A front end does that itself.

        Raises:
            ConfigError: the stream name or a static field cannot be resolved, or this is AWS Lambda.
            SpoolError: the spool cannot be used; the message says why and what to do.
        """
        presence.refuse_lambda()
        self.config = config
        self._open_spool(None)
        self._fields = static_fields.encode(config, self.directory) if adds_fields else ""
        self._quick_type = None if self._fields else str  # with fields every append goes by `prepare`, which adds them
        self._syncs = config.durability == "host"
        self._must_block = config.on_full == "block"
        self._ring = self._open_ring()
        self._reopen_at = 0.0
        self._become_producer()
        presence.this.add(self)

    @staticmethod
    def open(config: object = None, **settings: Unpack[Settings]) -> Writer:
        """Open a writer from a SinkConfig or mapping, single settings, and the environment.

        Where `CWSINK_TARGET` is not "cloudwatch", a Console takes its place, which can do the same for an application.

        Raises:
            ConfigError, SpoolError: as for the constructor; or no log group is given.
        """
        where, loaded = console.choose(config, **settings)
        opened = Writer(loaded) if where == "cloudwatch" else console.Console(where, loaded, adds_fields=True)
        return opened  # type: ignore[return-value]  # see the page of cwsink.frontends.console

    def append(self, message: str | bytes, timestamp_ms: int | None = None) -> bool:
        """Spool one event.

        Args:
            message: at least one character; bytes are read as UTF-8. Lone surrogates, and bytes that are not UTF-8, are
                kept as backslash escapes.
            timestamp_ms: the event's time in ms since 1970 UTC; the present time if this is None, no int, or no time.

        Returns:
            True: the record is in the spool. False: it was refused and counted, because the spool is full, the disk
            fails, or the message is empty or no text.
        """
        # This is Ring.append and frame.encode, spelled out for a small event with a plain str and int. To call
        # the two would cost a tenth of what the system call does. Everything else goes by `_append_any`.
        now = time_ns()
        ring = self._ring
        if (
            type(message) is not self._quick_type
            or not message
            or not ring.checked_at_ns <= now < ring.check_due_ns
            or not _fork_sentinel[0]
        ):
            return self._append_any(message, timestamp_ms)
        if timestamp_ms is None:
            timestamp_ms = now // 1_000_000
        elif type(timestamp_ms) is not int or not 0 <= timestamp_ms < _MOST_MS:
            return self._append_any(message, timestamp_ms)
        attached = ring.attached
        sequence = next(self._sequence)
        try:
            payload = _encode((timestamp_ms, self._producer, sequence, message))
            salt = attached.salt  # type: ignore[union-attr]  # None after a close in another thread: caught below
        except (UnicodeEncodeError, AttributeError, MemoryError):
            return self._append_any(message, timestamp_ms, sequence)
        size = len(payload)
        if size > ring.small_bytes:
            return self._append_payload(payload)
        crc = _crc32(payload, salt)
        header_crc = _crc32(_pack_checked(size, crc, _PLAIN_EVENT), salt)
        data = _pack_header(_MAGIC, header_crc, size, crc, _PLAIN_EVENT) + payload
        try:
            written = _write(attached.fd, data)  # type: ignore[union-attr]  # it had a salt, so it is not None
        except OSError as error:
            return self._await_room(self.after_append(ring.retry(code_of(error), payload), payload), payload)
        if sequence & ring.check_mask and written == size + _HEADER_BYTES:
            return True
        return self._await_room(self.after_append(ring.appended(written, len(data), payload), payload), payload)

    def prepare(self, message: object, timestamp_ms: object = None, sequence: int | None = None) -> bytes | None:
        """Encode a message of any type as a record. Return None if that cannot be done; the refusal is counted."""
        if not _fork_sentinel[0]:
            descriptors.become_child()
        now_ms = max(0, time_ns() // 1_000_000)  # a clock before 1970: no reader would take the record for one
        text = record.text_of(message) if is_a(message, record.TEXTS) else None
        if not text:
            self._losses.add_text(now_ms, f"a message of type {type(message).__name__} that is empty or no text")
            self.mark_losses()
            return None
        if self._fields:
            text = str(static_fields.add_to_text(text, self._fields))
        # int(): a bool is an int, too, but would be spooled as a boolean.
        timestamp_ms = int(timestamp_ms) if is_a(timestamp_ms, int) and 0 <= timestamp_ms < _MOST_MS else now_ms
        sequence = next(self._sequence) if sequence is None else sequence
        payload = _encode(Event(timestamp_ms, self._producer, sequence, text))
        return None if self._is_too_long(payload) else payload

    def try_append(self, payload: bytes) -> Append:
        """Append a prepared record if there is room now.

        A refusal is counted, except FULL under `on_full="block"`. Then the caller tries again, and calls `refuse` last.
        """
        before = attached.key if (attached := self._ring.attached) else None
        try:
            answer = self._ring.append(payload)
        except Exception as error:
            self.count_internal_error(error)
            return Append.FAILED
        return self.after_append(answer, payload, before)

    def after_append(self, answer: Append, payload: bytes, before: SegmentKey | None = None) -> Append:
        """Do what is due after an append, off the fast path. Returns how the append ended, as `try_append` does.

        Whatever goes wrong in that, a record in the spool is appended: who takes it for lost appends it once more.
        """
        if answer is Append.GONE:
            answer = self._reopen(payload)
        waits = answer is Append.FULL and self._must_block
        is_refused = answer is not _APPENDED and not waits
        if is_refused:
            self._losses.add_record(payload, answer)
        try:
            self.attach()
        except BaseException:  # a soft time limit, Ctrl-C: nobody tries again
            if waits:
                self._losses.add_record(payload, answer)
            self.mark_losses()
            raise
        if is_refused or (answer is _APPENDED and self._losses.pending):
            self.mark_losses()
        if self._syncs and answer is _APPENDED:
            self._syncing.sync(self.directory, self._ring, before)
        return answer

    def refuse(self, payload: bytes) -> None:
        """Count a prepared record for which there was no room, and that the caller does not try to append any more."""
        self._losses.add_record(payload, Append.FULL)
        self.mark_losses()

    def count_internal_error(self, error: Exception) -> bool:
        """Count a record lost to an error of our own: no memory, a bug. Returns False. A signal handler's is raised."""
        if is_interruption(error):
            raise error
        self._losses.add(losses.INTERNAL_ERROR, time_ns() // 1_000_000)
        self.mark_losses()
        diagnostics.report("internal_error", f"LOST a record, which is counted: {type(error).__name__}: {error}")
        return False

    def flush(self, timeout: float) -> bool:
        """Wait until the flusher has settled every record that any process has appended to the spool so far.

        Returns True if all are settled. After `timeout` seconds False: some stay, and are delivered later.
        """
        return presence.flush([(self.directory, self.config)], timeout)

    def close(self) -> None:
        """Let go of the spool. Sends nothing and waits for nothing; a later append opens the spool again."""
        self._ring.close()
        self.mark_losses(is_last=True)  # now, because the ring's descriptor may have been the last one

    def __reduce__(self) -> tuple[type[Writer], tuple[SinkConfig, bool]]:
        return Writer, (self.config, bool(self._fields))

    def mark_losses(self, *, is_last: bool = False) -> None:
        """Write down the counts of refused records that could not be written down before. `is_last`: say them, too."""
        self._losses.write_down(self.directory, is_last=is_last)
        if self._losses.pending:
            self._ring.check_due_ns = 0  # the next append then goes by `after_append`, which tries again

    def attach(self) -> None:
        """Attach this process, and now and then start a flusher if there is none. Raises what a signal handler does."""
        is_first = not self._is_begun
        try:
            if is_first:
                self._is_begun = True  # a signal handler that appends meanwhile does not begin
                self._presence = presence.this.presence_in(self.directory, self.config)
                self._presence.watch(self._ring)
            if self._presence is not None:
                self._presence.look()
            self._losses.watch(self.directory, self._ring.made)
        except BaseException as error:
            self._is_begun = self._is_begun and not is_first  # the next append goes on with it
            if not isinstance(error, Exception) or is_interruption(error):
                raise
            diagnostics.report("attach", f"cannot attach to {self.directory.path}: {error}. Each append tries again.")

    @property
    def is_healthy(self) -> bool:
        """Tell whether records can be spooled, are delivered, and none is lost now, as far as the spool says."""
        from cwsink.spool import alerts  # here, because few ask

        return self.is_usable and alerts.is_healthy(self.directory)

    @property
    def is_usable(self) -> bool:
        """Tell whether the spool is there, and its newest segment can be opened."""
        try:
            self._ring.attach()
        except OSError:
            return False
        return self.directory.is_present()

    def forked(self) -> None:
        """Become a new producer in a forked child. The losses that no marker tells of yet are the parent's."""
        self._ring.forked()
        self._become_producer()

    def _open_ring(self) -> Ring:
        losses.prepare(self.directory)
        ring = Ring(self.directory, capacity.of(self.config))
        if self._syncs:
            ring.small_bytes = -1  # no event is small then: every append goes by `after_append`, which syncs
        return ring

    def _become_producer(self) -> None:
        self._is_begun = False
        self._producer = int.from_bytes(os.urandom(8), "little")
        self._sequence = itertools.count()
        self._losses = losses.Losses()
        self._reopening = Turn()
        self._presence = None
        self._syncing = Syncing()

    def _append_any(self, message: object, timestamp_ms: object, sequence: int | None = None) -> bool:
        """Append a message of any type, also when a check of the ring is due or this process was forked."""
        try:
            payload = self.prepare(message, timestamp_ms, sequence)
        except Exception as error:
            return self.count_internal_error(error)
        return payload is not None and self._append_payload(payload)

    def _append_payload(self, payload: bytes) -> bool:
        return not self._is_too_long(payload) and self._await_room(self.try_append(payload), payload)

    def _is_too_long(self, payload: bytes) -> bool:
        """Tell whether no reader would take the record for one. The refusal is counted."""
        if len(payload) <= MAX_PAYLOAD_BYTES:
            return False
        what = f"a message of {len(payload):,} bytes; {MAX_PAYLOAD_BYTES:,} is the most"
        self._losses.add_text(time_ns() // 1_000_000, what)
        self.mark_losses()
        return True

    def _await_room(self, answer: Append, payload: bytes) -> bool:
        """Under `on_full="block"` try again until there is room, or `block_timeout_seconds` are over."""
        if answer is Append.FULL and self._must_block:
            until = monotonic() + self.config.block_timeout_seconds
            while answer is Append.FULL and monotonic() < until:
                try:
                    time.sleep(_BLOCK_POLL_SECONDS)
                    is_full = self._ring.is_full()  # the long part of an append; it writes nothing
                except BaseException as error:  # as above
                    self.refuse(payload)
                    if not isinstance(error, Exception) or is_interruption(error):
                        raise
                    return False
                answer = self.after_append(answer, payload) if is_full else self.try_append(payload)
            if answer is Append.FULL:
                self.refuse(payload)
        return answer is _APPENDED

    def _open_spool(self, resolved: Target | None) -> None:
        """Open the spool of a target; by default that of the config. Raises ConfigError, SpoolError."""
        self.directory = directory.open_for(self.config, None, resolved)
        presence.this.leave_settings(self.directory, self.config)

    def _reopen(self, payload: bytes) -> Append:
        """Open another spool for this target: this one was removed, or this process has changed its user."""
        if (turn := self._reopening.take(wait_seconds=_REOPEN_WAIT_SECONDS)) is None:
            return Append.FAILED
        with turn:
            try:
                return self._reopen_now(payload)
            except Exception as error:
                if is_interruption(error):
                    raise
                why = f"no spool can be opened any more: {str(error).rstrip('.')}"
                diagnostics.report("reopen", f"{why}. Records are refused and counted until it can.")
                return Append.FAILED

    def _reopen_now(self, payload: bytes) -> Append:
        old = self._ring
        if not old.is_removed and not old.is_of_another_user:
            return old.append(payload)  # another thread has opened the other spool
        if monotonic() < self._reopen_at:
            return Append.FAILED
        self._reopen_at = monotonic() + _REOPEN_SECONDS
        if old.is_of_another_user:
            self._open_as_new_user()
        else:
            self._open_again(old)
        return self._ring.append(payload)

    def _open_again(self, old: Ring) -> None:
        """Make the spool anew after somebody has removed it, with the records that went into removed segments."""
        self._open_spool(self.directory.format)
        ring = self._open_ring()
        mine = self._salvaged(old)
        for each in mine:
            ring.append(each)
        self._is_begun = False  # first, so that a process that is interrupted here attaches to the new spool
        self._ring = ring
        mine += (late := self._salvaged(old))  # other threads may have appended to the old ring meanwhile
        for each in late:
            ring.append(each)
        diagnostics.report(
            f"reopened_{self.directory.format.spool_id}",  # so that each removal is said
            f"the spool {self.directory.path} was removed or moved. It was made anew, with the last {len(mine):,} "
            "records of this process, which may arrive twice. What else was not delivered went with it.",
        )

    def _open_as_new_user(self) -> None:
        """Open a spool of the user that this process has become. The user before has the old one delivered."""
        before = self.directory
        try:
            self._open_spool(before.format)
        except SpoolAccessError:  # what the root user has made, or has named, is closed to others
            self.config = replace(self.config, spool_directory=root.default_root(os.environ))
            self._open_spool(before.format)
        self._is_begun = False
        self._ring = self._open_ring()
        presence.this.forget(before)
        diagnostics.report(
            "new_user",
            f"this process runs as user {os.geteuid()} now, and may not use the spool {before.path} any more. Its "
            f"records go to {self.directory.path}. To choose the place, name a spool_directory that this user may use.",
        )

    def _salvaged(self, ring: Ring) -> list[bytes]:
        """Return this producer's records that went into a removed segment in the last second, or since a salvage."""
        return [each for each in ring.salvage() if (made := record.event_of(each)) and made.producer == self._producer]
