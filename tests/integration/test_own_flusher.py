"""The flusher that starts by itself: how it is started, how it is watched, when it ends, whom it hands over to.

Real processes only: a program logs, and what can be seen from outside is asserted.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import cwsink
from cwsink.frontends import starter
from cwsink.spool import flusher_lock, leader_state, sending
from cwsink.spool.directory import SpoolDirectory, find_spools, open_existing
from cwsink.testing import StrictCloudWatch
from tests.conftest import Spawn
from tests.harness.support import CHILD_SECONDS, finish

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")

# A program that logs a record for each line on stdin, and says so.
LOGS = """
import sys, cwsink
writer = cwsink.Writer.open(log_group_name="/own/flusher", log_stream_name="s", batch_timeout_seconds=0.1, **{settings})
for line in sys.stdin:
    print(writer.append(line.strip()), flush=True)
"""


def eventually(what: Callable[[], object], claim: str, seconds: float = CHILD_SECONDS) -> object:
    """Wait until `what` returns something true, and return that."""
    until = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < until, claim
        time.sleep(0.01)
    return found


def log(child: subprocess.Popen[str], message: str) -> None:
    """Have the program log, and wait until the record is in the spool."""
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(f"{message}\n")
    child.stdin.flush()
    assert child.stdout.readline() == "True\n"


def ours(root: Path) -> list[int]:
    """Return the pids of all guards and flushers of a root, by their command line."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            words = Path("/proc", name, "cmdline").read_bytes().split(b"\0")
            if b"cwsink-flusher" in words and str(root).encode() in words:
                found.append(int(name))
    return sorted(found)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where the spools are."""
    return tmp_path / "spools"


@pytest.fixture
def program(server: StrictCloudWatch, spawn: Spawn, monkeypatch: pytest.MonkeyPatch) -> Callable[..., object]:
    """Start a program that logs what it is told to."""
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)

    def start(env: dict[str, str] | None = None, **settings: object) -> subprocess.Popen[str]:
        return spawn(LOGS.replace("{settings}", repr(settings)), env=env)

    return start


def leader(root: Path) -> leader_state.Published:
    """Return who leads the only spool of a root, as soon as somebody does."""
    spool = only_spool(root)
    found = eventually(lambda: leader_state.read(spool), "somebody leads")
    assert isinstance(found, leader_state.Published)
    return found


def only_spool(root: Path) -> SpoolDirectory:
    (path,) = eventually(lambda: find_spools(str(root)), "there is a spool")  # type: ignore[misc]
    return open_existing(path)


def test_one_guard_and_one_flusher_are_started_and_look_like_what_they_are(
    program: Callable[..., subprocess.Popen[str]], root: Path, server: StrictCloudWatch
) -> None:
    """Two processes, named for what they are: a session of their own, no parent among ours, "/" as directory."""
    child = program()
    log(child, "hello")
    eventually(lambda: server.messages() == ["hello"], "it is delivered")
    flusher = leader(root).pid
    guard = parent_of(flusher)
    assert ours(root) == sorted([guard, flusher])
    assert (name_of(guard), name_of(flusher)) == ("cwsink-guard", "cwsink-flusher")
    assert parent_of(guard) != child.pid
    assert os.getsid(guard) not in (os.getsid(child.pid), os.getsid(0))
    for pid in (guard, flusher):
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        assert os.readlink(f"/proc/{pid}/fd/0") == os.devnull
    # stdin, stdout, stderr and the lock: nothing that the program had open.
    assert sorted(os.listdir(f"/proc/{guard}/fd")) == ["0", "1", "2", "3"]
    assert leader(root).kind == "own"
    assert f"pid {child.pid}" in leader(root).started_by


# An old libc, whose posix_spawn knows no sessions: so Python says it.
OLD_LIBC = """
from cwsink.frontends import starter
spawn = starter._spawn
def of_old(*words, setsid=False, **options):
    if setsid:
        raise NotImplementedError("posix_spawn: setsid unavailable on this platform")
    return spawn(*words, **options)
