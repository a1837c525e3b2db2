"""`cwsink run`: real commands, real gunicorn, process 1 of a pid namespace, a terminal, and kills."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import asdict

from cwsink.config import SinkConfig
from cwsink.spool import flusher_lock, leader_state
from cwsink.spool.directory import find_spools, open_existing
from cwsink.spool.survey import survey
from cwsink.testing import StrictCloudWatch
from tests.harness.support import CHILD_SECONDS

Spawn = Callable[..., "subprocess.Popen[str]"]
Run = Callable[..., "subprocess.Popen[str]"]

# Like the installed script, and other than `-m`, it finds no modules in the working directory.
CWSINK = (sys.executable, "-c", "import sys; sys.path.remove(''); from cwsink.cli import main; sys.exit(main())")
RESIDENT_BYTES = 60 * 1024 * 1024  # the most a dedicated flusher may take

# Appends as many records as each line of stdin says.
WRITER = """
import json, os, sys
from cwsink import Writer

writer = Writer.open(**json.loads(sys.argv[1]))
number = 0
print(os.getpid(), flush=True)
for line in sys.stdin:
    for _ in range(int(line)):
        assert writer.append(f"record {number}")
        number += 1
    print(number, flush=True)
"""

ONE_RECORD = "import json, sys\nfrom cwsink import Writer\nWriter.open(**json.loads(sys.argv[1])).append('short')"

# Tells of a process all that a parent hands down.
WORLD = """
import json, os, signal, stat, sys

fds = {}
for fd in range(64):
    try:
        status = os.fstat(fd)
    except OSError:
        continue
    fds[fd] = [stat.S_IFMT(status.st_mode), status.st_ino]
print(json.dumps({
    "signals": {int(each): str(signal.getsignal(each)) for each in signal.valid_signals()},
    "status": [line.split() for line in open("/proc/self/status") if line.startswith(("SigBlk", "SigIgn", "SigPnd"))],
    "fds": fds,
    "cwd": os.getcwd(),
    "group": os.getpgrp(),
    "session": os.getsid(0),
    "listen": os.environ.get("LISTEN_PID") == str(os.getpid()),
    "environment": {name: value for name, value in os.environ.items() if name != "LISTEN_PID"},
}))
"""

# Says which signals arrive.
EAR = """
import os, signal, sys

def hear(number, _):
    os.write(1, f"{signal.Signals(number).name}\\n".encode())

for name in sys.argv[1:]:
    signal.signal(getattr(signal, name), hear)
os.write(1, b"ready\\n")
while True:
    signal.pause()
"""

APP = """
import os
from cwsink import Writer

writer = Writer.open(log_group_name="/myapp/prod", log_stream_name="web-1", batch_timeout_seconds=0.2)

def app(environ, start_response):
    assert writer.append(environ["PATH_INFO"].strip("/"))
    body = str(os.getpid()).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
