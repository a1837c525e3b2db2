"""Root starts, and another user logs: servers that drop their privileges. Every record of every process arrives.

Only root can start such a server, and the other user must be able to read Python and cwsink. They may lie in root's
home, which is closed to others. Then the server gets a view of its own (a mount namespace), in which it is open.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cwsink.testing import StrictCloudWatch
from cwsink.testing.flushers import end_flushers
from tests.harness.support import CHILD_SECONDS, books_balance, finish
from tests.integration.test_gunicorn_hooks import HOOKS, SETTINGS, Gunicorn

USER = 65_534  # "nobody", on every Linux

# It logs as root, becomes the other user and logs more than a segment holds.
PROGRAM = """
    import os, sys
    from cwsink import Writer

    def become_user():
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)

    def log(count, name):
        for number in range(count):
            assert writer.append(f"{name} {number} " + "x" * 200), f"{name} {number} was refused"

    form = sys.argv[1]
    if form == "before":
        become_user()
    writer = Writer.open(segment_bytes="64KiB")
    if form in ("late", "fork late"):
        log(10, "root")
    if form in ("fork", "fork late"):
        child = os.fork()
        if child:
            sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    if form != "before":
        become_user()
    log(1_000, "user")
"""


def expected(form: str) -> set[str]:
    return {f"user {number}" for number in range(1_000)} | {f"root {number}" for number in range(10) if "late" in form}


# $1: a closed directory. $2: an empty one. Then directories below $1 that are to be seen by all, up to "--".
OPEN = """
    closed=$1 kept=$2
    shift 2
    mount --bind "$closed" "$kept"
    mount -t tmpfs -o mode=0755 tmpfs "$closed"
    while [ "$1" != -- ]; do
        mkdir -p "$1"
        mount --bind "$kept${1#"$closed"}" "$1"
        shift
    done
    shift
    exec "$@"