starter._spawn = of_old
"""


def test_where_posix_spawn_makes_no_session_the_guard_makes_one(
    spawn: Spawn, root: Path, server: StrictCloudWatch
) -> None:
    """A Ctrl-C at the program's terminal would end the flusher, too."""
    child = spawn(OLD_LIBC + LOGS.replace("{settings}", "{}"), env=server.environment())
    log(child, "hello")
    eventually(lambda: server.messages() == ["hello"], "it is delivered")
    guard = parent_of(leader(root).pid)
    assert os.getsid(guard) == guard


def test_the_program_has_no_child_and_hears_of_none(spawn: Spawn, server: StrictCloudWatch, root: Path) -> None:
    """A program that waits for any child finds none, neither while the flusher lives nor when it has gone."""
    code = """
        import os, signal, sys, time, cwsink
        writer = cwsink.Writer.open(log_group_name="/own/flusher", log_stream_name="s")
        writer.append("hello")
        heard = []
        signal.signal(signal.SIGCHLD, lambda *_: heard.append(1))
        assert writer.flush(30)
        os.unlink(sys.argv[1] + f"/flusher-{os.geteuid()}.lock")  # the flusher ends
        while os.path.exists("/proc/" + open(sys.argv[2]).read().split('"pid":')[1].split(",")[0]):
            time.sleep(0.01)
        try:
            print(os.waitpid(-1, os.WNOHANG), heard)
        except ChildProcessError:
            print("no child", heard)
    """
    writer = cwsink.Writer.open(log_group_name="/own/flusher", log_stream_name="s", endpoint_url=server.endpoint_url)
    state = f"{writer.directory.path}/leader.json"
    assert finish(spawn(code, root, state, env=server.environment())) == "no child []\n"


def test_a_killed_flusher_is_back_and_nothing_is_lost(
    program: Callable[..., subprocess.Popen[str]], root: Path, server: StrictCloudWatch
) -> None:
    """The guard forks another flusher, which leads with a new epoch."""
    child = program()
    for number in range(5):
        log(child, f"record {number}")
        eventually(lambda number=number: f"record {number}" in server.messages(), "it is delivered")
        before = leader(root)
        os.kill(before.pid, signal.SIGKILL)
        eventually(lambda before=before: leader(root).epoch > before.epoch, "another one leads")
        assert parent_of(leader(root).pid) in ours(root)
    assert sorted(set(server.messages())) == [f"record {number}" for number in range(5)]


def test_with_the_guard_killed_the_flusher_goes_on_and_ends(
    program: Callable[..., subprocess.Popen[str]], root: Path, server: StrictCloudWatch
) -> None:
    """A flusher without a guard delivers, and goes when nobody is left."""
    child = program()
    log(child, "first")
    flusher = leader(root).pid
    os.kill(parent_of(flusher), signal.SIGKILL)
    eventually(lambda: ours(root) == [flusher], "the guard is gone")
    log(child, "second")
    eventually(lambda: server.messages() == ["first", "second"], "both are delivered")
    assert leader(root).pid == flusher
    child.communicate()
    eventually(lambda: not ours(root), "it ends")


def test_with_both_killed_the_next_append_starts_anew(
    program: Callable[..., subprocess.Popen[str]], root: Path, server: StrictCloudWatch
) -> None:
    """Nobody has to be told: an append looks once a second whether somebody leads."""
    child = program()
    log(child, "first")
    eventually(lambda: server.messages() == ["first"], "it is delivered")
    for pid in [parent_of(leader(root).pid), leader(root).pid]:
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: not ours(root), "both are gone")

    def appended_and_led() -> bool:
        log(child, "more")
        return bool(ours(root))

    eventually(appended_and_led, "it is started anew")
    eventually(lambda: "more" in server.messages(), "and delivers")


def test_a_program_that_is_killed_leaves_a_flusher_that_delivers_and_goes(
    program: Callable[..., subprocess.Popen[str]], root: Path, server: StrictCloudWatch
) -> None:
    """A SIGKILL right after the append returned: the record arrives, and no process stays."""
    child = program()
    log(child, "last words")
    child.kill()
    child.wait(CHILD_SECONDS)
    eventually(lambda: server.messages() == ["last words"], "it is delivered")
    eventually(lambda: not ours(root), "nobody is left")


