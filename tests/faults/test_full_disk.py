"""A real full disk: a small tmpfs, filled by somebody else and freed again.

Mounting needs root, and is done in a mount namespace of the child's own, so that nothing of it is seen
outside or left behind.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cwsink.testing import StrictCloudWatch
from tests.conftest import Spawn
from tests.harness.support import CHILD_SECONDS, finish, is_ours, told_lost

pytestmark = pytest.mark.faults

DISK_BYTES = 4 * 1024 * 1024

# Mounts the tmpfs over `root`, and runs `scenario(writer, fill, free)`; what that returns is printed as JSON.
PROLOGUE = """
    import ctypes, json, os, sys, time
    from pathlib import Path

    url, root, on_full = sys.argv[1:4]
    os.makedirs(root, exist_ok=True)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", root.encode(), b"tmpfs", 0, b"size=" + sys.argv[4].encode()):
        sys.exit(f"cannot mount: {os.strerror(ctypes.get_errno())}")

    from cwsink import Writer
    from cwsink.flusher.election import Election
    from cwsink.spool.survey import survey
    from cwsink.testing.flushers import end_flushers
    from tests.harness.support import quick_config

    def config(**settings):
        return quick_config(url, **{"spool_directory": f"{root}/spools", "on_full": on_full,
                                    "block_timeout_seconds": 0.02, "circuit_breaker_enabled": False, **settings})

    def fill():
        '''Take all that is left of the disk, to the last byte.'''
        with open(f"{root}/somebody", "ab", buffering=0) as file:
            for size in (65536, 4096, 1):
                try:
                    while file.write(b"x" * size):
                        pass
                except OSError:
                    pass

    def free():
        os.unlink(f"{root}/somebody")

    def books(writer):
        found = survey(writer.directory)
        assert found.adds_up, found
        return {"appended": found.appended, "delivered": found.delivered, "evicted": found.evicted,
                "pending": found.pending, "refused": found.refused, "dead_lettered": found.dead_lettered}

    def until(condition, what):
        end = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end, f"still not: {what}"
            time.sleep(0.01)
