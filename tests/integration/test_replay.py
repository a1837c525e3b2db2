"""`cwsink replay --dead-letters`: a second chance, and what may not happen to a letter on the way."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import asdict

from cwsink import Writer
from cwsink.cli import dead_letters, main
from cwsink.cli.arguments import REPLAYABLE
from cwsink.config import SinkConfig
from cwsink.flusher.dead_letter import DeadLetter, DeadLetters
from cwsink.flusher.second_chance import Resend, Rules, Skip, options_for, restamped
from cwsink.limits import MAX_EVENT_BYTES
from cwsink.spool import budget, descriptors, disk
from cwsink.spool.directory import SpoolDirectory, open_existing
from cwsink.spool.record import Event
from cwsink.spool.survey import events, survey
from cwsink.testing import StrictCloudWatch
from tests.harness.interleave import deliver, leading
from tests.harness.support import CHILD_SECONDS, finish, give, is_ours, quick_config

Spawn = Callable[..., "subprocess.Popen[str]"]
Capture = pytest.CaptureFixture[str]

DAY_MS = 86_400_000
HOUR_MS = 3_600_000
THEN = 1_700_000_000_000
THEN_TEXT = "2023-11-14T22:13:20.000Z"


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@pytest.fixture
def external(server: StrictCloudWatch) -> SinkConfig:
    """A leader only where the test runs one."""
    return quick_config(server.endpoint_url, flusher="external")


@pytest.fixture
def spool(external: SinkConfig) -> SpoolDirectory:
    """An empty spool."""
    return Writer(external).directory


def cwsink(*words: object, code: int = 0) -> None:
    """Run a command in this process and assert its exit code."""
    assert main(["replay", "--dead-letters", *map(str, words)]) == code


def bury(directory: SpoolDirectory, reason: str, *messages: str, timestamp_ms: int | None = None) -> None:
    """Put letters where the leader would."""
    at = now_ms() if timestamp_ms is None else timestamp_ms
    DeadLetters(directory.dead_letters).add(
        reason, f"why {reason}", [Event(at, 7, number, message) for number, message in enumerate(messages)]
    )


def buried(directory: SpoolDirectory) -> list[str]:
    """The messages of the dead letters."""
    return [letter.message for letter, _ in DeadLetters(directory.dead_letters).read().letters]


def pending(directory: SpoolDirectory) -> list[str]:
    """The messages in the ring."""
    return [event.message for event in events(directory)]


def everything(directory: SpoolDirectory) -> dict[str, bytes]:
    """The content of all files of a spool."""
    return {str(path): path.read_bytes() for path in sorted(Path(directory.path).rglob("*")) if path.is_file()}


# The whole way.


def test_what_was_too_old_arrives_restamped(external: SinkConfig, server: StrictCloudWatch, capsys: Capture) -> None:
    """Refused for its age, it is sent with the present time and its own inside; the books add up all the way."""
    writer = Writer(external)
    then = now_ms() - 15 * DAY_MS
    assert writer.append('{"message": "as JSON", "n": 1.10}', then)
    assert writer.append("as text", then + 1)
    assert writer.append("live", now_ms())
    deliver(writer.directory, external)
    assert server.messages() == ["live"]
    before = survey(writer.directory)
    assert before.dead_lettered == {"too_old": 2}

    began = now_ms()
    cwsink("--restamp")
    out = capsys.readouterr().out
    assert "replayed 2 (2 too_old), skipped 0." in out
    assert (
        f"no process leads. They are sent when a worker logs again, or by `cwsink flush --once {writer.directory.path}`"
        in out
    )
    assert buried(writer.directory) == []
    books = survey(writer.directory)
    assert books.adds_up
    assert (books.appended, books.pending) == (5, 2)

    deliver(writer.directory, external)
    _live, as_json, as_text = server.events()
    assert json.loads(as_json.message) == {
        "message": "as JSON",
        "n": 1.1,
        "_cwsink": {"original_timestamp_ms": then, "original_time": rfc3339(then)},
    }
    assert as_json.message.startswith('{"message": "as JSON", "n": 1.10,')
    assert as_text.message == f"[{rfc3339(then + 1)}] as text"
    assert all(began <= each.timestamp <= now_ms() for each in (as_json, as_text))
    books = survey(writer.directory)
    assert books.adds_up
    assert (books.appended, books.delivered, books.pending) == (5, 3, 0)
    assert books.dead_lettered == {"too_old": 2}


def rfc3339(timestamp_ms: int) -> str:
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(timestamp_ms // 1000))
    return f"{moment}.{timestamp_ms % 1000:03}Z"


def test_a_leader_that_lives_sends_them(external: SinkConfig, server: StrictCloudWatch, capsys: Capture) -> None:
    """Poison that CloudWatch takes by now arrives with its own time and bytes; the leader is named."""
    server.faults.poison = "BAD"
    writer = Writer(external)
    then = now_ms() - HOUR_MS
    with leading(writer.directory, external):
        assert writer.append("BAD egg", then)
        assert writer.append("good egg", then)
        assert writer.flush(CHILD_SECONDS)
        assert buried(writer.directory) == ["BAD egg"]
        server.faults.poison = None
        cwsink(writer.directory.path)
        assert writer.flush(CHILD_SECONDS)
    assert f"pid {os.getpid()} on " in capsys.readouterr().out
    arrived = [(each.message, each.timestamp) for each in server.events() if not is_ours(each.message)]
    assert arrived == [("good egg", then), ("BAD egg", then)]
    assert buried(writer.directory) == []
    assert survey(writer.directory).appended == 3


def test_what_is_refused_again_is_a_dead_letter_again(
    external: SinkConfig, server: StrictCloudWatch, capsys: Capture
) -> None:
    """Nothing goes round in circles by itself, and nothing is lost."""
    server.faults.poison = "BAD"
    writer = Writer(external)
    assert writer.append("BAD egg")
    for _ in range(3):
        assert writer.append("good egg")
        deliver(writer.directory, external)
        assert buried(writer.directory) == ["BAD egg"]
        cwsink()
        assert buried(writer.directory) == []
    assert survey(writer.directory).dead_lettered == {"poison": 3}


def test_every_spool_below_a_root(external: SinkConfig, capsys: Capture) -> None:
    """Each has its own line; one that is empty says so."""
    spools = [Writer(SinkConfig(**{**asdict(external), "log_stream_name": name})).directory for name in ("a", "b", "c")]
    bury(spools[0], "poison", "1")
    bury(spools[2], "expired", "2", "3")
    cwsink(os.path.dirname(spools[0].path))
    out = capsys.readouterr().out
    for line in (
        "/test/group → a: replayed 1 (1 poison), skipped 0.",
        "/test/group → b: no dead letters.",
        "/test/group → c: replayed 2 (2 expired), skipped 0.",
    ):
        assert line in out
    assert [pending(spool) for spool in spools] == [["1"], [], ["2", "3"]]


# Which.


def letter(reason: str, message: str = "m", timestamp_ms: int = THEN) -> DeadLetter:
    return DeadLetter("", reason, "", "a-1", timestamp_ms, message)


@pytest.mark.parametrize(
    ("reason", "named", "restamp", "sent"),
    [
        ("too_old", None, False, "--restamp"),
        ("too_old", "too_old", False, "--restamp"),
        ("too_old", None, True, THEN + 1),
        ("too_new", None, False, THEN),
        ("too_new", None, True, THEN + 1),
        ("expired", None, False, THEN),
        ("expired", None, True, THEN + 1),
        ("poison", None, False, THEN),
        ("poison", None, True, THEN),
        ("poison", "poison", False, THEN),
        ("poison", "expired", False, "not asked for"),
        ("of_tomorrow", None, True, "does not know"),
    ],
)
def test_which_reasons_get_a_second_chance(reason: str, named: str | None, restamp: bool, sent: int | str) -> None:
    """By default all whose cause may have passed; --restamp gives a new time to what was refused for its own."""
    rules = Rules(REPLAYABLE, frozenset([named]) if named else None, restamp=restamp, max_event_bytes=MAX_EVENT_BYTES)
    verdict = rules.judge(letter(reason), THEN + 1)
    if isinstance(sent, str):
        assert isinstance(verdict, Skip)
        assert sent in verdict.why
    else:
        assert isinstance(verdict, Resend)
        assert verdict.timestamp_ms == sent
        assert verdict.message == ("m" if sent == THEN else f"[{THEN_TEXT}] m")


@pytest.mark.parametrize("reasons", [["too_old"], ["expired"], ["oversize"], ["too_new"], ["too_old", "poison"]])
def test_the_command_that_is_proposed_sends_them(reasons: list[str]) -> None:
    """It has the options that they need at once."""
    options = options_for(reasons).split()
    named = frozenset(["oversize"]) if "oversize" in options else None
    rules = Rules(REPLAYABLE, named, "--restamp" in options, 1_000)
    now = now_ms()
    for reason in reasons:
        sent = rules.judge(letter(reason, "m" * (2_000 if reason == "oversize" else 1), now), now)
        assert sent == Resend(now, getattr(sent, "message", "")), reason
    assert options_for(["oversize", "poison"]) == "", "the others are not left out"


def test_restamp_helps_whatever_has_become_too_old() -> None:
    """Poison of 15 days ago would only be refused for another reason."""
    rules = Rules(REPLAYABLE, None, restamp=True, max_event_bytes=MAX_EVENT_BYTES)
    verdict = rules.judge(letter("poison"), THEN + 15 * DAY_MS)
    assert verdict == Resend(THEN + 15 * DAY_MS, f"[{THEN_TEXT}] m")


def test_oversize_goes_if_it_fits_or_is_named() -> None:
    """What is too long still would come back; but workers may have been told to truncate or split."""
    long, longest = letter("oversize", "ü" * 51), letter("oversize", "ü" * 50)
    assert isinstance(Rules(REPLAYABLE, None, restamp=False, max_event_bytes=100).judge(long, THEN), Skip)
    assert isinstance(Rules(REPLAYABLE, None, restamp=False, max_event_bytes=100).judge(longest, THEN), Resend)
    named = Rules(REPLAYABLE, frozenset(["oversize"]), restamp=False, max_event_bytes=100)
    assert named.judge(long, THEN) == Resend(THEN, "ü" * 51)


def test_a_letter_is_not_restamped_beyond_the_limit() -> None:
    """With its own time inside it would be too long: it stays what it is."""
    rules = Rules(REPLAYABLE, None, restamp=True, max_event_bytes=100)
    assert isinstance(rules.judge(letter("too_old", "x" * 73), THEN), Resend)
    assert isinstance(rules.judge(letter("too_old", "x" * 74), THEN), Skip)


NOTE = f'"_cwsink":{{"original_timestamp_ms":{THEN},"original_time":"{THEN_TEXT}"}}'


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("plain", f"[{THEN_TEXT}] plain"),
        ('["a list"]', f'[{THEN_TEXT}] ["a list"]'),
        ("{not JSON}", f"[{THEN_TEXT}] {{not JSON}}"),
        ("17", f"[{THEN_TEXT}] 17"),
        ("{}", f"{{{NOTE}}}"),
        (' {"a": 1.10 }\n', f'{{"a": 1.10 ,{NOTE}}}'),
        ('{"a":1,"a":2}', f'{{"a":1,"a":2,{NOTE}}}'),
        ('{"a":{"_cwsink":1}}', f'{{"a":{{"_cwsink":1}},{NOTE}}}'),
        ('{"a":"\\ud800"}', f'{{"a":"\\ud800",{NOTE}}}'),
        (
            '{"_cwsink":{"truncated":true},"a":1}',
            f'{{{NOTE[:-1]},"truncated":true}},"a":1}}',
        ),
        (
            '{"_cwsink":{"original_timestamp_ms":1,"original_time":"then"}}',
            '{"_cwsink":{"original_timestamp_ms":1,"original_time":"then"}}',
        ),
        ('{"_cwsink":"mine","a":"\\ud800"}', f'{{{NOTE[:-1]},"value":"mine"}},"a":"\\ud800"}}'),
    ],
)
def test_the_original_time_is_kept_inside(message: str, expected: str) -> None:
    """In an object, beside what is there, which stays to the byte; else before the text."""
    changed = restamped(message, THEN)
    assert changed == expected
    changed.encode()


@pytest.mark.parametrize("inside", ["9" * 5000, "[" * 100_000 + "]" * 100_000, "1e999"])
def test_json_that_python_cannot_read_stays_json(inside: str) -> None:
    """Numbers without end and nesting without end are an object all the same."""
    for note in ("", ',"_cwsink":{}'):
        message = f'{{"a":{inside}{note}}}'
        assert restamped(message, THEN).startswith(f'{{"a":{inside}')
        assert restamped(message, THEN).endswith(f",{NOTE}}}")


def test_the_summary_says_why(spool: SpoolDirectory, capsys: Capture) -> None:
    """Replayed and skipped by reason; what was skipped stays, in its order."""
    bury(spool, "too_old", "1", "2", timestamp_ms=THEN)
    bury(spool, "poison", "3")
    bury(spool, "oversize", "x" * (MAX_EVENT_BYTES + 1))
    DeadLetters(spool.dead_letters).add_damage(1, 64, b"x")
    bury(spool, "expired", "4")
    cwsink(spool.path)
    out = capsys.readouterr().out
    assert (
        "replayed 2 (1 expired, 1 poison), skipped 4 (corrupt: 1, damage, which holds no record to send; "
        "oversize: 1, still longer than 1,048,550 bytes; sent all the same with --reason oversize; "
        "too_old: 2, CloudWatch takes them only with --restamp)." in out
    )
    assert buried(spool) == ["1", "2", "x" * (MAX_EVENT_BYTES + 1)]
    assert pending(spool) == ["3", "4"]
    cwsink(spool.path, "--reason", "oversize", "--reason", "too_old", "--restamp")
    assert "replayed 3 (1 oversize, 2 too_old), skipped 1 (corrupt: 1" in capsys.readouterr().out
    assert b'"corrupt"' in Path(spool.dead_letters).read_bytes()


def test_a_dry_run_changes_nothing(spool: SpoolDirectory, capsys: Capture) -> None:
    """It counts what would be done, and no byte of the spool is another."""
    bury(spool, "poison", "1", "2")
    bury(spool, "too_old", "3", timestamp_ms=THEN)
    before = everything(spool)
    cwsink(spool.path, "--dry-run")
    assert "would replay 2 (2 poison), skip 1 (too_old: 1, " in capsys.readouterr().out
    cwsink(spool.path, "--dry-run", "--restamp")
    assert "would replay 3 (2 poison, 1 too_old), skip 0." in capsys.readouterr().out
    assert everything(spool) == before


# What can be wrong.


def test_garbage_is_told_and_stays(spool: SpoolDirectory, capsys: Capture) -> None:
    """Lines that cannot be read are not fatal: the others are replayed, these stay where they are."""
    bury(spool, "poison", "1")
    with open(spool.dead_letters, "ab") as file:
        file.write(b"\xff\xfe garbage\n{}\n")
    bury(spool, "poison", "2")
    cwsink(spool.path)
    assert f"2 lines of {spool.dead_letters} cannot be read, and stay there." in capsys.readouterr().err
    assert pending(spool) == ["1", "2"]
    assert Path(spool.dead_letters).read_bytes() == b"\xff\xfe garbage\n{}\n"


def test_what_the_cap_has_cost_is_told(spool: SpoolDirectory, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """How many letters are lost stands in the summary, also when none is left."""
    small = DeadLetters(spool.dead_letters, 8192)
    small.add("poison", "why", [Event(now_ms(), 7, number, "x" * 100) for number in range(100)])
    left = len(buried(spool))
    for replayed in (f"replayed {left}", "no dead letters"):
        cwsink(spool.path)
        out = capsys.readouterr().out
        assert replayed in out
        assert f"{100 - left} dead letters lost before. The oldest go when all together take 8 MiB." in out


def test_a_full_spool_stops_it(server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """No live record is evicted: what does not fit stays a dead letter, code 1; delivered, there is room again."""
    config = quick_config(server.endpoint_url, flusher="external", segment_bytes=4096, spool_max_bytes=64 * 1024)
    monkeypatch.setenv("FAPILOG_CLOUDWATCH__SEGMENT_BYTES", "4096")
    writer = Writer(config)
    live = [f"live {number} {'x' * 200}" for number in range(50)]
    assert all(writer.append(each) for each in live)
    letters = [f"letter {number} {'x' * 200}" for number in range(500)]
    bury(writer.directory, "poison", *letters)
    cwsink(code=1)
    captured = capsys.readouterr()
    kept = buried(writer.directory)
    assert 0 < len(kept) < 500
    assert f"replayed {500 - len(kept)} (" in captured.out
    assert (
        f"cwsink: {len(kept)} dead letters of {writer.directory.path} stay: the spool, or its disk, is full"
        in captured.err
    )
    assert budget.used_bytes(writer.directory.ring) <= 64 * 1024 + 4096
    assert budget.read_evictions(writer.directory).records == 0
    assert pending(writer.directory) == live + letters[: 500 - len(kept)]
    while kept:
        deliver(writer.directory, config)
        before = len(kept)
        code = main(["replay", "--dead-letters"])
        kept = buried(writer.directory)
        assert len(kept) < before
        assert code == (1 if kept else 0)
    deliver(writer.directory, config)
    assert server.messages() == live + letters


@pytest.mark.parametrize("failing", ["sync", "remove"])
def test_what_cannot_be_taken_out_is_told(
    spool: SpoolDirectory, monkeypatch: pytest.MonkeyPatch, capsys: Capture, failing: str
) -> None:
    """The disk fails between the two: code 1, and that a further replay sends them twice."""

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(*((disk, "sync") if failing == "sync" else (DeadLetters, "remove")), fail)
    bury(spool, "poison", "1", "2")
    cwsink(spool.path, code=1)
    captured = capsys.readouterr()
    assert "replayed 2" in captured.out
    assert "2 dead letters of" in captured.err
    assert "Another replay sends them again." in captured.err
    assert pending(spool) == buried(spool) == ["1", "2"]


def test_two_replays_do_not_send_twice(spool: SpoolDirectory, capsys: Capture) -> None:
    """The second finds the first at work, says so, and changes nothing."""
    bury(spool, "poison", "1")
    fd = os.open(f"{spool.path}/FORMAT", os.O_RDONLY)
    assert descriptors.try_lock(fd, exclusive=True)
    cwsink(spool.path, code=1)
    assert "another replay is at work" in capsys.readouterr().err
    cwsink(spool.path, "--dry-run")
    os.close(fd)
    assert (pending(spool), buried(spool)) == ([], ["1"])
    cwsink(spool.path)
    assert (pending(spool), buried(spool)) == (["1"], [])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a spool away")
def test_another_users_spool_is_refused(spool: SpoolDirectory, capsys: Capture) -> None:
    """Files of the wrong owner would shut the workers out: code 1. A look at it is allowed."""
    bury(spool, "poison", "1")
    give(spool.path, 12345)
    cwsink(spool.path, code=1)
    assert "belongs to user 12345" in capsys.readouterr().err
    cwsink(spool.path, "--dry-run")
    assert "would replay 1" in capsys.readouterr().out
    give(spool.path, 0)
    spool = open_existing(spool.path)
    assert (pending(spool), buried(spool)) == ([], ["1"])


def test_no_spool_is_not_done(tmp_path: Path, capsys: Capture) -> None:
    """Code 1, and what that may mean."""
    cwsink(tmp_path / "nothing", code=1)
    assert "is not there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "replay what? PATH of a spool"),
        (["--dry-run"], "replay what? PATH of a spool"),
        (["--all", "--rate", "0"], "0 is less than 1"),
        (["--all", "--rate", "fast"], "invalid RECORDS value: 'fast'"),
        (["--all", "--dead-letters", "--rate", "5"], "--all and --rate cannot be combined with --dead-letters"),
        (["--all", "--reason", "poison"], "--reason, --restamp and --clear are for --dead-letters"),
        (["--dead-letters", "--reason", "corrupt"], "invalid choice: 'corrupt'"),
        (["--dead-letters", "--reason"], "expected one argument"),
        (["--dead-letters", "--clear", "--restamp"], "--clear throws letters away"),
        (["--restamp", "--dry-run"], "--reason, --restamp and --clear are for --dead-letters"),
    ],
)
def test_usage_errors(words: list[str], said: str, capsys: Capture) -> None:
    """Code 2, the usage, and what is wrong."""
    with pytest.raises(SystemExit) as ended:
        main(["replay", *words])
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("usage: cwsink replay")
    assert said in err


def test_help_has_examples(capsys: Capture) -> None:
    """--help: code 0, every reason, and examples that are legal."""
    with pytest.raises(SystemExit) as ended:
        main(["replay", "--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    examples = re.findall(r"^  cwsink (replay .*?)   ", out, re.MULTILINE)
    assert len(examples) == 7
    from cwsink.cli import arguments

    for example in examples:
        options = arguments.parser().parse_args(example.split())
        assert options.dead_letters or options.all or options.path
    for reason in (*arguments.REPLAYABLE, "corrupt"):
        assert f"\n  {reason} " in out


# Prints which of the heavy packages a replay loaded.
LOADED = """
    import sys
    from cwsink.cli import main

    code = main(["replay", "--dead-letters"])
    print("loaded", *sorted({"boto3", "botocore", "fapilog", "rich"} & set(sys.modules)))
    sys.exit(code)