def test_out_of_reach_it_goes_after_drain_timeout_and_says_what_stays(
    program: Callable[..., subprocess.Popen[str]], root: Path, server: StrictCloudWatch
) -> None:
    """The line names the number of records, the place, and what will send them; the next start does."""
    server.faults.deny("logs:PutLogEvents")
    child = program(drain_timeout_seconds=0.5)
    log(child, "kept")
    child.kill()
    child.wait(CHILD_SECONDS)
    eventually(lambda: not ours(root), "it ends")
    assert child.stderr is not None
    said = child.stderr.read()
    assert "1 record stays in" in said, said
    assert str(root) in said
    assert "cwsink flush --once" in said
    server.faults.allow("logs:PutLogEvents")
    again = program()
    log(again, "later")
    eventually(lambda: server.messages() == ["kept", "later"], "both are delivered")


def put_a_link(path: str, moved: Path) -> None:
    os.rename(path, moved)
    os.symlink(moved, path)


def put_a_file(path: str, moved: Path) -> None:
    os.rename(path, moved)
    Path(path).touch()


@pytest.mark.parametrize("put", [put_a_link, put_a_file])
def test_with_something_else_in_the_place_of_the_spool_losses_are_said_and_all_ends(
    program: Callable[..., subprocess.Popen[str]],
    root: Path,
    tmp_path: Path,
    server: StrictCloudWatch,
    put: Callable[[str, Path], None],
) -> None:
    """Nothing can be written down there. So the program says how many records it has lost, and no flusher stays."""
    child = program(drain_timeout_seconds=0.5)
    log(child, "first")
    eventually(lambda: server.messages() == ["first"], "it is delivered")
    put(only_spool(root).path, tmp_path / "moved")
    time.sleep(1)  # the writer looks at the spool again after 0.8 s
    out, said = child.communicate("".join(f"lost {number}\n" for number in range(20)), CHILD_SECONDS)
    assert out == "False\n" * 20
    assert "LOST 20 records of this process (20 io_error)." in said, said
    assert said.count("LOST") == 1, said
    eventually(lambda: not ours(root), "nobody is left")


def test_a_reader_of_the_programs_stderr_sees_its_end_when_all_is_delivered(
    program: Callable[..., subprocess.Popen[str]], root: Path, server: StrictCloudWatch
) -> None:
    """The flusher lets go of a pipe as soon as nobody needs it, while it lingers for the next program."""
    child = program()
    log(child, "hello")
    child.communicate(timeout=CHILD_SECONDS)
    assert server.messages() == ["hello"]
    assert ours(root), "it lingers"
    # The next program gets a flusher that has its stderr.
    again = program()
    mute = leader(root).pid
    log(again, "again")
    eventually(lambda: leader(root).pid != mute and not leader(root).is_mute, "it is replaced")
    eventually(lambda: server.messages() == ["hello", "again"], "nothing is lost")


def test_one_flusher_serves_all_spools_of_a_root(
    program: Callable[..., subprocess.Popen[str]], spawn: Spawn, root: Path, server: StrictCloudWatch
) -> None:
    """A second application with another group starts none."""
    child = program()
    log(child, "one")
    eventually(lambda: server.messages() == ["one"], "it is delivered")
    before = ours(root)
    code = LOGS.replace("/own/flusher", "/another/group").replace("{settings}", "{}")
    another = spawn(code)
    log(another, "two")
    eventually(lambda: sorted(server.messages()) == ["one", "two"], "both are delivered")
    assert ours(root) == before


def test_a_flusher_of_an_older_version_hands_over(
    program: Callable[..., subprocess.Popen[str]], spawn: Spawn, root: Path, server: StrictCloudWatch, tmp_path: Path
) -> None:
    """A writer of a newer cwsink attaches: the flusher is of that version soon, and none of the records is lost."""
    child = program()
    log(child, "of the older")
    eventually(lambda: server.messages() == ["of the older"], "it is delivered")
    newer = newer_installation(tmp_path)
    new_child = spawn(
        f"import sys; sys.path.insert(0, {str(newer)!r})\n" + LOGS.replace("{settings}", "{}"),
        env={"PYTHONPATH": os.pathsep.join([str(newer), *sys.path])},
    )
    log(new_child, "of the newer")
    eventually(lambda: leader(root).version == "99.0.0", "the newer one leads")
    log(child, "of the older again")
    eventually(lambda: len(server.messages()) == 3, "all are delivered")
    assert leader(root).version == "99.0.0", "the older writer does not ask for its own version"