"""


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **more}


@pytest.fixture
def run() -> Iterator[Run]:
    """Start `cwsink run` with `words`; it and all that came of it is killed at the end."""
    started: list[subprocess.Popen[str]] = []

    def start(*words: object, prefix: tuple[str, ...] = (), **options: Any) -> subprocess.Popen[str]:
        options = {"env": environment(), "stdin": subprocess.PIPE, **options}
        started.append(
            subprocess.Popen(
                [*prefix, *CWSINK, "run", *map(str, words)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
                **options,
            )
        )
        return started[-1]

    yield start
    for each in started:
        for pid in [*descendants(each.pid), each.pid]:  # the flusher has a session of its own
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(each.pid, signal.SIGKILL)
        each.communicate()


def parents() -> dict[int, int]:
    """The parent of each process."""
    found = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path("/proc", name, "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if words[0] != "Z":
            found[int(name)] = int(words[1])
    return found


def descendants(pid: int) -> list[int]:
    family = parents()
    found = [pid]
    for each in found:
        found += [child for child, parent in family.items() if parent == each]
    return found[1:]


def flusher_of(pid: int) -> int | None:
    for child in descendants(pid):
        try:
            words = Path("/proc", str(child), "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"--supervised" in words:
            return child
    return None


def wait_until(condition: Callable[[], Any], what: str = "it did not come to pass") -> Any:
    until = time.monotonic() + CHILD_SECONDS
    while not (answer := condition()):
        assert time.monotonic() < until, what
        time.sleep(0.02)
    return answer


def is_alive(pid: int) -> bool:
    return pid in parents()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    line = process.stdout.readline()
    assert line, process.stderr and process.stderr.read()
    return line.strip()


def tell(process: subprocess.Popen[str], records: int) -> None:
    assert process.stdin
    process.stdin.write(f"{records}\n")
    process.stdin.flush()
    line_of(process)


def end(process: subprocess.Popen[str], *, code: int = 0) -> tuple[str, str]:
    """Wait for its end; return the rest of its output."""
    out, err = process.communicate(timeout=CHILD_SECONDS)
    assert process.returncode == code, f"exit code {process.returncode}\n{out}\n{err}"
    assert "Traceback" not in err
    return out, err


def settings(config: SinkConfig, **changes: object) -> str:
    """A config as an argument; who flushes is left to the environment, or to the default."""
    given = {**asdict(config), **changes}
    return json.dumps({name: value for name, value in given.items() if value is not None and name != "flusher"})


# The command.


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--", "true"), 0, ""),
        (("true",), 0, ""),
        (("--", "sh", "-c", "exit 7"), 7, ""),
        (("--", "sh", "-c", "exit 3"), 3, ""),
        (("--", "sh", "-c", "kill -KILL $$"), 137, ""),
        (("--", "no-such-command"), 127, "cwsink: no-such-command: command not found\n"),
        (("--", "/etc/passwd"), 126, "cwsink: /etc/passwd cannot be run: Permission denied\n"),
    ],
)
def test_the_exit_code_is_the_commands(run: Run, words: tuple[str, ...], code: int, said: str) -> None:
    """Or what a shell answers: 128 + N for signal N, 127 not found, 126 not executable."""
    assert end(run(*words), code=code) == ("", said)


@pytest.mark.parametrize("words", [(), ("--",), ("--drain-timeout", "0", "--", "true"), ("--frobnicate", "--", "true")])
def test_wrong_words_are_code_2(run: Run, words: tuple[str, ...]) -> None:
    """Usage on stderr, and nothing is started."""
    out, err = end(run(*words), code=2)
    assert out == ""
    assert err.startswith("usage: cwsink ")


def test_the_help_has_examples(run: Run) -> None:
    """And says what becomes of signals and exit codes."""
    out, _ = end(run("--help"))
    for words in ("cwsink run -- gunicorn app:app --workers 4", "--drain-timeout", "TERM INT HUP QUIT", "128 + N"):
        assert words in out


def test_the_command_sees_the_world_as_if_started_without_us(run: Run, tmp_path: Path) -> None:
    """Signals, mask, descriptors (passed ones, too), directory, group; the environment has one variable more."""
    (tmp_path / "queue.py").write_text("raise SystemExit('an application may have such a module')")
    with socket.create_server(("127.0.0.1", 0)) as listener, (tmp_path / "in").open("w+") as stdin:
        options: dict[str, Any] = {"cwd": tmp_path, "pass_fds": [listener.fileno()], "stdin": stdin}
        script = (sys.executable, "-S", "-P", "-c", WORLD)
        if sys.version_info < (3, 11):
            script = (sys.executable, "-S", "-I", "-c", WORLD)
        # What systemd does: the pid is known only after the fork.
        ours = ("sh", "-c", 'LISTEN_PID=$$ exec "$@"', "sh")
        alone = subprocess.run(
            [*ours, *script],
            env=environment(),
            capture_output=True,
            text=True,
            check=True,
            start_new_session=True,
            **options,
        )
        beside = end(run("--", *script, prefix=ours, **options))[0]
    without, within = json.loads(alone.stdout), json.loads(beside)
    assert within["environment"].pop("CWSINK_HOSTED").split(":")[0] == str(os.geteuid())
    for world in (without, within):
        assert world.pop("group") == world.pop("session")  # of the session that the test made
        for fd in ("1", "2"):
            del world["fds"][fd]  # other pipes
    assert within == without


@pytest.mark.parametrize("without_sigtimedwait", [False, True])
def test_signals_are_forwarded(run: Run, spawn: Spawn, without_sigtimedwait: bool) -> None:
    """Each of them, once; also where the system cannot say whom a signal is from (macOS)."""
    names = ["SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGWINCH", "SIGTTIN", "SIGTTOU", "SIGTERM"]
    if without_sigtimedwait:
        code = "import signal, sys\ndel signal.sigtimedwait\nfrom cwsink.cli import main\nsys.exit(main())"
        process = spawn(code, "run", "--", sys.executable, "-c", EAR, *names)
    else:
        process = run("--", sys.executable, "-c", EAR, *names)
    assert line_of(process) == "ready"
    for name in names:
        process.send_signal(signal.Signals[name])
        assert line_of(process) == name
    (command,) = (pid for pid in descendants(process.pid) if pid != flusher_of(process.pid))
    os.kill(command, signal.SIGKILL)
    assert process.wait(CHILD_SECONDS) == 137


def test_a_signal_that_comes_too_early_is_not_lost(spawn: Spawn) -> None:
    """TERM before the command is started ends it as soon as it is."""
    code = """
        import os, signal, sys
        from cwsink.supervisor.command import Supervisor
        supervisor = Supervisor(["sleep", "600"], 1.0)
        os.kill(os.getpid(), signal.SIGTERM)
        sys.exit(supervisor.run())
    """
    assert spawn(code).wait(CHILD_SECONDS) == 128 + signal.SIGTERM


def test_ctrl_c_in_a_terminal_reaches_the_command_once(server: StrictCloudWatch, config: SinkConfig) -> None:
    """The terminal sends it to the command and to us; the flusher does not end from it."""
    ear = "import signal, sys\nsys.argv[1:] = ['SIGINT', 'SIGTERM']\n" + EAR
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe(sys.executable, [*CWSINK, "run", "--", sys.executable, "-u", "-c", ear], environment())
    heard = b""
    try:

        def hear(text: bytes) -> None:
            nonlocal heard
            while text not in heard:
                heard += os.read(terminal, 4096)

        guard = threading.Timer(CHILD_SECONDS, os.kill, (pid, signal.SIGKILL))
        guard.start()
        hear(b"ready")
        flusher = wait_until(lambda: flusher_of(pid))
        os.write(terminal, b"\x03")
        hear(b"SIGINT")
        os.kill(pid, signal.SIGTERM)  # taken after it: a second SIGINT would have been forwarded before
        hear(b"SIGTERM")
        assert heard.count(b"SIGINT") == 1
        assert flusher_of(pid) == flusher
        os.kill(next(each for each in descendants(pid) if each != flusher), signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 137
        assert not is_alive(flusher)
    finally:
        guard.cancel()
        os.close(terminal)


# The flusher.


def test_records_are_delivered_by_the_flusher_only(server: StrictCloudWatch, config: SinkConfig, run: Run) -> None:
    """The command starts none, at its end neither, and waits for nothing; all is delivered when `cwsink run` ends."""
    process = run("--", sys.executable, "-c", WRITER, settings(config, batch_timeout_seconds=600.0))
    command = int(line_of(process))
    flusher = wait_until(lambda: flusher_of(process.pid))
    tell(process, 500)
    (path,) = find_spools()
    published = wait_until(lambda: leader_state.read(open_existing(path)))
    assert (published.pid, published.kind, published.started_by) == (flusher, "run", "")
    assert end(process) == ("", "")
    assert not flusher_lock.is_taken(os.environ["CWSINK_SPOOL_DIRECTORY"])
    assert server.messages() == [f"record {number}" for number in range(500)]
    assert server.senders_by_epoch() == {1: {str(flusher)}}
    assert {request.sender for request in server.requests} == {str(flusher)}
    assert not is_alive(command)
    assert not is_alive(flusher)


def test_a_command_that_is_over_at_once_is_delivered(server: StrictCloudWatch, config: SinkConfig, run: Run) -> None:
    """Before the flusher has begun to look for spools."""
    end(run("--", sys.executable, "-c", ONE_RECORD, settings(config)))
    assert server.messages() == ["short"]


def test_who_is_left_behind_sends_its_records_itself(
    server: StrictCloudWatch, config: SinkConfig, run: Run, tmp_path: Path
) -> None:
    """It inherits the mark of a `cwsink run` that has ended: it starts a flusher, and waits for it at its own end."""
    told, ended = tmp_path / "told", tmp_path / "ended"
    os.mkfifo(told)
    os.mkfifo(ended)
    left = f'(read _ <"$0" && "$@" && echo sent >{ended}) >/dev/null 2>&1 &'
    end(run("--", "sh", "-c", left, told, sys.executable, "-c", ONE_RECORD, settings(config)))
    assert server.messages() == []
    told.write_text("\n")
    assert ended.read_text() == "sent\n"
    assert server.messages() == ["short"]


def test_the_spool_may_be_named(server: StrictCloudWatch, config: SinkConfig, run: Run, tmp_path: Path) -> None:
    """--spool is for both, the command and the flusher."""
    process = run("--spool", "elsewhere", "--", sys.executable, "-c", WRITER, settings(config), cwd=tmp_path)
    line_of(process)
    tell(process, 5)
    end(process)
    assert len(server.messages()) == 5
    assert find_spools(str(tmp_path / "elsewhere"))
    assert not find_spools()


def test_a_spool_that_cannot_be_used_is_said_at_the_start(run: Run, tmp_path: Path) -> None:
    """One line, though the command may not log for hours; it runs all the same, and nothing is made."""
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0o777)
    for path, why in (("/proc/x/y", "it is not there, and cannot be made in /proc"), (str(closed), "other users may")):
        _, err = end(run("--spool", path, "--", "true"))
        assert f"cwsink: user {os.geteuid()} cannot use the spool directory {path}: {why}" in err
    _, err = end(run("--spool", str(tmp_path / "fine"), "--", "true"))
    assert err == ""
    assert not (tmp_path / "fine").exists()


def test_a_flusher_is_small(server: StrictCloudWatch, config: SinkConfig, run: Run) -> None:
    """At most 60 MiB resident, idle and after thousands of records, and the supervisor less than half of that."""
    process = run("--", sys.executable, "-c", WRITER, settings(config))
    line_of(process)
    flusher = wait_until(lambda: flusher_of(process.pid))
    tell(process, 1)
    assert server.wait_for_events(1, CHILD_SECONDS)
    idle = resident_bytes(flusher)
    for _ in range(10):
        tell(process, 1_000)
    assert server.wait_for_events(10_001, CHILD_SECONDS)
    busy = resident_bytes(flusher)
    supervisor = resident_bytes(process.pid)
    print(f"flusher {idle >> 20} MiB, then {busy >> 20} MiB; supervisor {supervisor >> 20} MiB")
    assert max(idle, busy) <= RESIDENT_BYTES
    assert supervisor <= RESIDENT_BYTES // 2
    maps = Path(f"/proc/{flusher}/maps").read_text()
    assert "msgspec" in maps
    assert "pydantic" not in maps  # fapilog brings it along
    end(process)


def resident_bytes(pid: int) -> int:
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


@pytest.mark.faults
def test_a_killed_flusher_is_started_again(server: StrictCloudWatch, config: SinkConfig, run: Run) -> None:
    """Each time with one line; every record arrives."""
    process = run("--", sys.executable, "-c", WRITER, settings(config))
    line_of(process)
    killed: list[int] = []
    for _ in range(3):
        tell(process, 200)
        flusher = wait_until(lambda: (found := flusher_of(process.pid)) not in [None, *killed] and found)
        wait_until(lambda pid=flusher: str(pid) in {request.sender for request in server.requests})
        os.kill(flusher, signal.SIGKILL)
        killed.append(flusher)
        tell(process, 200)
    _, err = end(process)
    assert [line.split(" It is")[0] for line in err.splitlines()] == [
        f"cwsink: the flusher (pid {pid}) was killed by signal 9." for pid in killed
    ]
    assert set(server.messages()) == {f"record {number}" for number in range(1_200)}


@pytest.mark.faults
def test_while_the_flusher_stays_away_the_command_has_one_of_its_own(
    server: StrictCloudWatch, config: SinkConfig, run: Run
) -> None:
    """Nobody leads for 5 s: the next append starts one, and that of `cwsink run` stands by. Each record arrives."""
    process = run("--", sys.executable, "-c", WRITER, settings(config))
    command = int(line_of(process))
    root = os.environ["CWSINK_SPOOL_DIRECTORY"]
    wait_until(lambda: flusher_of(process.pid))
    began = time.monotonic()
    while not flusher_lock.is_taken(root):
        assert time.monotonic() < began + CHILD_SECONDS
        # Each time it takes longer until there is a new one.
        if (flusher := flusher_of(process.pid)) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(flusher, signal.SIGKILL)
        tell(process, 1)
        time.sleep(0.05)
    assert time.monotonic() - began >= 5.0
    (path,) = find_spools()
    wait_until(lambda: (found := leader_state.read(open_existing(path))) and found.kind == "own")
    published = leader_state.read(open_existing(path))
    assert published is not None
    assert published.started_by.startswith(f"pid {command} ")
    wait_until(lambda: flusher_of(process.pid))  # it is back, and does not interfere
    tell(process, 100)
    end(process)
    numbers = [int(message.split()[1]) for message in server.messages()]
    assert set(numbers) == set(range(len(set(numbers))))
    last = [request for request in server.requests if request.status == 200][-1]
    assert last.sender == str(published.pid)
    wait_until(lambda: not flusher_lock.is_taken(root), "it goes when nobody needs it")


def test_at_its_end_it_waits_for_whoever_leads(server: StrictCloudWatch, config: SinkConfig, run: Run) -> None:
    """A `cwsink flush` leads, and has no reason to hurry: it is asked to, and waited for."""
    held = settings(config, batch_timeout_seconds=600.0)
    service = subprocess.Popen(
        [*CWSINK, "flush"], env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    )
    try:
        # Who logs before the service leads would else start a flusher of its own, which would lead to the end.
        alone = {**environment(), "FAPILOG_CLOUDWATCH__FLUSHER": "external"}
        subprocess.run([sys.executable, "-c", ONE_RECORD, held], env=alone, check=True)
        assert server.wait_for_events(1, CHILD_SECONDS)
        server.faults.latency_seconds = 1.0
        process = run("--", sys.executable, "-c", WRITER, held)
        line_of(process)
        wait_until(lambda: flusher_of(process.pid))
        tell(process, 5)
        assert end(process) == ("", "")
        assert survey(open_existing(find_spools()[0])).pending == 0
        assert {request.sender for request in server.requests} == {str(service.pid)}
    finally:
        service.terminate()
        service.communicate(timeout=CHILD_SECONDS)


def test_a_flusher_that_cannot_be_started_leaves_the_command_alone(config: SinkConfig, spawn: Spawn) -> None:
    """It runs to its end; stderr says what is wrong, and how many records stay."""
    code = """
        import sys
        from cwsink.cli import main
        python, sys.executable = sys.executable, "/no/such/python"
        sys.exit(main(["run", "--", python, *sys.argv[1:]]))
    """
    process = spawn(code, "-c", WRITER, settings(config))
    line_of(process)
    tell(process, 3)
    _, err = end(process)
    lines = err.splitlines()
    assert lines[0].startswith("cwsink: the flusher cannot be started: [Errno 2] No such file or directory")
    assert lines[-1].startswith("cwsink: 3 records stay in ")


def test_a_flusher_that_fails_is_not_started_in_a_loop(config: SinkConfig, run: Run, tmp_path: Path) -> None:
    """It ends as soon as it has begun: that is said each time, and the pauses grow."""
    root = spool_with_records(config)
    (tmp_path / "sitecustomize.py").write_text("import os, sys\nif '--supervised' in sys.orig_argv:\n    os._exit(1)\n")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    process = run(
        "--drain-timeout", "1", *("--", "sleep", "2"), env=environment(PYTHONPATH=path, CWSINK_SPOOL_DIRECTORY=root)
    )
    _, err = end(process)
    again = [line for line in err.splitlines() if "ended with code 1. It is started again in" in line]
    assert [line.split(" in ")[1].split(" s")[0] for line in again] == ["0.2", "0.4", "0.8", "1.6"][: len(again)]
    assert again
    assert err.splitlines()[-1].startswith("cwsink: 2 records stay in ")


@pytest.mark.faults
def test_a_stderr_that_nobody_reads_ends_nothing(server: StrictCloudWatch, config: SinkConfig, run: Run) -> None:
    """Its reader has gone, and there is something to say: the command goes on, and its records arrive."""
    process = run("--", sys.executable, "-c", WRITER, settings(config))
    assert process.stderr
    process.stderr.close()
    line_of(process)
    flusher = wait_until(lambda: flusher_of(process.pid))
    os.kill(flusher, signal.SIGKILL)
    wait_until(lambda: flusher_of(process.pid) not in (None, flusher))
    tell(process, 10)
    process.stderr = None
    process.communicate(timeout=CHILD_SECONDS)
    assert process.returncode == 0
    assert len(server.messages()) == 10


def spool_with_records(config: SinkConfig) -> str:
    code = "import json, sys\nfrom cwsink import Writer\nw = Writer.open(**json.loads(sys.argv[1]))\n"
    code += "assert w.append('one') and w.append('two')"
    env = environment(FAPILOG_CLOUDWATCH__FLUSHER="external")
    subprocess.run([sys.executable, "-c", code, settings(config)], env=env, check=True)
    return os.environ["CWSINK_SPOOL_DIRECTORY"]


def test_what_cannot_be_delivered_is_said_and_kept(config: SinkConfig, run: Run, server: StrictCloudWatch) -> None:
    """CloudWatch is down: the command ends at once, and `cwsink run` after its drain time-out, and says so for both;
    `cwsink flush --once` delivers later."""
    server.faults.fail_next(1_000_000, "ServiceUnavailableException", status=503)
    process = run("--drain-timeout", "1", "--", sys.executable, "-c", WRITER, settings(config))
    line_of(process)
    tell(process, 7)
    _, err = end(process)
    (path,) = find_spools()
    assert err.splitlines()[-1].startswith(f"cwsink: 7 records stay in {path}. They are kept")
    assert err.count(f"records stay in {path}") == 1
    server.faults.clear()
    subprocess.run([*CWSINK, "flush", "--once"], env=environment(), check=True, capture_output=True)
    assert len(server.messages()) == 7


@pytest.mark.parametrize("impatient", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_cuts_the_drain_short(
    config: SinkConfig, run: Run, server: StrictCloudWatch, impatient: signal.Signals
) -> None:
    """The first one ends the command; while the rest is delivered, another ends that."""
    server.faults.fail_next(1_000_000, "ServiceUnavailableException", status=503)
    words = ("--drain-timeout", str(10 * CHILD_SECONDS), "--", sys.executable, "-c", WRITER)
    process = run(*words, settings(config))
    command = int(line_of(process))
    tell(process, 7)
    assert server.wait_for(lambda server: bool(server.requests), CHILD_SECONDS)
    process.send_signal(signal.SIGTERM)
    wait_until(lambda: not is_alive(command))
    process.send_signal(impatient)
    _, err = end(process, code=128 + signal.SIGTERM)
    assert "7 records stay in " in err.splitlines()[-1]


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="NOT RUN: sees a zombie in /proc")
def test_a_signal_counts_that_comes_when_the_command_has_ended_and_is_not_reaped(
    config: SinkConfig, run: Run, server: StrictCloudWatch
) -> None:
    """Of two signals that wait SIGTERM is seen before SIGCHLD. It is no longer for the command, but for the drain."""
    server.faults.fail_next(1_000_000, "ServiceUnavailableException", status=503)
    words = ("--drain-timeout", str(10 * CHILD_SECONDS), "--", sys.executable, "-c", WRITER)
    process = run(*words, settings(config))
    command = int(line_of(process))
    tell(process, 7)
    assert server.wait_for(lambda server: bool(server.requests), CHILD_SECONDS)
    process.send_signal(signal.SIGSTOP)
    os.kill(command, signal.SIGKILL)
    wait_until(lambda: Path(f"/proc/{command}/stat").read_text().rpartition(")")[2].split()[0] == "Z")
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    _, err = end(process, code=128 + signal.SIGKILL)
    assert "7 records stay in " in err.splitlines()[-1]


@pytest.mark.faults
def test_a_flusher_without_its_parent_goes_on_until_the_last_writer_has_gone(
    server: StrictCloudWatch, config: SinkConfig, run: Run
) -> None:
    """SIGKILL of `cwsink run`: the command lives on, and what it logs is delivered; then no process is left."""
    process = run("--", sys.executable, "-c", WRITER, settings(config))
    command = int(line_of(process))
    flusher = wait_until(lambda: flusher_of(process.pid))
    tell(process, 1)
    assert server.wait_for_events(1, CHILD_SECONDS)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(CHILD_SECONDS)
    try:
        tell(process, 100)
        assert server.wait_for_events(101, CHILD_SECONDS)
        assert is_alive(flusher)
        tell(process, 100)
        assert process.stdin
        process.stdin.close()
        process.stdin = None
        wait_until(lambda: not is_alive(command) and not is_alive(flusher), "an orphan stays")
    finally:
        for pid in (command, flusher):
            if is_alive(pid):
                os.kill(pid, signal.SIGKILL)
    assert len(server.messages()) == 201
    assert {request.sender for request in server.requests} == {str(flusher)}


@pytest.mark.faults
def test_a_flusher_ignores_what_is_sent_to_a_whole_unit(server: StrictCloudWatch, config: SinkConfig, run: Run) -> None:
    """systemd sends TERM to every process: the command's last records come after it, and are delivered."""
    process = run("--", sys.executable, "-c", WRITER, settings(config))
    line_of(process)
    flusher = wait_until(lambda: flusher_of(process.pid))
    tell(process, 1)
    assert server.wait_for_events(1, CHILD_SECONDS)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        os.kill(flusher, number)
    tell(process, 1)
    assert end(process) == ("", "")
    assert len(server.messages()) == 2
    assert {request.sender for request in server.requests} == {str(flusher)}