"""


def test_it_loads_nothing_heavy(spool: SpoolDirectory, spawn: Spawn) -> None:
    """It sends nothing itself, and without a terminal shows no bar."""
    bury(spool, "poison", "1")
    assert finish(spawn(LOADED)).splitlines()[-1] == "loaded"
    assert pending(spool) == ["1"]


# Killed at every point.

# Replays in steps of three, and kills itself before the n-th call that changes a file.
KILLED = """
    import os, signal, sys
    from cwsink.cli import dead_letters, main
    from cwsink.spool import disk, ring

    calls, kill_at = 0, int(sys.argv[2])

    def counted(real):
        def call(*arguments, **more):
            global calls
            if calls == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            calls += 1
            return real(*arguments, **more)
        return call

    dead_letters._STEP_LETTERS = 3
    ring._write = counted(ring._write)
    disk.sync = counted(disk.sync)
    for name in ("replace", "unlink", "fsync", "link"):
        setattr(os, name, counted(getattr(os, name)))
    sys.exit(main(["replay", "--dead-letters", "--restamp", sys.argv[1]]))
"""


@pytest.mark.faults
def test_a_kill_at_any_point_loses_no_letter(external: SinkConfig, spawn: Spawn, capsys: Capture) -> None:
    """Each letter is in the ring or still a dead letter; at most one step of them is in both."""
    messages = [f"letter {number}" for number in range(8)]
    for kill_at in range(100):
        spool = Writer(SinkConfig(**{**asdict(external), "log_stream_name": f"killed-{kill_at}"})).directory
        bury(spool, "poison", *messages[:6])
        os.replace(spool.dead_letters, f"{spool.dead_letters}.1")
        bury(spool, "poison", *messages[6:])
        bury(spool, "corrupt", "not ours to send")
        child = spawn(KILLED, spool.path, kill_at)
        child.communicate(timeout=CHILD_SECONDS)
        replayed, left = pending(spool), buried(spool)[:-1]
        assert replayed == messages[: len(replayed)]
        assert left == messages[len(messages) - len(left) :]
        assert len(messages) <= len(replayed) + len(left) <= len(messages) + 3
        cwsink(spool.path)
        assert set(pending(spool)) == set(messages)
        assert buried(spool) == ["not ours to send"]
        assert not Path(f"{spool.dead_letters}.tmp").exists()
        assert survey(spool).adds_up
        if child.returncode == 0:
            assert kill_at > 15, "nothing was tried"
            return
        assert child.returncode == -signal.SIGKILL
    raise AssertionError("it never came to its end")


def test_ctrl_c_sends_nothing_twice(spool: SpoolDirectory, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """What was appended until then is taken out before it ends; code 1."""
    bury(spool, "poison", *map(str, range(10)))
    real = dead_letters.record.encode
    calls = iter(range(10))

    def interrupted(event: Event) -> bytes:
        if next(calls) == 4:
            raise KeyboardInterrupt
        return real(event)

    with monkeypatch.context() as patch:
        patch.setattr(dead_letters.record, "encode", interrupted)
        cwsink(spool.path, code=1)
    assert "interrupted" in capsys.readouterr().err
    assert pending(spool) == ["0", "1", "2", "3"]
    assert buried(spool) == ["4", "5", "6", "7", "8", "9"]


# While a leader buries more.


def test_letters_that_come_meanwhile_stay(
    spool: SpoolDirectory, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Between every two steps the leader adds letters, and once begins a new file: none is lost, none sent unread."""
    bury(spool, "poison", *[f"before {number} {'x' * 200}" for number in range(20)])
    before = buried(spool)
    monkeypatch.setattr(dead_letters, "_STEP_LETTERS", 3)
    real = DeadLetters.remove
    added: list[str] = []

    def meanwhile(self: DeadLetters, lines: list[bytes]) -> None:
        # The leader's own cap is such that it begins a new file now and then, but drops none.
        leader = DeadLetters(spool.dead_letters, 12 * 1024)
        for _ in range(2):
            added.append(f"meanwhile {len(added)} {'x' * 200}")
            leader.add("poison", "why", [Event(now_ms(), 9, len(added), added[-1])])
        rotated.append(os.path.exists(f"{spool.dead_letters}.1"))
        real(self, lines)

    rotated: list[bool] = []
    monkeypatch.setattr(DeadLetters, "remove", meanwhile)
    cwsink(spool.path)
    assert any(rotated)
    assert pending(spool) == before
    assert buried(spool) == added