def test_an_upgrade_in_place_starts_the_new_code(
    spawn: Spawn, root: Path, server: StrictCloudWatch, tmp_path: Path
) -> None:
    """The files of the running flusher are replaced: a writer that attaches gets one of the new files."""
    package = newer_installation(tmp_path)
    env = {"PYTHONPATH": os.pathsep.join([str(package), *sys.path]), **server.environment()}
    code = f"import sys; sys.path.insert(0, {str(package)!r})\n" + LOGS.replace("{settings}", "{}")
    child = spawn(code, env=env)
    log(child, "before")
    eventually(lambda: leader(root).version == "99.0.0", "it leads")
    upgrade(package)
    log(spawn(code, env=env), "after")
    eventually(lambda: leader(root).version == "99.0.10", "the new code leads")
    eventually(lambda: sorted(server.messages()) == ["after", "before"], "both are delivered")


def test_an_upgrade_in_place_needs_no_writer(
    spawn: Spawn, root: Path, server: StrictCloudWatch, tmp_path: Path
) -> None:
    """The files of the running flusher are replaced, and nobody logs: its guard begins anew, and keeps the lock."""
    package = newer_installation(tmp_path)
    env = {"PYTHONPATH": os.pathsep.join([str(package), *sys.path]), **server.environment()}
    child = spawn(f"import sys; sys.path.insert(0, {str(package)!r})\n" + LOGS.replace("{settings}", "{}"), env=env)
    log(child, "before")
    eventually(lambda: leader(root).version == "99.0.0", "it leads")
    guard = parent_of(leader(root).pid)
    upgrade(package)
    eventually(lambda: leader(root).version == "99.0.10", "the new code leads")
    assert parent_of(leader(root).pid) == guard
    log(child, "after")
    eventually(lambda: sorted(server.messages()) == ["after", "before"], "both are delivered")


def upgrade(package: Path) -> None:
    """Replace the files of an installation that `newer_installation` has made."""
    init = package / "cwsink" / "version.py"
    # Of another length: within one second Python would take what it had compiled before.
    text = init.read_text().replace("99.0.0", "99.0.10")
    init.unlink()
    init.write_text(text)


def newer_installation(tmp_path: Path) -> Path:
    """Return a directory with a copy of the package that says it is of a later version."""
    home = tmp_path / "newer"
    shutil.copytree(Path(cwsink.__file__).parent, home / "cwsink", ignore=shutil.ignore_patterns("__pycache__"))
    init = home / "cwsink" / "version.py"
    init.write_text(init.read_text().replace(f'__version__ = "{cwsink.__version__}"', '__version__ = "99.0.0"'))
    return home


def test_a_guard_begins_anew_however_many_spools_were_left_behind(spawn: Spawn, root: Path) -> None:
    """The kernel takes no variable of more than 128 KiB: then the next guard looks for itself."""
    root.mkdir(mode=0o700)
    code = """
        import os, sys
        from cwsink.flusher import guard
        from cwsink.spool.flusher_lock import FlusherLock

        if "CWSINK_FLUSHER_PATH" in os.environ:
            sys.exit(print("anew", os.environ.get(guard._LEFT_BEHIND_VARIABLE, "")[:30]))
        left = {f"/spools/{'x' * 200}/{number}": (1, 100) for number in range(int(sys.argv[2]))}
        guard._begin_anew(FlusherLock(sys.argv[1]), left)
    """
    said = [finish(spawn(code, root, number, "")) for number in (1, 2000)]
    assert said == [f'anew {{"/spools/{"x" * 20}\n', "anew \n"]