# Process 1.


@cache
def why_no_namespace() -> str:
    """Why a pid namespace cannot be made here; "" if it can."""
    if shutil.which("unshare") is None:
        return "NOT RUN: there is no `unshare` here, so nothing can be process 1"
    done = subprocess.run([*NAMESPACE, "true"], capture_output=True, text=True)
    return f"NOT RUN: no pid namespace can be made here: {done.stderr.strip()}" if done.returncode else ""


NAMESPACE = ("unshare", "-p", "-f", "--mount-proc", *(() if os.geteuid() == 0 else ("-r",)))

ORPHANS = """
import os, sys, time

# A grandchild that outlives its parent, and ends when told.
reading, writing = os.pipe()
if os.fork() == 0:
    if os.fork() == 0:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    os._exit(0)
os.wait()
os.close(reading)

def processes(state):
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = open(f"/proc/{name}/stat").read().rpartition(")")[2].split()
        except OSError:
            continue
        if words[0] == state or not state:
            found.append(int(words[1]))
    return found

assert os.getppid() == 1, os.getppid()
before = processes("").count(1)
print(before, flush=True)
os.close(writing)
until = time.monotonic() + 30
while processes("Z") or processes("").count(1) != before - 1:
    assert time.monotonic() < until, "an orphan was not reaped"
    time.sleep(0.01)
print("reaped", flush=True)
sys.exit(9)
"""


