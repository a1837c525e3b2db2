"""A root in which somebody else has planted what he likes: what commands show of it, and what they do not wait for.

Where the tests run as root, what is planted belongs to another user, and root looks at it.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Final

import msgspec
import pytest

from cwsink import Writer
from cwsink.flusher.commits import Cursor
from cwsink.frontends import presence
from cwsink.printable import printable, printable_json
from cwsink.spool import directory, frame, record, segment
from cwsink.spool.record import Event
from cwsink.testing import StrictCloudWatch
from cwsink.watching import lines
from tests.harness.support import CHILD_SECONDS, peak, quick_config

OTHER_USER: Final = 65_534
# Each of them acts on a terminal, or hides what it is.
ACTING: Final = "\x1b]0;PWNED\x07\x9b2J\x7f\u2028\u202e\u200b\ufeff\U000e0041"
PWNED: Final = f"{ACTING}cwsink: FAKE"
# What rich and we ourselves write on a terminal: colours, and the bars in their place.
OURS: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")
MOST_BYTES: Final = 100 << 20
# A command that waits is killed after this time. Each takes a tenth of it.
HANG_SECONDS: Final = 20.0


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **more}


def on_terminal(*words: object, seconds: float = HANG_SECONDS, **env: str) -> str:
    """Run a command whose stdout and stderr are a terminal. Returns what the terminal gets."""
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "cwsink", *map(str, words)],
        env=environment(**env),
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    said, until = b"", time.monotonic() + seconds
    try:
        while time.monotonic() < until:
            if select.select([ours], [], [], 0.1)[0]:
                try:
                    if not (more := os.read(ours, 65_536)):
                        break
                except OSError:  # the other end is closed
                    break
                said += more
            elif child.poll() is not None:
                break
        else:
            pytest.fail(f"{words} hangs: {said!r}")
    finally:
        child.kill()
        child.wait(CHILD_SECONDS)
        os.close(ours)
    return said.decode("utf-8", "surrogateescape")


def spool_of(server: StrictCloudWatch, stream: str, *messages: str) -> Path:
    """Make a spool with these records, in which nobody is attached."""
    writer = Writer(quick_config(server.endpoint_url, log_stream_name=stream, flusher="external"))
    for message in messages:
        assert writer.append(message)
    presence.this.forget_below(writer.directory.root)
    writer.close()
    return Path(writer.directory.path)


def rewrite_format(spool: Path, **changes: object) -> None:
    """Change FORMAT, with a right checksum."""
    content = {**json.loads((spool / "FORMAT").read_text()), **changes}
    content.pop("checksum")
    (spool / "FORMAT").write_text(json.dumps({**content, "checksum": directory._checksum(content)}))


def give_away(*paths: Path) -> None:
    if os.geteuid() == 0:
        for path in paths:
            for each in (path, *path.rglob("*")):
                os.lchown(each, OTHER_USER, OTHER_USER)


# What is shown.


@pytest.fixture
def planted(server: StrictCloudWatch) -> Path:
    """A root in which each text that a command may show is hostile."""
    good = spool_of(server, "good", "an honest line")
    root = good.parent
    entry = {"message": PWNED, "level": PWNED, "logger": PWNED, "data": {PWNED: PWNED, "n": [PWNED]}}
    lines = (PWNED, json.dumps(entry, ensure_ascii=False), json.dumps({"log": {**entry, "message": 5}}))
    for name in ("group", "files", "version"):
        spool = spool_of(server, name, *lines)
        spool.rename(root / f"{name}{PWNED}.0123456789")
    group, files, version = (root / f"{name}{PWNED}.0123456789" for name in ("group", "files", "version"))
    rewrite_format(group, log_group_name=PWNED, log_stream_name=PWNED, region=PWNED, host=PWNED)
    rewrite_format(version, format=PWNED)
    leader = {
        "pid": 1, "host": PWNED, "epoch": 2**62, "kind": PWNED, "state": "retrying", "last_error": PWNED,
        "started_by": PWNED, "unable": [{"pid": 1, "host": PWNED, "kind": PWNED, "error": PWNED, "at": 0}],
    }  # fmt: skip
    (files / "leader.json").write_text(json.dumps(leader))
    sent = {"cwsink": PWNED, "installation": PWNED, "written_by": PWNED, "settings": {PWNED: PWNED, "oversize": PWNED}}
    (files / "settings.json").write_text(json.dumps(sent))
    letter = {"time": PWNED, "reason": PWNED, "error": PWNED, "id": PWNED, "timestamp_ms": 1, "message": PWNED}
    (files / "dead_letters.jsonl").write_text(json.dumps(letter) + "\n")
    held = Cursor(str(files / "cursor"))
    state = held.take_over(PWNED)
    state.ledger.appended, state.ledger.dead_lettered = 1, {PWNED: 1}
    held.commit(state)
    held.close()
    nameless = root / f"nameless{PWNED}.0123456789"
    (nameless / "ring").mkdir(parents=True)
    (nameless / "ring" / "0000000001.seg").touch()
    give_away(group, files, version, nameless)
    return root


COMMANDS: Final = {
    "status": (["status"], True),
    "status --json": (["status", "--json"], True),
    "check": (["check"], False),
    "tail": (["tail"], True),
    "tail -n": (["tail", "-n", "5", "--grep", "FAKE"], False),
    "tail --json": (["tail", "--json"], True),
    "dry replay": (["replay", "--all", "--dry-run"], True),
    "dry replay of dead letters": (["replay", "--dead-letters", "--dry-run"], True),
    "flush": (["flush", "--once", "--timeout", "5"], True),
    "replay": (["replay", "--all"], True),
}


@pytest.mark.parametrize("terminal", ["dumb", "xterm-256color"])
@pytest.mark.parametrize("name", COMMANDS)
def test_nothing_that_is_planted_acts_on_a_terminal(planted: Path, name: str, terminal: str) -> None:
    """Names, FORMAT, leader.json, settings, letters and log lines: shown with escapes. The good spool is shown, too."""
    words, shows_good = COMMANDS[name]
    said = on_terminal(*words, planted, TERM=terminal, COLUMNS="200").replace("\r\n", "\n")
    if terminal != "dumb":
        said = OURS.sub("", said)
    assert printable(said) == said, repr(said)
    assert "Traceback" not in said
    assert not re.search(r"^cwsink: FAKE", said, re.MULTILINE), "no line is forged"
    if shows_good:
        assert "good" in said or "an honest line" in said


def test_run_shows_nothing_that_is_planted(planted: Path) -> None:
    """Neither its flusher nor its last look."""
    words = ("run", "--spool", planted, "--drain-timeout", "1", "--", "sh", "-c", "sleep 0.5")
    said = on_terminal(*words, TERM="xterm").replace("\r\n", "\n")
    assert printable(said) == said, repr(said)


@pytest.mark.parametrize("terminal", [True, False])
def test_json_of_tail_means_the_same_with_escapes(server: StrictCloudWatch, terminal: bool) -> None:
    """In a pipe the message is as it was logged. A terminal gets escapes, and who reads them gets the same message."""
    spool = spool_of(server, "json", PWNED + "ä\u20ac\U0001f600")
    if terminal:
        said = on_terminal("tail", "--json", spool)
        assert "ä\u20ac\U0001f600" in said
    else:
        said = subprocess.run(
            [sys.executable, "-m", "cwsink", "tail", "--json", spool],
            env=environment(),
            stdout=subprocess.PIPE,
            check=True,
        ).stdout.decode()
        assert "\x9b" in said
    assert json.loads(said)["message"] == PWNED + "ä\u20ac\U0001f600"


@pytest.mark.parametrize("code", [*range(0x20), *range(0x7F, 0xA0), 0xAD, 0x202E, 0xE0041, 0x1D173])
def test_each_character_that_acts_is_escaped_in_json(code: int) -> None:
    """And means the same to who reads it."""
    line = msgspec.json.encode(f"<{chr(code)}>").decode()
    shown = printable_json(line)
    assert printable(shown) == shown
    assert json.loads(shown) == f"<{chr(code)}>"


class ActingAnswers(BaseHTTPRequestHandler):
    """Answers with a code and a message that act on a terminal."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps({"__type": PWNED, "message": f"a\n{PWNED}"}).encode()
        self.send_response(400)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("x-amzn-RequestId", "\x9b2J")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hostile() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), ActingAnswers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join(CHILD_SECONDS)