"""
AS_USER = ("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups")


def closed_directory(path: str) -> str | None:
    """The uppermost directory on the way to this path that others may not enter."""
    return next((str(each) for each in [*Path(path).parents][::-1] if not each.stat().st_mode & 0o001), None)


@pytest.fixture
def within(place: Path) -> tuple[str, ...]:
    """What stands before a command, so that the other user can read Python and cwsink there."""
    needed = [os.path.realpath(each) for each in (sys.base_prefix, sys.prefix, Path(__file__).parents[2])]
    closed = {directory for each in needed if (directory := closed_directory(each))}
    command: tuple[str, ...] = ()
    for number, directory in enumerate(closed):
        kept = place / f"kept{number}"
        kept.mkdir()
        below = [each for each in needed if each.startswith(f"{directory}/")]
        command += ("unshare", "--mount", "sh", "-ec", OPEN, "sh", directory, str(kept), *below, "--")
    probe = [*command, *AS_USER, sys.executable, "-c", "import cwsink.cli, gunicorn"]
    tried = subprocess.run(probe, capture_output=True, cwd="/", text=True)
    if tried.returncode:
        pytest.skip(f"another user cannot read this Python or cwsink: {tried.stderr}")
    return command


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory that the other user may enter, with spools of all users; the state of the user is there, too."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    path = Path(tempfile.mkdtemp(prefix="cwsink-user-"))
    try:
        path.chmod(0o755)
        for name in ("spools", "state"):
            (path / name).mkdir()
            (path / name).chmod(0o1777)
        monkeypatch.setenv("CWSINK_SPOOL_DIRECTORY", str(path / "spools"))
        monkeypatch.setenv("XDG_STATE_HOME", str(path / "state"))
        monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
        yield path
        end_flushers(path)
        books_balance(path)
    finally:
        shutil.rmtree(path)


@pytest.fixture
def environment(server: StrictCloudWatch) -> dict[str, str]:
    return {**os.environ, **server.environment(), **SETTINGS, "PYTHONPATH": os.pathsep.join(sys.path)}


Run = Callable[..., str]


@pytest.fixture
def run(place: Path, within: tuple[str, ...], environment: dict[str, str]) -> Iterator[Run]:
    """Run the program below some command as root, to its end; returns what it wrote to stderr."""
    script = place / "program.py"
    script.write_text(textwrap.dedent(PROGRAM))
    started = []

    def run(form: str, *command: str, **variables: str) -> str:
        words = [*within, *command, sys.executable, str(script), form]
        env = {**environment, **variables}
        started.append(child := subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=env, cwd="/"))
        _, err = child.communicate(timeout=CHILD_SECONDS)
        assert child.returncode == 0, err
        return err

    yield run
    for child in started:
        child.kill()
        child.wait(CHILD_SECONDS)


def arrived(server: StrictCloudWatch) -> list[str]:
    return sorted(message.removesuffix(" " + "x" * 200) for message in server.messages())


def test_each_user_of_a_root_sends_its_own(
    server: StrictCloudWatch, place: Path, within: tuple[str, ...], run: Run, environment: dict[str, str]
) -> None:
    """What is closed to this user is named, and the code is 0 if all of its own is sent; 1 if it has nothing there."""
    closed = place / "spools" / "app.0123456789"
    closed.mkdir(0o700)

    def cwsink(*words: str, code: int = 0) -> str:
        command = [*within, *AS_USER, sys.executable, "-m", "cwsink", *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=CHILD_SECONDS, cwd="/")
        assert done.returncode == code, done.stderr
        return done.stderr

    assert "permission denied" in cwsink("flush", "--once", code=1)
    run("before", CWSINK_FLUSHER="external")
    assert f"left to its owner: `sudo -u root cwsink flush --once {closed}` sends" in cwsink("flush", "--once")
    assert arrived(server) == sorted(expected("before"))
    for command in (["status"], ["verify"], ["replay", "--all"], ["replay", "--all", "--dry-run"]):
        assert "permission denied" in cwsink(*command, code=1), "it may be what the command was asked for"


@pytest.mark.parametrize("is_sticky", [True, False], ids=["shared root", "root's own root"])
@pytest.mark.parametrize("form", ["early", "late", "fork", "fork late"])
def test_a_program_that_drops_root_loses_nothing(
    server: StrictCloudWatch, place: Path, run: Run, form: str, is_sticky: bool
) -> None:
    """It changes its user before or after its first record, itself or in a child; one line says where records go."""
    if not is_sticky:
        (place / "spools").chmod(0o700)
    err = run(form)
    assert server.wait_for(lambda s: set(arrived(s)) == expected(form), CHILD_SECONDS)
    assert len(arrived(server)) == len(expected(form)), "nothing twice"
    moved = re.findall(r"cwsink: this process runs as user 65534 now, .* go to (.*?)\. To choose", err)
    assert [path.startswith(f"{place}/state/cwsink/") for path in moved] == [True], err


@pytest.mark.parametrize("form", ["before", "late"])
def test_below_cwsink_run_of_root(server: StrictCloudWatch, place: Path, run: Run, form: str) -> None:
    """`cwsink run` cannot send another user's spool. So the command has a flusher of its own, and waits for it."""
    run(form, sys.executable, "-m", "cwsink", "run", "--")
    assert set(arrived(server)) == expected(form), "delivered at its end"


# It becomes the other user while it can open no file.
STARVED = """
    import os, resource, sys, time
    from cwsink import Writer

    writer = Writer.open()
    assert writer.append("root 0")
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, most))
    taken = refused = 0
    until = time.monotonic() + 60
    while not refused:  # until it looks, it appends to the segment that it has
        assert time.monotonic() < until
        if writer.append(f"user {taken}"):
            taken += 1
        else:
            refused += 1
        time.sleep(0.01)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    while not writer.append(f"user {taken}"):
        assert time.monotonic() < until
        refused += 1
        time.sleep(0.01)
    print(f"taken={taken + 1} refused={refused}", file=sys.stderr)
"""


