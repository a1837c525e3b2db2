"""The demo: it survives its own kills, its verdict is not a formality, and it leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cwsink import demo
from cwsink.demo.verdict import Evidence, judge
from cwsink.spool.survey import Survey

pytest.importorskip("gunicorn")
pytest.importorskip("flask")  # of moto[server]

HANG_SECONDS = 90  # the demo promises less than 60; this guards against a hang

Demo = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start_demo(tmp_path: Path) -> Iterator[Demo]:
    """Start `python -m cwsink.demo` without a terminal, with its temporary directory below `tmp_path`."""
    running: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        # FORCE_COLOR and the like would make rich believe in a terminal.
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("FORCE_", "TTY_"))}
        environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(tmp_path)}
        child = subprocess.Popen(
            [sys.executable, "-m", "cwsink.demo", *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(child)
        return child

    yield start
    for child in running:
        child.terminate()  # it ends its own children
        child.communicate(timeout=HANG_SECONDS)


def pids(pattern: str, text: str) -> list[int]:
    return [int(pid) for pid in re.findall(pattern, text)]


def group_is_gone(pid: int) -> bool:
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return True
    return False


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def wait_until_gone(pid: int) -> None:
    """What nobody here is the parent of is reaped by whoever adopted it."""
    until = time.monotonic() + HANG_SECONDS
    while not is_gone(pid):
        assert time.monotonic() < until, f"process {pid} is left"
        time.sleep(0.02)


@pytest.mark.long  # .ci/run runs the demo itself
def test_the_demo_kills_workers_and_flusher_and_loses_nothing(start_demo: Demo, tmp_path: Path) -> None:
    """Exit code 0, two workers and a flusher killed, a clean verdict in plain text, and nothing left behind."""
    child = start_demo("--requests", "600")
    out, err = child.communicate(timeout=HANG_SECONDS)
    assert child.returncode == 0, out + err
    assert "\nNothing was lost.\n" in out
    assert err == ""
    assert all(character.isprintable() or character == "\n" for character in out)
    (before,) = pids(r"flusher before +(\d+)", out)
    (after,) = pids(r"flusher after +(\d+)", out)
    assert before != after
    assert pids(r"flusher (\d+) sends for all of them, started by pid \d+ \(gunicorn\)", out) == [before]
    assert pids(r"killed flusher (\d+)", out) == [before]
    assert pids(r"its guard had flusher (\d+) after", out) == [after]
    one, other = pids(r"killed worker (\d+)", out)
    assert one != other
    assert not {one, other} & {before, after}
    rows = "requests sent,records logged,delivered,pending,duplicates,lost,streams written,verified"
    for label in rows.split(","):
        assert re.search(rf"^{label} +[\d,]+", out, re.MULTILINE), label
    assert len(re.findall(r"request_id=r-\d{6}", out)) == 3
    assert list(tmp_path.glob("cwsink-demo-*")) == []
    assert group_is_gone(*pids(r"gunicorn (\d+) serves", out))
    wait_until_gone(after)


def test_ctrl_c_ends_the_demo_and_everything_it_started(start_demo: Demo, tmp_path: Path) -> None:
    """Interrupted in the middle: exit code 1, no process and no directory is left."""
    child = start_demo()
    assert child.stdout is not None
    seen = ""
    while "sends for all of them, started by" not in seen:
        line = child.stdout.readline()
        assert line, f"the demo ended before a flusher was started:\n{seen}"
        seen += line
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=HANG_SECONDS)
    assert child.returncode == 1
    assert "interrupted" in err
    assert "Traceback" not in err
    (master,) = pids(r"gunicorn (\d+) serves", seen)
    until = time.monotonic() + HANG_SECONDS
    while not group_is_gone(master) and time.monotonic() < until:
        time.sleep(0.02)  # its workers are reaped by whoever adopted them
    assert group_is_gone(master)
    (flusher,) = pids(r"flusher (\d+) sends", seen)
    wait_until_gone(flusher)
    assert list(tmp_path.glob("cwsink-demo-*")) == []


def test_without_its_extra_the_demo_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1 and one line with the command, before anything is started."""
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    assert demo.main([]) == 1
    assert capsys.readouterr().err == "cwsink demo needs gunicorn and moto[server]: pip install 'cwsink[demo]'\n"


@pytest.mark.parametrize(
    "arguments", [["--requests", "10"], ["--workers", "1"], ["--endpoint-url", "localhost:4566"], ["--what"]]
)
def test_what_cannot_be_done_is_a_usage_error(arguments: list[str]) -> None:
    """Exit code 2, never 3 or 4."""
    with pytest.raises(SystemExit) as exited:
        demo.main(arguments)
    assert exited.value.code == 2


# "c" was appended, and its worker killed before it was noted.
GOOD = Evidence(
    sent=["a", "b", "c"],
    answered={"a": 1, "b": 2},
    logged={"a", "b"},
    delivered=Counter(a=1, b=2, c=1),
    pending=set(),
    books=Survey(appended=3, delivered=3),
)


def test_a_kill_that_lost_nothing_is_judged_good() -> None:
    """A record that was not noted and a duplicate are counted, and no problem."""
    verdict = judge(GOOD)
    assert verdict.problems == ()
    assert (verdict.logged, verdict.unnoted) == (2, 1)
    assert (verdict.delivered, verdict.duplicates, verdict.pending, verdict.lost) == (3, 1, 0, 0)


def test_a_logged_record_that_is_nowhere_is_lost() -> None:
    """The verdict fails and names it, although the ledger adds up."""
    verdict = judge(replace(GOOD, delivered=Counter(a=1, c=1), books=Survey(appended=2, delivered=2)))
    assert verdict.lost == 1
    assert verdict.problems == ("1 record logged, and neither in CloudWatch nor in the spool, for example b.",)


def test_a_logged_record_in_the_spool_is_not_lost_but_not_delivered() -> None:
    """It is a problem of the demo, which gave it time to arrive, and no loss."""
    books = Survey(appended=3, delivered=2, pending=1)
    verdict = judge(replace(GOOD, delivered=Counter(a=1, c=1), pending={"b"}, books=books))
    assert (verdict.lost, verdict.pending) == (0, 1)
    assert verdict.problems == ("1 record still waiting in the spool, not lost, for example b.",)


@pytest.mark.parametrize(
    ("evidence", "problem"),
    [
        (replace(GOOD, answered={"a": 1, "b": 2, "d": 1}), "answered, and never noted as logged"),
        (replace(GOOD, sent=["a", "b"]), "in CloudWatch, and never logged"),
        (replace(GOOD, logged=set()), "Nothing was logged"),
        (replace(GOOD, books=Survey(appended=4, delivered=3)), "does not add up"),
        (replace(GOOD, books=Survey(appended=4, delivered=4)), "says that 4 records are delivered"),
    ],
)
def test_whatever_does_not_fit_together_is_a_problem(evidence: Evidence, problem: str) -> None:
    """Each kind of evidence is held against the others."""
    (found,) = judge(evidence).problems
    assert problem in found