def test_nothing_that_is_answered_acts_on_a_terminal(hostile: str) -> None:
    """CloudWatch's code and message, on stderr and in the status, are one line with escapes."""
    writer = Writer(quick_config(hostile, flusher="external"))
    assert writer.append("one")
    presence.this.forget_below(writer.directory.root)
    path = writer.directory.path
    said = on_terminal("flush", "--once", "--timeout", "3", path, TERM="dumb")
    said += on_terminal("status", path, TERM="dumb", COLUMNS="200")
    said = said.replace("\r\n", "\n")
    assert printable(said) == said, repr(said)
    assert "FAKE" in said, "it was shown"
    assert not re.search(r"^cwsink: FAKE", said, re.MULTILINE)


# Log lines.


def nested(depth: int, inner: str = "1") -> str:
    return '{"message":' + '{"a":' * depth + inner + "}" * depth + "}"


LOG_LINES: Final = [
    '{"message":"m","level":"FOO","diagnostics":{"levelno":-1}}',
    '{"message":"m","level":"FOO","diagnostics":{"levelno":1e999}}',
    '{"message":"m","level":"FOO","diagnostics":{"levelno":%s}}' % ("9" * 5000),
    '{"message":%s}' % ("9" * 5000),
    '{"message":1e400}',
    '{"message":{"a":1e400}}',
    '{"log":5}', '{"log":{"message":null}}', '{"log":[]}', '{"message":"m","data":5,"context":[],"diagnostics":"x"}',
    '{"message":"m","diagnostics":{"exception":{"error.stack":[1,[2]]}}}',
    '{"message":"m","level":5,"logger":{"a":[]},"context":{"a":{"b":1}}}',
    '{"message":"\\ud800","data":{"\\udfff":"\\u0000"}}', "{", "{}", "", "\0", "\ud7ff", "\x1b[2J", "{" * 100_000,
    '{"message":"m","data":' + "[" * 100_000 + "]" * 100_000 + "}",
]  # fmt: skip