def test_a_new_user_without_descriptors_counts_what_it_refuses(server: StrictCloudWatch, place: Path, run: Run) -> None:
    """It cannot open a spool of its own then. What it refuses is counted, and it logs on as soon as it can."""
    (place / "program.py").write_text(textwrap.dedent(STARVED))
    err = run("")
    taken, refused = map(int, re.findall(r"taken=(\d+) refused=(\d+)", err)[0])
    assert "Too many open files" in err

    def told(server: StrictCloudWatch) -> tuple[int, int]:
        lost = [json.loads(message)["_cwsink"]["lost"] for message in server.messages() if "_cwsink" in message]
        return len(server.messages()) - len(lost), sum(lost)

    assert server.wait_for(lambda s: told(s) == (taken + 1, refused), CHILD_SECONDS)


def test_a_constructor_says_what_to_do(place: Path, within: tuple[str, ...], environment: dict[str, str]) -> None:
    """The user is known from the beginning, and may not use the named root: one line, at the start."""
    (place / "spools").chmod(0o700)
    command = [*within, *AS_USER, sys.executable, "-c", "import cwsink; cwsink.Writer.open()"]
    done = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True)
    (line,) = done.stderr.strip().splitlines()[-1:]
    assert f"the spool directory {place}/spools cannot be used: permission denied." in line
    assert "name another one (spool_directory or CWSINK_SPOOL_DIRECTORY)" in line


APP = """
import os, cwsink
writer = cwsink.Writer.open(segment_bytes="64KiB")
if os.environ.get("EARLY"):
    assert writer.append("early")
def app(environ, start_response):
    assert writer.append(environ["PATH_INFO"].strip("/") + " " + "x" * 200)
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""
LOG_CONFIG = """
[loggers]
keys = root, gunicorn.error
[handlers]
keys = cloudwatch
[formatters]
keys =
[logger_root]
level = WARNING
handlers =
[logger_gunicorn.error]
level = INFO
handlers = cloudwatch
qualname = gunicorn.error
[handler_cloudwatch]
class = cwsink.SpoolHandler
args = ()
"""


@pytest.mark.parametrize("hooks", [HOOKS, ""], ids=["hooks", "no hooks"])
@pytest.mark.parametrize("form", ["plain", "preload", "preload early", "log config"])
def test_workers_of_gunicorn(
    server: StrictCloudWatch, place: Path, within: tuple[str, ...], form: str, hooks: str
) -> None:
    """`user = "nobody"`, with and without preload: the server serves, and what each worker logs arrives."""
    options = ["--user", "nobody", "--group", str(USER)]
    if "preload" in form:
        options.append("--preload")
    if form == "log config":
        (place / "logging.conf").write_text(LOG_CONFIG)
        options += ["--log-config", str(place / "logging.conf"), "--preload"]
    early = "1" if "early" in form else ""
    gunicorn = Gunicorn(place, server, APP, tuple(options), hooks, within=within, EARLY=early)
    try:
        for number in range(400):
            gunicorn.get(f"request-{number}")
        output = gunicorn.stop()
    finally:
        gunicorn.kill()
    wanted = {f"request-{number}" for number in range(400)} | ({"early"} if "early" in form else set())
    assert server.wait_for(lambda s: wanted <= set(arrived(s)), CHILD_SECONDS), output
    if form == "log config":
        assert any("Booting worker" in message for message in server.messages()), "logged as the other user"


def test_uwsgi_with_uid(
    server: StrictCloudWatch, place: Path, within: tuple[str, ...], environment: dict[str, str]
) -> None:
    """`--uid`: uWSGI drops root before it loads the application."""
    pytest.importorskip("pyuwsgi")
    (place / "app.py").write_text(APP.replace("def app", "def application"))
    command = [*within, str(Path(sys.executable).with_name("pyuwsgi")), "--master", "--processes", "2", "--die-on-term"]
    command += ["--uid", str(USER), "--gid", str(USER), "--http-socket", "127.0.0.1:0", "--wsgi-file", "app.py"]
    child = subprocess.Popen(
        command, cwd=place, env={**environment, "EARLY": "1"}, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert server.wait_for(lambda s: "early" in s.messages(), CHILD_SECONDS)
        child.terminate()
        finish(child)
    finally:
        child.kill()
        child.communicate(timeout=CHILD_SECONDS)