"""


@pytest.fixture
def namespace() -> list[str]:
    """The command that runs a program in a mount namespace of its own; skips where that is not possible."""
    if sys.platform != "linux" or not (unshare := shutil.which("unshare")):
        pytest.skip("not run: a full disk needs Linux and unshare(1)")
    command = [unshare, "--mount", "--propagation", "private"]
    probe = subprocess.run([*command, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"not run: a tmpfs cannot be mounted here ({probe.stderr.strip()}); it needs root")
    return command


class FullDisk:
    """Runs scenarios on a disk of 4 MiB."""

    def __init__(self, command: list[str], spawn: Spawn, root: Path) -> None:
        self._command = command
        self._spawn = spawn
        self._root = root

    def run(
        self, url: str, on_full: str, scenario: str, *, disk_bytes: int = DISK_BYTES, code: int = 0
    ) -> dict[str, object]:
        # The mount is made by the child itself, inside the namespace that unshare gives it.
        launcher = "import os, sys; os.execvp(sys.argv[1], sys.argv[1:])"
        script = self._root.parent / "scenario.py"
        script.write_text(_dedented(PROLOGUE) + _dedented(scenario), encoding="utf-8")
        child = self._spawn(launcher, *self._command, sys.executable, script, url, self._root, on_full, disk_bytes)
        result: dict[str, object] = json.loads(finish(child, code=code).splitlines()[-1])
        return result


def _dedented(code: str) -> str:
    import textwrap

    return textwrap.dedent(code)


@pytest.fixture
def full_disk(namespace: list[str], spawn: Spawn, tmp_path: Path) -> FullDisk:
    """A disk of 4 MiB for a child process."""
    return FullDisk(namespace, spawn, tmp_path / "disk")


def records(server: StrictCloudWatch) -> list[str]:
    return [text for text in server.messages() if not is_ours(text)]


@pytest.mark.parametrize("on_full", ["drop_oldest", "drop_newest", "block"])
def test_a_disk_filled_by_somebody_else_costs_counted_records_only(
    full_disk: FullDisk, server: StrictCloudWatch, on_full: str
) -> None:
    """While it is full append answers False, raises nothing and kills nobody; freed, all goes on by itself."""
    result = full_disk.run(
        server.endpoint_url,
        on_full,
        """
        writer = Writer(config(flusher="external"))
        before = sum(writer.append(f"before {number} {'x' * 300}") for number in range(300))
        fill()
        attempts = 150 if on_full == "block" else 1500
        during = sum(writer.append(f"during {number} {'x' * 300}") for number in range(attempts))
        full = books(writer)
        free()
        freed_at = time.monotonic()
        until(lambda: writer.append("room again"), "room again")
        recovered = time.monotonic() - freed_at
        after = sum(writer.append(f"after {number} {'x' * 300}") for number in range(300))
        writer.close()

        from tests.harness.interleave import deliver
        deliver(writer.directory, config())
        print(json.dumps({"before": before, "during": during, "after": after, "attempts": attempts,
                          "full": full, "recovered": recovered, "books": books(writer)}))
        """,
    )
    print(f"full disk, {on_full}: appends again {result['recovered']:.2f} s after there is room")
    books = result["books"]
    assert isinstance(books, dict)
    assert (result["before"], result["after"]) == (300, 300)
    assert books["pending"] == 0
    assert not books["dead_lettered"]
    assert books["appended"] == 601 + int(str(result["during"]))
    assert books["refused"].get("io_error", 0) == 0
    assert books["refused"].get("spool_full", 0) >= int(str(result["attempts"])) - int(str(result["during"]))
    assert len(records(server)) == books["delivered"]
    assert books["delivered"] + books["evicted"] == books["appended"]
    if on_full != "drop_oldest":
        assert books["evicted"] == 0
        assert {text.split(" ")[0] for text in records(server)} >= {"before", "room", "after"}


def test_the_leader_delivers_while_the_disk_is_full(full_disk: FullDisk, server: StrictCloudWatch) -> None:
    """Full before the first commit: it needs no new block, so what is pending is delivered once, and freed."""
    result = full_disk.run(
        server.endpoint_url,
        "drop_newest",
        """
        writer = Writer(config(flusher="external"))
        assert all(writer.append(f"{number} {'x' * 300}") for number in range(600))
        from tests.harness.interleave import leading
        from cwsink.flusher.delivery import Delivery

        send, filled = Delivery.send, []

        def fill_and_send(self, request):
            if not filled:
                fill()
                filled.append(True)
            return send(self, request)

        Delivery.send = fill_and_send
        with leading(writer.directory, config()) as leader:
            until(lambda: survey(writer.directory).pending == 0, "all of it")
            fill()
            more = sum(writer.append(f"full {number} {'x' * 300}") for number in range(100))
            until(lambda: survey(writer.directory).pending == 0, "what came while the disk was full")
        print(json.dumps({"more": more, "books": books(writer)}))
        """,
    )
    books = result["books"]
    assert isinstance(books, dict)
    assert int(str(result["more"])) > 0
    texts = records(server)
    assert len(texts) == len(set(texts)) == books["delivered"] == 600 + int(str(result["more"]))


def test_a_leader_that_begins_on_a_full_disk_recovers_when_there_is_room(
    full_disk: FullDisk, server: StrictCloudWatch
) -> None:
    """Whatever it cannot write at first, it says so, does not spin, and delivers everything once in the end."""
    result = full_disk.run(
        server.endpoint_url,
        "drop_newest",
        """
        writer = Writer(config(flusher="external"))
        assert writer.is_usable  # it has its first segment, and no leader yet
        fill()
        first = [writer.append(f"{number}") for number in range(10)]
        assert all(first)  # its blocks were reserved
        election = Election(writer.directory, kind="own")
        election.start()
        until(lambda: election.trouble or election.epoch, "a leader tries")
        began = time.process_time()
        time.sleep(1.0)  # a leader that spins takes all of it
        used = time.process_time() - began
        free()
        until(lambda: writer.append("room again"), "room again")
        delivered = writer.flush(60)
        election.leave(0.0)
        assert election.has_ended(30)
        print(json.dumps({"first": sum(first), "delivered": delivered, "used": used, "books": books(writer)}))
        """,
    )
    assert result["delivered"] is True
    texts = records(server)
    assert Counts(texts).repeated == 0
    assert len(texts) == int(str(result["first"])) + 1
    assert float(str(result["used"])) < 0.5


@pytest.mark.parametrize("is_older", [False, True])
def test_a_leader_that_begins_on_a_full_disk_is_seen_to_lead(
    full_disk: FullDisk, server: StrictCloudWatch, is_older: bool
) -> None:
    """What it does, and that it lives, can be seen; if an older version has reserved nothing, then that it lives."""
    server.faults.deny("logs:PutLogEvents")
    result = full_disk.run(
        server.endpoint_url,
        "drop_newest",
        """
        from cwsink import diagnostics
        from cwsink.spool import heartbeat, held_lock, lease
        from cwsink.spool.stats import look

        heartbeat.BEAT_SECONDS, held_lock.PATIENCE_SECONDS = 0.1, 0.2
        writer = Writer(config(flusher="external"))
        assert writer.append("first")
        if IS_OLDER:
            os.unlink(writer.directory.leader_state)
        fill()
        election = Election(writer.directory, kind="own")
        election.start()
        until(lambda: election.epoch, "a leader begins")
        with diagnostics.collected() as said:
            for _ in range(20):
                lease.watch_holder(writer.directory, 13.0)
                time.sleep(0.02)
        for path in (writer.directory.leader_host, writer.directory.cursor):
            os.utime(path, (1, 1))
        until(lambda: look(writer.directory).leader_silent_seconds < 1000, "its heartbeat is seen")
        if not IS_OLDER:
            until(lambda: look(writer.directory).obstacle == "denied", "and what it does")
        full = look(writer.directory)
        free()
        until(lambda: look(writer.directory).leader.kind == "own", "there is room for its state")
        until(lambda: os.path.getsize(writer.directory.leader_host), "and for its mark")
        election.leave(0.0)
        assert election.has_ended(30)
        is_marked = os.path.exists(writer.directory.leader_host)
        print(json.dumps({"said": said, "kind": full.leader.kind, "is_marked": is_marked}))
        """.replace("IS_OLDER", str(is_older)),
    )
    assert "locked" not in str(result["said"])
    assert (result["kind"], result["is_marked"]) == ("unknown" if is_older else "own", False)


def test_a_disk_that_is_full_when_the_flusher_starts_delays_it(full_disk: FullDisk, server: StrictCloudWatch) -> None:
    """Neither its lock nor the settings can be written: the application goes on, and all arrives once there is room."""
    result = full_disk.run(
        server.endpoint_url,
        "drop_newest",
        """
        writer = Writer(config())
        assert writer.is_usable
        fill()
        first = [writer.append(f"{number}") for number in range(10)]
        until(lambda: time.sleep(0.2) or writer.append("more") or True, "a look")
        free()
        delivered = writer.flush(60)
        found = books(writer)
        end_flushers(Path(root))
        print(json.dumps({"first": sum(first), "delivered": delivered, "books": found}))
        """,
    )
    assert (result["first"], result["delivered"]) == (10, True)
    assert {str(number) for number in range(10)} <= set(records(server))
    books = result["books"]
    assert isinstance(books, dict)
    assert books["delivered"] == len(records(server)) == books["appended"]


class Counts:
    """How often texts repeat."""

    def __init__(self, texts: list[str]) -> None:
        self.repeated = len(texts) - len(set(texts))


def test_a_disk_that_is_full_from_the_start_stops_no_application(full_disk: FullDisk, server: StrictCloudWatch) -> None:
    """The spool cannot be made: a SpoolError that says so, at construction, and nothing else."""
    result = full_disk.run(
        server.endpoint_url,
        "drop_oldest",
        """
        from cwsink.errors import SpoolError
        fill()
        try:
            while True:  # the last inodes' worth
                Path(f"{root}/directory{time.monotonic_ns()}").mkdir()
                break
        except OSError:
            pass
        try:
            writer = Writer(config())
            answer = writer.append("text")
            error = ""
        except SpoolError as caught:
            answer, error = None, str(caught)
        free()
        again = Writer(config())
        result = {"answer": answer, "error": error, "again": again.append("now"), "flushed": again.flush(60)}
        end_flushers(Path(root))
        print(json.dumps(result))
        """,
    )
    assert result["answer"] in (None, False, True)
    assert result["answer"] is not None or "Nothing was written" in str(result["error"])
    assert (result["again"], result["flushed"]) == (True, True)
    assert "now" in records(server)


# A disk smaller than a segment.

KIB = 1024


@pytest.mark.parametrize("on_full", ["drop_oldest", "drop_newest"])
@pytest.mark.parametrize("disk_bytes", [256 * KIB, 2048 * KIB])
def test_a_disk_smaller_than_a_segment_is_used_as_far_as_it_goes(
    full_disk: FullDisk, server: StrictCloudWatch, on_full: str, disk_bytes: int
) -> None:
    """With nobody to send, most of it is used and the rest is counted; then a flusher delivers what is there."""
    result = full_disk.run(
        server.endpoint_url,
        on_full,
        """
        from cwsink.spool.budget import used_bytes
        settings = config(segment_bytes=8 << 20, spool_max_bytes=256 << 20, flusher="external")
        writer = Writer(settings)
        answers = [writer.append(f"{number} {'x' * 300}") for number in range(9000)]
        found, used = books(writer), used_bytes(writer.directory.ring)
        writer.close()
        from tests.harness.interleave import deliver
        deliver(writer.directory, settings)
        again = [writer.append(f"again {number} {'x' * 300}") for number in range(100)]
        deliver(writer.directory, settings)
        print(json.dumps({"accepted": sum(answers), "last": answers[-1], "used": used, "books": found,
                          "again": sum(again), "after": books(writer)}))
        """,
        disk_bytes=disk_bytes,
    )
    books, after = result["books"], result["after"]
    assert isinstance(books, dict)
    assert isinstance(after, dict)
    refused = books["refused"].get("spool_full", 0)
    assert books["refused"].get("io_error", 0) == 0
    assert int(str(result["accepted"])) + refused == 9000
    assert int(str(result["used"])) > 0.6 * disk_bytes
    assert result["again"] == 100
    assert after["pending"] == 0
    assert after["delivered"] + after["evicted"] == after["appended"] == int(str(result["accepted"])) + 100
    if on_full == "drop_oldest":
        assert (refused, result["last"]) == (0, True)
    else:
        assert after["evicted"] == 0
    assert len(records(server)) == after["delivered"]


@pytest.mark.parametrize("disk_bytes", [256 * KIB, 2048 * KIB])
def test_a_small_disk_takes_all_that_is_sent_in_time(
    full_disk: FullDisk, server: StrictCloudWatch, disk_bytes: int
) -> None:
    """An application with the default settings that logs ten disks full: all of it arrives, by its own flusher."""
    result = full_disk.run(
        server.endpoint_url,
        "block",
        """
        writer = Writer(quick_config(url, spool_directory=f"{root}/spools", segment_bytes=None, on_full="block",
                                     spool_max_bytes=256 << 20, block_timeout_seconds=30.0))
        count = 10 * int(sys.argv[4]) // 350
        answers = [writer.append(f"{number} {'x' * 300}") for number in range(count)]
        delivered = writer.flush(60)
        found = books(writer)
        end_flushers(Path(root))
        print(json.dumps({"count": count, "accepted": sum(answers), "delivered": delivered, "books": found}))
        """,
        disk_bytes=disk_bytes,
    )
    assert result["delivered"] is True
    assert result["accepted"] == result["count"]
    assert len(set(records(server))) == len(records(server)) == result["count"]


@pytest.mark.parametrize("end", ["exits", "is killed"])
def test_what_a_full_disk_refuses_is_counted_though_the_process_ends_before_there_is_room(
    full_disk: FullDisk, server: StrictCloudWatch, end: str
) -> None:
    """Three processes are refused at once, and end: each refusal is counted, and the stream is told of it."""
    result = full_disk.run(
        server.endpoint_url,
        "drop_newest",
        """
        end = "END"
        import signal
        settings = config(flusher="external")
        first = Writer(settings)
        assert first.append("before")
        fill()
        refused = sum(not first.append("x" * 300) for _ in range(1000))
        pipe = os.pipe()
        children = []
        for _ in range(3):
            pid = os.fork()
            if not pid:
                mine = sum(not first.append("y" * 300) for _ in range(700))
                # A busy machine may have kept another child from the processor in the middle of its counting for
                # longer than a refusal waits. Such a count is written down with the next refusal.
                while first._losses.pending and mine < 5000:
                    time.sleep(0.01)
                    mine += not first.append("y" * 300)
                os.write(pipe[1], f"{mine}\\n".encode())
                if end == "is killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                os._exit(0)
            children.append(pid)
        for pid in children:
            os.waitpid(pid, 0)
        refused += sum(map(int, os.read(pipe[0], 1000).split()))
        full = books(first)
        free()
        from tests.harness.interleave import deliver
        deliver(first.directory, settings)
        print(json.dumps({"refused": refused, "full": full, "after": books(first)}))
        """.replace("END", end),
    )
    assert int(str(result["refused"])) > 2000
    for books in (result["full"], result["after"]):
        assert isinstance(books, dict)
        assert books["refused"] == {"spool_full": result["refused"]}
    assert told_lost(server.messages(), "spool_full") == result["refused"]


# A disk that reserves nothing (ZFS, APFS): it is full in the middle of a record.


def test_where_nothing_is_reserved_the_oldest_go_for_new_ones(full_disk: FullDisk, server: StrictCloudWatch) -> None:
    """ENOSPC comes from a write; under drop_oldest one segment is evicted, and the record is written again."""
    result = full_disk.run(
        server.endpoint_url,
        "drop_oldest",
        """
        from cwsink.spool import disk
        disk.reserve = lambda fd, size_bytes, start=0: False
        settings = config(flusher="external")
        writer = Writer(settings)
        answers = [writer.append(f"{number} {'x' * 300}") for number in range(20_000)]
        found = books(writer)
        from tests.harness.interleave import deliver
        deliver(writer.directory, settings)
        print(json.dumps({"accepted": sum(answers), "books": found}))
        """,
    )
    assert result["accepted"] == 20_000
    books = result["books"]
    assert isinstance(books, dict)
    assert books["evicted"] > 0
    assert not books["refused"]
    sent = [int(text.split(" ")[0]) for text in records(server)]
    assert sent == list(range(20_000 - len(sent), 20_000))


# A disk with room whose inodes are used up: no file can be made.

INODES_GONE = """
        def take_inodes():
            '''Take all that are left, and one descriptor less than that.'''
            count = 0
            try:
                while True:
                    os.close(os.open(f"{root}/file{count}", os.O_CREAT | os.O_EXCL))
                    count += 1
            except OSError:
                return count

        MS_REMOUNT = 32
        assert not libc.mount(b"tmpfs", root.encode(), b"tmpfs", MS_REMOUNT, b"nr_inodes=64"), ctypes.get_errno()