def test_as_process_1_it_reaps_orphans(run: Run) -> None:
    """A grandchild whose parent has gone ends later, and leaves no zombie; the exit code is the command's."""
    if reason := why_no_namespace():
        pytest.skip(reason)
    process = run("--", sys.executable, "-c", ORPHANS, prefix=NAMESPACE)
    out, err = end(process, code=9)
    before, reaped = out.splitlines()
    assert int(before) >= 2  # the command and the orphan; the flusher as soon as it is there
    assert (reaped, err) == ("reaped", "")


def test_as_process_1_it_delivers_on_term(server: StrictCloudWatch, config: SinkConfig, run: Run) -> None:
    """What `docker stop` does: the kernel gives process 1 only signals that it asked for."""
    if reason := why_no_namespace():
        pytest.skip(reason)
    process = run("--", sys.executable, "-c", WRITER, settings(config, batch_timeout_seconds=600.0), prefix=NAMESPACE)
    assert int(line_of(process)) > 1
    tell(process, 5)
    (init,) = (pid for pid, parent in parents().items() if parent == process.pid)
    os.kill(init, signal.SIGTERM)
    end(process, code=128 + signal.SIGTERM)
    assert len(server.messages()) == 5


def test_elsewhere_it_reaps_the_orphans_of_the_command(run: Run) -> None:
    """On Linux it is their new parent, not process 1."""
    if sys.platform != "linux":
        pytest.skip("NOT RUN: only Linux has subreapers")
    code = ORPHANS.replace("os.getppid() == 1", "True").replace("(1)", "(os.getppid())")
    process = run("--", sys.executable, "-c", code)
    out, _ = end(process, code=9)
    assert out.splitlines()[-1] == "reaped"