def test_one_whose_credentials_fail_gives_way_to_a_writer_with_others(
    program: Callable[..., subprocess.Popen[str]], root: Path, server: StrictCloudWatch
) -> None:
    """The first program has no credentials. A second one has: its flusher takes over, and delivers for both."""
    without = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_CONFIG_FILE": "/dev/null"}
    without["AWS_SHARED_CREDENTIALS_FILE"] = "/dev/null"
    first = program(env=without)
    log(first, "first")
    eventually(lambda: leader(root).obstacle == "credentials", "it cannot deliver")
    second = program()
    log(second, "second")
    eventually(lambda: server.messages() == ["first", "second"], "both are delivered")


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("AWS_PROFILE", "prodd", "ProfileNotFound: The config profile (prodd) could not be found"),
        ("AWS_PROFILE", "caf\udce9", "ProfileNotFound: The config profile (caf\\udce9) could not be found"),
        ("AWS_DEFAULTS_MODE", "fast", "InvalidDefaultsMode: Client configured with invalid defaults mode: fast"),
        ("AWS_RETRY_MODE", "never", 'InvalidRetryModeError: Invalid value provided to "mode": "never"'),
        ("AWS_METADATA_SERVICE_TIMEOUT", "soon", "InvalidConfigError: invalid literal for int() with base 10: 'soon'"),
    ],
)
def test_a_wrong_variable_of_aws_is_an_error_line(
    program: Callable[..., subprocess.Popen[str]], root: Path, name: str, value: str, error: str
) -> None:
    """The flusher leads, and says what is wrong."""
    child = program({name: value}, drain_timeout_seconds=0.1)
    log(child, "hello")
    eventually(lambda: leader(root).obstacle == "credentials", "it has found out")
    assert (leader(root).last_error or "").startswith(error)
    child.stdin.close()  # type: ignore[union-attr]  # it was asked for
    assert child.stderr is not None
    said = child.stderr.read()
    assert f"cannot deliver to /own/flusher: {error}" in said
    assert "One of AWS's variables (AWS_...)" in said
    assert "Traceback" not in said


def test_a_guards_notes_to_the_next_one_are_not_taken_from_an_application(
    program: Callable[..., subprocess.Popen[str]], server: StrictCloudWatch
) -> None:
    """Nobody but a guard that begins anew sets these variables."""
    log(program({"CWSINK_FLUSHER_LEFT_BEHIND": "?", "CWSINK_FLUSHER_MUTE": "1"}), "hello")
    eventually(lambda: server.messages() == ["hello"], "it is delivered")


def test_a_wrong_file_of_aws_is_read_anew_at_each_try(
    program: Callable[..., subprocess.Popen[str]], root: Path, server: StrictCloudWatch, tmp_path: Path
) -> None:
    """Once it is corrected the records are delivered."""
    file = tmp_path / "config"
    file.write_text("[default\n")
    child = program({"AWS_CONFIG_FILE": str(file)})
    log(child, "hello")
    eventually(lambda: leader(root).obstacle == "credentials", "it has found out")
    assert leader(root).last_error == f"ConfigParseError: Unable to parse config file: {file}"
    file.write_text("[default]\n")
    eventually(lambda: server.messages() == ["hello"], "it is delivered")


@pytest.mark.parametrize("variable", ["AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE", "BOTO_CONFIG"])
def test_credentials_are_found_by_a_path_that_is_relative_to_the_program(
    spawn: Spawn,
    root: Path,
    server: StrictCloudWatch,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
) -> None:
    """The flusher's own directory is another one. A writer that looks there itself sees the same credentials."""
    section = "Credentials" if variable == "BOTO_CONFIG" else "default"
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "keys").write_text(f"[{section}]\naws_access_key_id = a\naws_secret_access_key = b\n")
    keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE")
    env = {**server.environment(), **dict.fromkeys(keys, ""), variable: "conf/keys"}
    prepare = f"import os\nos.chdir({str(tmp_path)!r})\n"
    child = spawn(prepare + LOGS.replace("{settings}", repr({"drain_timeout_seconds": 5.0})), env=env)
    log(child, "hello")
    eventually(lambda: server.messages() == ["hello"], "it is delivered")
    monkeypatch.chdir(tmp_path)
    assert leader(root).credentials == sending.credentials_stamp({**os.environ, **env})