"""


def test_without_an_inode_all_that_is_sent_in_time_arrives(full_disk: FullDisk, server: StrictCloudWatch) -> None:
    """No next segment can be made. The one there is gives back what is delivered of it, and takes many times its size.

    Its size grows and its blocks do not. Once there are inodes again, it is left for the next one.
    """
    result = full_disk.run(
        server.endpoint_url,
        "drop_oldest",
        INODES_GONE
        + """
        from cwsink.spool import segment
        from cwsink.spool.budget import used_bytes
        from tests.harness.interleave import leading
        settings = config(segment_bytes=65536, flusher="external")
        writer = Writer(settings)
        assert writer.append("first")
        refused, most_used = 0, 0
        with leading(writer.directory, settings):
            taken = take_inodes()
            for number in range(4000):
                refused += not writer.append(f"{number} {'x' * 300}")
                if number % 100 == 0:
                    until(lambda: survey(writer.directory).pending < 100, "delivery")
                    most_used = max(most_used, used_bytes(writer.directory.ring))
            segments = list(segment.numbers(writer.directory.ring))
            grown = segment.statuses(writer.directory.ring)[segments[0]].st_size
            for number in range(taken):
                os.unlink(f"{root}/file{number}")
            after = sum(writer.append(f"after {number} {'x' * 300}") for number in range(1000))
            until(lambda: survey(writer.directory).pending == 0, "all of it")
        print(json.dumps({"refused": refused, "most_used": most_used, "segments": segments, "grown": grown,
                          "after": after, "then": list(segment.numbers(writer.directory.ring)),
                          "books": books(writer)}))
        """,
    )
    assert (result["refused"], result["after"]) == (0, 1000)
    assert result["segments"] == [1]
    assert result["then"] != [1]
    assert int(str(result["grown"])) > 16 * 65536
    assert int(str(result["most_used"])) <= 3 * 65536
    books = result["books"]
    assert isinstance(books, dict)
    assert (books["evicted"], books["refused"]) == (0, {})
    texts = records(server)
    assert len(texts) == len(set(texts)) == 5001


@pytest.mark.parametrize("lacks", ["bytes", "inodes"])
def test_of_a_full_disk_nothing_is_said_that_is_not_so_now(
    full_disk: FullDisk, server: StrictCloudWatch, lacks: str
) -> None:
    """Nothing waits, so nobody is told to send it. Once there is room, the disk was full, and that is over."""
    result = full_disk.run(
        server.endpoint_url,
        "drop_oldest",
        INODES_GONE
        + """
        from cwsink.doctor import course
        from cwsink.spool.stats import look
        from cwsink.watching.screen import page

        def seen():
            spool = look(writer.directory)
            (finding,) = course._lost("spool", spool, writer.directory)
            screen = page([spool], 300).plain.split("\\n")
            return {"lines": screen[1:3], "losses": [finding.seen, finding.advice], "over": spool.lost_is_over}

        writer = Writer(config(flusher="external"))
        taken = take_inodes() if LACKS_INODES else fill()
        assert not any(writer.append(f"{number} {'x' * 300}") for number in range(500))
        writer.close()
        then = seen()
        for number in range(taken or 0):
            os.unlink(f"{root}/file{number}")
        if not LACKS_INODES:
            free()
        print(json.dumps({"then": then, "now": seen()}))
        """.replace("LACKS_INODES", str(lacks == "inodes")),
    )
    then, now = result["then"], result["now"]
    assert isinstance(then, dict)
    assert isinstance(now, dict)
    refused = "  Nothing waits: all that was logged here was refused."
    cause, advice = {
        "bytes": ("the disk is full (0 B free)", "Make room on the disk."),  # somebody else has filled it
        "inodes": (
            "the disk is full, with 4.0 MiB free: no file can be made there, because the inodes are used up",
            "Remove files from that disk (`df -i` counts them).",
        ),
    }[lacks]
    assert then["lines"][0].endswith(f" UTC: {cause}. {advice}")
    assert then["losses"][0].endswith(cause)
    assert (then["lines"][1], then["losses"][1], then["over"]) == (refused, advice, False)
    assert now["lines"][0].endswith(" UTC: the disk was full. That is over: there is room now.")
    assert now["losses"][0].endswith(": the disk was full")
    assert (now["lines"][1], now["losses"][1], now["over"]) == (
        refused,
        "Give the spool a larger disk, or log less.",
        True,
    )


@pytest.mark.parametrize("before", [10, 600])
def test_without_an_inode_and_a_leader_the_loss_is_said_for_what_it_is(
    full_disk: FullDisk, server: StrictCloudWatch, before: int
) -> None:
    """One segment takes twice its size, and the rest is refused; of several the oldest goes. Said are the inodes."""
    result = full_disk.run(
        server.endpoint_url,
        "drop_oldest",
        INODES_GONE
        + """
        BEFORE = NUMBER
        from cwsink import diagnostics
        from cwsink.spool import alerts
        settings = config(segment_bytes=65536, flusher="external")
        writer = Writer(settings)
        assert all(writer.append(f"before {number} {'x' * 300}") for number in range(BEFORE))
        take_inodes()
        with diagnostics.collected() as said:
            refused = sum(not writer.append(f"{number} {'x' * 300}") for number in range(2000))
            writer.close()
        print(json.dumps({"refused": refused, "said": said, "fate": alerts.fate_of(writer.directory),
                          "books": books(writer)}))
        """.replace("NUMBER", str(before)),
    )
    books, said = result["books"], result["said"]
    assert isinstance(books, dict)
    assert isinstance(said, list)
    if before == 10:
        assert int(str(result["refused"])) > 1000
        assert (books["evicted"], books["refused"]) == (0, {"spool_full": result["refused"]})
    else:
        assert (result["refused"], books["refused"]) == (0, {})
        assert books["evicted"] > 0
    lost = [line for line in said if line.startswith("LOST")]
    assert lost
    for line in lost:
        assert "free: no file can be made there, because the inodes are used up; no process sends. Remove files" in line
        assert "`df -i`" in line
        assert "spool_max_bytes" not in line
        assert "log less" not in line


def test_without_an_inode_for_the_leaders_lock_nobody_blames_cloudwatch(
    full_disk: FullDisk, server: StrictCloudWatch
) -> None:
    """The flusher cannot lead. Its last line says why, and names the inodes."""
    result = full_disk.run(
        server.endpoint_url,
        "drop_oldest",
        INODES_GONE
        + """
        import subprocess, textwrap
        application = '''
            import sys
            from cwsink import Writer
            from tests.harness.support import quick_config
            url, root, flusher = sys.argv[1:]
            writer = Writer(quick_config(url, spool_directory=root, drain_timeout_seconds=1.0, flusher=flusher))
            assert all([writer.append(f"{number}") for number in range(10)])
        '''
        def log(flusher):
            with open(f"{root}.said", "w") as file:
                subprocess.run([sys.executable, "-c", textwrap.dedent(application), url, f"{root}/spools", flusher],
                               stderr=file, check=True, timeout=50)
        log("external")
        Path(f"{root}/spools/flusher-{os.geteuid()}.lock").touch(mode=0o600)
        take_inodes()
        log("process")
        said = lambda: Path(f"{root}.said").read_text()
        until(lambda: "no process logs there any more" in said(), "the last line")
        end_flushers(Path(root))
        print(json.dumps({"said": said()}))
        """,
    )
    said = str(result["said"])
    assert "20 records stay in" in said
    (last,) = [line for line in said.splitlines() if "no process logs there any more" in line]
    assert "CloudWatch" not in last
    assert "no process could lead: OSError: [Errno 28] No space left on device: 'leader.lock'." in last
    assert "No file can be made there, because the inodes are used up: see `df -i`." in said


# A limit of the process: RLIMIT_FSIZE.


@pytest.mark.parametrize(("limit_bytes", "line"), [(0, "cannot make the spool"), (1024, "cannot append to")])
def test_a_limit_of_the_size_of_files_is_named(spawn: Spawn, limit_bytes: int, line: str) -> None:
    """Else "File too large" sends people to the disk. Another directory is not proposed: it would not help."""
    child = spawn(
        """
        import os, resource, sys
        from cwsink import Writer
        from cwsink.flusher.election import Election
        from tests.harness.support import quick_config

        made = Writer(quick_config("http://127.0.0.1:9", log_stream_name="made", flusher="external"))
        made.append("one")
        limit = int(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        election = Election(made.directory, kind="service")
        election.leave(0.0)
        election._try_to_lead()
        try:
            Writer(quick_config("http://127.0.0.1:9", flusher="external")).append("x" * 600)
        except OSError as error:
            print(error, file=sys.stderr)
        """,
        str(limit_bytes),
    )
    _, said = child.communicate(timeout=CHILD_SECONDS)
    for each in ("cannot flush", line):
        (found,) = [text for text in said.splitlines() if each in text]
        assert f"`ulimit -f` lets its files have {limit_bytes:,} bytes" in found
        assert "Name a writable" not in found


@pytest.mark.parametrize("limit_bytes", [32 * KIB, 1024 * KIB])
def test_a_process_that_may_make_only_small_files_makes_small_segments(
    server: StrictCloudWatch, spawn: Spawn, limit_bytes: int
) -> None:
    """EFBIG says that a segment is full, whatever its size; a record that fits into none is refused, and counted."""
    child = spawn(
        """
        import json, resource, sys
        from cwsink import Writer
        from cwsink.spool.survey import survey
        from tests.harness.interleave import deliver
        from tests.harness.support import quick_config

        url, limit = sys.argv[1], int(sys.argv[2])
        settings = quick_config(url, segment_bytes=8 << 20, spool_max_bytes=256 << 20, flusher="external")
        other = Writer(settings)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        writer = Writer(settings)
        answers = [writer.append(f"{number} {'x' * 300}") for number in range(5000)]
        large = writer.append("y" * limit)
        after = writer.append("after")
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        beyond = [writer.append("z" * 300) for _ in range(200)]
        writer.close()
        deliver(writer.directory, settings)
        print(json.dumps([sum(answers), large, after, sum(beyond), survey(writer.directory).refused]))
        """,
        server.endpoint_url,
        limit_bytes,
    )
    assert json.loads(finish(child)) == [5000, False, True, 200, {"io_error": 1}]
    assert [text.split(" ")[0] for text in records(server)][:5001] == [*map(str, range(5000)), "after"]


def test_on_a_disk_that_becomes_read_only_losses_are_said(full_disk: FullDisk, server: StrictCloudWatch) -> None:
    """They cannot be counted there. The process that logs says how many they are, and the doctor names the disk."""
    result = full_disk.run(
        server.endpoint_url,
        "drop_oldest",
        """
        import subprocess
        from cwsink.diagnostics import subscribe
        from cwsink.frontends import presence

        said = []
        subscribe(lambda key, message: said.append(message))
        writer = Writer(config(flusher="external"))
        assert writer.append("before")
        presence.this.forget_below(f"{root}/spools")  # a disk with a file open for writing cannot be made read-only
        writer.close()
        MS_RDONLY, MS_REMOUNT = 1, 32
        assert not libc.mount(b"tmpfs", root.encode(), b"tmpfs", MS_REMOUNT | MS_RDONLY, None), ctypes.get_errno()
        kept = [writer.append(f"{number}") for number in range(7)]
        presence.this.add(writer)
        presence.this.leave()
        doctor = subprocess.run([sys.executable, "-m", "cwsink", "doctor"], capture_output=True, text=True,
                                env={**os.environ, "CWSINK_SPOOL_DIRECTORY": f"{root}/spools"})
        print(json.dumps({"kept": kept, "said": said, "doctor": doctor.stdout}))
        """,
    )
    assert result["kept"] == [False] * 7
    said = result["said"]
    assert isinstance(said, list)
    assert [line for line in said if "Read-only file system" in line], said
    assert [line.partition(".")[0] for line in said if "LOST" in line] == [
        "LOST 7 records of this process (7 io_error)"
    ], said
    assert "and records are lost: Read-only file system" in str(result["doctor"]), result["doctor"]