# A leader that adds letters one by one and says so.
BURIES = """
    import sys, time
    from cwsink.flusher.dead_letter import DeadLetters
    from cwsink.spool.record import Event

    letters = DeadLetters(sys.argv[1], 1024 * 1024)
    for number in range(2_000):
        letters.add("poison", "why", [Event(time.time_ns() // 1_000_000, 7, number, f"{number} {'x' * 200}")])
    print("done")
"""


@pytest.mark.faults
def test_replays_beside_a_leader_that_buries_all_the_time(
    spool: SpoolDirectory, spawn: Spawn, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Of 2,000 letters that come while replay follows replay, each is in the ring exactly once in the end."""
    monkeypatch.setattr(dead_letters, "_STEP_LETTERS", 50)
    child = spawn(BURIES, spool.dead_letters)
    replays = 0
    while child.poll() is None:
        cwsink(spool.path)
        replays += 1
    assert finish(child) == "done\n"
    cwsink(spool.path)
    assert replays > 1
    counts = Counter(int(message.split()[0]) for message in pending(spool))
    assert counts == Counter(range(2_000))
    assert buried(spool) == []


def test_live_records_go_on_meanwhile(external: SinkConfig, server: StrictCloudWatch, capsys: Capture) -> None:
    """Workers append and a leader delivers while letters are replayed: all arrive once, the books add up."""
    writer = Writer(external)
    letters = [f"letter {number}" for number in range(3_000)]
    bury(writer.directory, "poison", *letters)
    live = [f"live {number}" for number in range(3_000)]

    def work() -> None:
        assert all(writer.append(each) for each in live)

    with leading(writer.directory, external):
        worker = threading.Thread(target=work)
        worker.start()
        cwsink()
        worker.join(CHILD_SECONDS)
        assert server.wait_for_events(6_000, CHILD_SECONDS)
        assert writer.flush(CHILD_SECONDS)
    assert Counter(server.messages()) == Counter(letters + live)
    books = survey(writer.directory)
    assert (books.appended, books.delivered, books.pending) == (6_000, 6_000, 0)


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal")
def test_a_bar_on_a_terminal(spool: SpoolDirectory) -> None:
    """With a terminal it shows how far it is, and then the same summary."""
    bury(spool, "poison", *map(str, range(1500)))
    leader, follower = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "cwsink", "replay", "--dead-letters", spool.path],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "200", "TERM": "xterm"},
        stdin=subprocess.DEVNULL,
        stdout=follower,
        stderr=subprocess.PIPE,
    )
    os.close(follower)
    shown = b""
    while True:
        try:
            data = os.read(leader, 65536)
        except OSError:  # EIO: the other end is closed
            break
        if not data:
            break
        shown += data
    os.close(leader)
    _, err = process.communicate(timeout=CHILD_SECONDS)
    assert (process.returncode, err) == (0, b"")
    text = shown.decode()
    assert "1,500 records, 100%" in text
    assert "replayed 1,500 (1,500 poison), skipped 0." in text