def test_it_is_found_where_the_executable_is_no_python(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """uWSGI names itself in sys.executable: the interpreter beside the standard library is taken."""
    monkeypatch.setattr(sys, "executable", "/usr/bin/uwsgi")
    monkeypatch.setattr(sys, "_base_executable", "/usr/bin/uwsgi", raising=False)
    found = starter.find_python()
    assert subprocess.check_output([found, "-c", "import sys; print(*sys.version_info[:2])"], text=True).split() == [
        str(part) for part in sys.version_info[:2]
    ]


def test_a_python_that_is_named_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """CWSINK_PYTHON wins over all that could be found, with its path or as a shell finds it."""
    named = tmp_path / "snake"
    named.touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    for given in (str(named), "snake"):
        monkeypatch.setenv(starter.PYTHON_VARIABLE, given)
        assert starter.find_python() == str(named)


def test_where_none_can_be_started_one_line_says_so_and_records_wait(spawn: Spawn, server: StrictCloudWatch) -> None:
    """The application goes on; what it logged is there for the next flusher."""
    code = """
        import time, cwsink
        writer = cwsink.Writer.open(log_group_name="/own/flusher", log_stream_name="s", drain_timeout_seconds=0)
        for number in range(30):
            assert writer.append(f"record {number}")
            time.sleep(0.1)
    """
    child = spawn(code, env={"CWSINK_PYTHON": "/does/not/exist", **server.environment()})
    _, said = child.communicate(timeout=CHILD_SECONDS)
    assert child.returncode == 0, said
    assert said.count("the flusher cannot be started") == 1, said
    flush = [sys.executable, "-m", "cwsink", "flush", "--once"]
    done = subprocess.run(flush, env={**os.environ, **server.environment()}, capture_output=True, text=True)
    assert done.returncode == 0, done
    assert server.messages() == [f"record {number}" for number in range(30)]


@pytest.mark.parametrize("variable", ["COVERAGE_PROCESS_START", "PYTHONSTARTUP", "PYTHONPATH"])
def test_a_tracer_in_the_environment_does_not_trace_it(
    program: Callable[..., subprocess.Popen[str]], root: Path, server: StrictCloudWatch, tmp_path: Path, variable: str
) -> None:
    """What instruments the application through its environment is not loaded by the flusher."""
    tracer = tmp_path / "tracer"
    tracer.mkdir()
    trace = tracer / "traced"
    (tracer / "sitecustomize.py").write_text(f"import os\nopen({str(trace)!r}, 'a').write(f'{{os.getpid()}}\\n')")
    value = os.pathsep.join([str(tracer), *sys.path]) if variable == "PYTHONPATH" else str(tracer / "sitecustomize.py")
    child = program(env={variable: value})
    log(child, "hello")
    eventually(lambda: server.messages() == ["hello"], "it is delivered")
    traced = {int(pid) for pid in trace.read_text().split()} if trace.exists() else set()
    assert not traced & set(ours(root))


def test_a_started_flusher_keeps_the_lock_without_a_gap(tmp_path: Path) -> None:
    """A writer hands its lock over: it closes its descriptor, and whoever it gave it to still has the lock."""
    lock = flusher_lock.FlusherLock(str(tmp_path))
    assert lock.try_acquire()
    heir = os.dup(lock.fd)
    lock.close()
    assert flusher_lock.is_taken(str(tmp_path))
    os.close(heir)
    assert not flusher_lock.is_taken(str(tmp_path))


def test_cwsink_flush_whose_credentials_fail_gives_way(
    program: Callable[..., subprocess.Popen[str]], root: Path, server: StrictCloudWatch
) -> None:
    """A service without credentials leads. A program that has some logs: its own flusher delivers."""
    without = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_CONFIG_FILE": "/dev/null"}
    without["AWS_SHARED_CREDENTIALS_FILE"] = "/dev/null"
    child = program(env=without, flusher="external")
    log(child, "first")
    command = [sys.executable, "-m", "cwsink", "flush", str(root)]
    service = subprocess.Popen(command, env={**os.environ, **without}, stdout=subprocess.DEVNULL)
    try:
        eventually(lambda: leader(root).obstacle == "credentials", "it cannot deliver")
        assert leader(root).kind == "service"
        log(program(), "second")
        eventually(lambda: server.messages() == ["first", "second"], "both are delivered")
        assert leader(root).kind == "own"
    finally:
        service.kill()
        service.wait(CHILD_SECONDS)