# gunicorn.


class GunicornUnderRun:
    """gunicorn under `cwsink run`, at a port of its own."""

    def __init__(self, run: Run, folder: Path, server: StrictCloudWatch, *, may_upgrade: bool = False) -> None:
        (folder / "shop.py").write_text(APP)
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        bind = f"fd://{listener.fileno()}"
        if may_upgrade:  # gunicorn does not hand on a descriptor that it was given: it has to take the port itself
            bind = f"127.0.0.1:{self.port}"
            listener.close()
        self.pid_file = folder / "gunicorn.pid"
        self.process = run(
            *("--drain-timeout", "30", "--", sys.executable, "-m", "gunicorn", "shop:app"),
            *("-w", "3", "-b", bind, "--log-level", "error", "-p", str(self.pid_file)),
            cwd=folder,
            env=environment(**server.environment(), PYTHONPATH=os.pathsep.join([str(folder), *sys.path])),
            pass_fds=[] if may_upgrade else [listener.fileno()],
        )
        listener.close()
        wait_until(self._is_listening)

    def get(self, path: str) -> int:
        """Log `path`; return the pid of the worker that did."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=CHILD_SECONDS)
        try:
            connection.request("GET", f"/{path}")
            return int(connection.getresponse().read())
        finally:
            connection.close()

    def _is_listening(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


def test_gunicorn_stops_gracefully_and_every_record_is_there(
    server: StrictCloudWatch, run: Run, tmp_path: Path
) -> None:
    """TERM to `cwsink run`: code 0, one sender that is no worker, nothing pending, no process left."""
    pytest.importorskip("gunicorn")
    gunicorn = GunicornUnderRun(run, tmp_path, server)
    workers = {gunicorn.get(f"request-{number}") for number in range(100)}
    family = descendants(gunicorn.process.pid)
    flusher = flusher_of(gunicorn.process.pid)
    gunicorn.process.send_signal(signal.SIGTERM)
    end(gunicorn.process)
    assert server.messages("/myapp/prod", "web-1") == [f"request-{number}" for number in range(100)]
    assert {request.sender for request in server.requests} == {str(flusher)}
    assert flusher not in workers
    assert not [pid for pid in family if is_alive(pid)]
    assert survey(open_existing(find_spools()[0])).pending == 0


@pytest.mark.faults
def test_gunicorn_under_load_loses_nothing_when_the_flusher_is_killed(
    server: StrictCloudWatch, run: Run, tmp_path: Path
) -> None:
    """Every acknowledged record arrives, and no worker has sent one."""
    pytest.importorskip("gunicorn")
    gunicorn = GunicornUnderRun(run, tmp_path, server)
    acknowledged: list[str] = []
    workers: set[int] = set()
    for number in range(300):
        if number in (50, 150):
            flusher = wait_until(lambda: flusher_of(gunicorn.process.pid))
            os.kill(flusher, signal.SIGKILL)
        workers.add(gunicorn.get(f"request-{number}"))
        acknowledged.append(f"request-{number}")
    gunicorn.process.send_signal(signal.SIGTERM)
    _, err = end(gunicorn.process)
    assert err.count("was killed by signal 9. It is started again") == 2
    assert set(server.messages("/myapp/prod", "web-1")) == set(acknowledged)
    assert not {request.sender for request in server.requests} & {str(pid) for pid in workers}


@pytest.mark.faults
def test_gunicorn_is_followed_through_an_upgrade(server: StrictCloudWatch, run: Run, tmp_path: Path) -> None:
    """USR2, then QUIT for the old master, as its documentation has it: the new one is the command from then on."""
    pytest.importorskip("gunicorn")
    if sys.platform != "linux":
        pytest.skip("NOT RUN: only Linux has subreapers")
    gunicorn = GunicornUnderRun(run, tmp_path, server, may_upgrade=True)
    before = {gunicorn.get(f"before-{number}") for number in range(20)}
    old = int(gunicorn.pid_file.read_text())
    gunicorn.process.send_signal(signal.SIGUSR2)
    second = Path(f"{gunicorn.pid_file}.2")
    new = int(wait_until(lambda: second.exists() and second.read_text()))
    os.kill(old, signal.SIGQUIT)
    wait_until(lambda: not is_alive(old))
    wait_until(lambda: gunicorn.pid_file.exists() and int(gunicorn.pid_file.read_text() or 0) == new)
    after = {gunicorn.get(f"after-{number}") for number in range(20)}
    assert not before & after
    assert gunicorn.process.poll() is None
    gunicorn.process.send_signal(signal.SIGTERM)
    _, err = end(gunicorn.process)
    assert f"handed over to pid {new}" in err
    assert not is_alive(new)
    wanted = {f"{when}-{number}" for when in ("before", "after") for number in range(20)}
    assert set(server.messages("/myapp/prod", "web-1")) == wanted