@pytest.mark.parametrize("line", LOG_LINES, ids=range(len(LOG_LINES)))
@pytest.mark.parametrize("timestamp_ms", [0, -1, 2**63 - 1, -(2**63), 253_402_300_800_000])
def test_each_log_line_is_shown(line: str, timestamp_ms: int) -> None:
    """Whatever was logged: it is a line, and a filter can be asked about it."""
    shown = lines.read(Event(timestamp_ms, 1, 2, line))
    lines.is_at_least(shown, 30)
    said = lines.render(shown, today="2026-01-01", colour=True)
    assert printable(OURS.sub("", said)) == OURS.sub("", said)


def test_a_line_of_any_depth_is_shown() -> None:
    """Also where it can be read just so, and not be written again."""
    for place in ('"message":', '"message":"m","data":{"x":', '"message":"m","context":{"x":'):
        closing = "}" if "{" in place else ""
        for depth in (*range(5), *range(180, 260), *range(900, 1020), 10_000):
            line = "{" + place + "[" * depth + "]" * depth + closing + "}"
            lines.render(lines.read(Event(1, 1, 1, line)), today="2026-01-01", colour=False)


# What is not waited for.


def fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def link_to_zero(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def terabyte(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


def zero_directory(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def segment_of(spool: Path) -> Path:
    return max((spool / "ring").iterdir())


def append_frames(spool: Path, count: int) -> None:
    """Headers of frames, each right in itself, each with a payload that never comes."""
    from zlib import crc32

    path = segment_of(spool)
    header = segment.decode_header(path.read_bytes())
    assert header is not None
    salt, frames = header.key.salt, []
    for number in range(count):
        length = (count - number - 1) * frame.HEADER_BYTES
        checked = frame.pack_checked(length, 1, frame.PLAIN_EVENT)
        frames.append(frame.pack_header(frame.MAGIC_NUMBER, crc32(checked, salt), length, 1, frame.PLAIN_EVENT))
    with path.open("ab") as file:
        file.write(b"".join(frames))


def append_magic(spool: Path) -> None:
    with segment_of(spool).open("ab") as file:
        file.write(frame.MAGIC * ((64 << 20) // len(frame.MAGIC)))


def many_links(spool: Path) -> None:
    path = segment_of(spool)
    for number in range(2, 20_002):
        os.link(path, spool / "ring" / f"{number:010d}.seg")


def odd_leader(**fields: object) -> Callable[[Path], None]:
    def write(spool: Path) -> None:
        content = {"pid": 1, "host": "h", "epoch": 1, "kind": "own", **fields}
        (spool / "leader.json").write_text(json.dumps(content))

    return write


NAMES: Final = "FORMAT cursor leader.json leader.host leader.lock attached.lock settings.json capacity.json evictions "
NAMES_AND: Final = f"{NAMES} refusals hurry leader.next budget.lock dead_letters.jsonl dead_letters.jsonl.1".split()
KINDS: Final = (fifo, link_to_zero, terabyte, zero_directory)
PLANTS: Final[dict[str, Callable[[Path], None]]] = {
    **{
        f"{kind.__name__} {name}": lambda spool, kind=kind, name=name: kind(spool / name)
        for kind in KINDS
        for name in NAMES_AND
    },
    **{f"{kind.__name__} as a segment": lambda spool, kind=kind: kind(segment_of(spool)) for kind in KINDS},
    **{
        f"{kind.__name__} as the ring": lambda spool, kind=kind: (shutil.rmtree(spool / "ring"), kind(spool / "ring"))
        for kind in (fifo, zero_directory)
    },
    "link as the ring": lambda spool: (shutil.rmtree(spool / "ring"), (spool / "ring").symlink_to("/etc")),
    "frame headers": lambda spool: append_frames(spool, 40_000),
    "magic": append_magic,
    "20,000 links to a segment": many_links,
    "success in the far future": odd_leader(last_success=1e308),
    "success in the far past": odd_leader(last_success=-1e308),
    "an error of 250 KB": odd_leader(last_error="x " * 125_000, state="retrying"),
    "an error of 20 MB": odd_leader(last_error="x" * 20_000_000),
    "extreme numbers": odd_leader(
        epoch=2**64 - 1, pid=-(2**63), since=1e308, records_per_second=1e308, capacity_bytes=-5
    ),
    "letters of 1 TiB": lambda spool: terabyte(spool / "dead_letters.jsonl"),
    "8 MiB of empty letters": lambda spool: (spool / "dead_letters.jsonl").write_bytes(b"{}\n" * (8 << 20)),
    "a budget of nothing": lambda spool: (rewrite_format(spool, spool_max_bytes=0), (spool / "capacity.json").unlink()),
    "a negative budget": lambda spool: rewrite_format(spool, spool_max_bytes=-1),
    "an unknown setting": lambda spool: rewrite_format(spool, retention_days=-1),
    "a record of 16 MB": lambda spool: append_record(spool, "\x01" * 16_000_000),
    "50 records of 8 MB": lambda spool: [append_record(spool, "x" * 8_000_000) for _ in range(50)],
}


def append_record(spool: Path, message: str) -> None:
    path = segment_of(spool)
    fd = os.open(path, os.O_RDWR | os.O_APPEND)
    header = segment.read_header(fd)
    assert header is not None
    os.write(fd, frame.encode(record.encode(Event(1_700_000_000_000, 5, 0, message)), header.key.salt))
    os.close(fd)


LOOKS: Final = (
    ["status"],
    ["tail", "-n", "50"],
    ["replay", "--all", "--dry-run"],
    ["replay", "--dead-letters", "--dry-run"],
    ["check"],
)


SLOW: Final = ("20,000 links to a segment", "50 records of 8 MB")


@pytest.mark.timeout(300)
# Each third one runs each time, and the others in the long run.
@pytest.mark.parametrize(
    "plant",
    [
        each if index % 3 == 0 and each not in SLOW else pytest.param(each, marks=pytest.mark.long)
        for index, each in enumerate(PLANTS)
    ],
)
def test_a_planted_spool_hides_no_other(plant: str, server: StrictCloudWatch) -> None:
    """Whoever looks waits for nothing, takes less than 100 MiB, shows the good spool, and names what he cannot read."""
    good = spool_of(server, "good", "an honest line")
    bad = spool_of(server, "bad", "a line")
    PLANTS[plant](bad)
    give_away(bad)
    code = f"{MEASURED}\nlook({str(good.parent)!r})\n"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(COLUMNS="200"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=CHILD_SECONDS,
    )
    said = done.stdout.decode()
    print(said, done.stderr.decode())
    assert "Traceback" not in done.stderr.decode()
    *looks, peak = said.split("=====\n")
    assert len(looks) == len(LOOKS)
    for look, words in zip(looks, LOOKS, strict=True):
        assert "good" in look or "an honest line" in look or (words[0] == "check" and " spool" in look)
    assert int(peak) < MOST_BYTES
    shutil.rmtree(bad)


def look(root: str) -> None:
    """In a child: look at all spools by each command, and print how much memory was needed at most."""
    from cwsink.cli import main

    before = peak()  # this module has loaded the server, pytest and more, which no command has
    for words in LOOKS:
        main([*words, root])
        print("=====", flush=True)
    print(COMMAND_BYTES + peak() - before)


# What `cwsink status` takes with nothing to look at.
COMMAND_BYTES: Final = 36 << 20

MEASURED: Final = "from tests.integration.test_hostile_roots import look"


def test_who_holds_the_lock_of_his_letters_holds_up_nobody(server: StrictCloudWatch) -> None:
    """Who only looks does not wait for it."""
    bad = spool_of(server, "bad", "a line")
    fd = os.open(bad, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        said = on_terminal("replay", "--dead-letters", "--dry-run", bad.parent)
        assert "no dead letters" in said
        assert "lock" not in said, "a replay would wait for 10 s, and say so"
    finally:
        os.close(fd)


@pytest.mark.parametrize("plant", ["empty ring", "ring loop", "ring of a million"])
def test_a_neighbour_stops_no_flusher(plant: str, server: StrictCloudWatch) -> None:
    """One that is no spool: `flush` serves, and `run` ends with its command."""
    good = spool_of(server, "good", "an honest line")
    bad = good.parent / "x"
    bad.mkdir()
    if plant == "empty ring":
        (bad / "ring").touch()
    elif plant == "ring loop":
        (bad / "ring").symlink_to("ring")
    else:
        (bad / "ring").mkdir()
        for number in range(20_000):
            (bad / "ring" / f"{number}").touch()
    give_away(bad)
    words = [sys.executable, "-m", "cwsink", "run", "--spool", str(good.parent), "--", "sh", "-c", "exit 7"]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=CHILD_SECONDS)
    assert done.returncode == 7
    assert server.messages() == ["an honest line"]
    assert "FORMAT" not in done.stderr
