"""`cwsink doctor`: each finding is provoked once, in this process; the command itself runs twice."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from cwsink import Writer, words
from cwsink.config import SinkConfig
from cwsink.doctor import course, machine, patient, place, rounds, trial
from cwsink.doctor.finding import Finding, ok
from cwsink.doctor.patient import Patient
from cwsink.doctor.rounds import Question
from cwsink.flusher import examination
from cwsink.flusher.dead_letter import DeadLetters
from cwsink.flusher.outcome import Outcome
from cwsink.frontends import presence
from cwsink.spool import disk, heartbeat, leader_state, refusals
from cwsink.spool.flusher_lock import FlusherLock
from cwsink.spool.leadership import Leader
from cwsink.spool.record import Loss
from cwsink.testing import StrictCloudWatch
from tests.harness.interleave import deliver, leading
from tests.harness.support import CHILD_SECONDS

GROUP = {"CWSINK_LOG_GROUP_NAME": "/test/group", "CWSINK_LOG_STREAM_NAME": "stream"}


def ask(topic: str, *words: str, env: dict[str, str] | None = None) -> list[Finding]:
    """What the questions of one topic find, in this process's environment and `env`."""
    admitted = patient.admit(list(words), {**os.environ, **(env or {})})
    chosen = [question for question in rounds.QUESTIONS if question.topic == topic]
    assert chosen
    return list(rounds.examine(admitted, chosen))


def one(found: Iterable[Finding], verdict: str, text: str) -> Finding:
    """The only finding with this verdict; it has this text, in what was seen or in what to type."""
    chosen = [each for each in found if each.verdict == verdict]
    assert len(chosen) == 1, found
    assert text in f"{chosen[0].seen} → {chosen[0].advice}", chosen
    return chosen[0]


def named(server: StrictCloudWatch) -> dict[str, str]:
    """The variables of a worker that sends to the server."""
    return {**GROUP, "CWSINK_ENDPOINT_URL": server.endpoint_url, "CWSINK_CREATE_LOG_GROUP": "true"}


# Settings.


def test_the_settings_and_where_each_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with its variable; a secret one is named, and not shown."""
    env = {
        **GROUP,
        "FAPILOG_CLOUDWATCH__BATCH_SIZE": "500",
        "CWSINK_ROLE_ARN": "arn:aws:iam::1:role/x",
        "CWSINK_EXTERNAL_ID": "hush-hush",
    }
    (found,) = ask("settings", env=env)
    assert found.verdict == "ok"
    for part in (
        "log_group_name /test/group (CWSINK_LOG_GROUP_NAME)",
        "batch_size 500 (FAPILOG_CLOUDWATCH__BATCH_SIZE)",
        "region us-east-1 (AWS_REGION)",
        "external_id (not shown) (CWSINK_EXTERNAL_ID)",
    ):
        assert part in found.seen
    assert "hush-hush" not in str(ask("settings", env=env))


@pytest.mark.parametrize(
    ("env", "verdict", "text"),
    [
        ({"CWSINK_RETENTION_DAYS": "10"}, "wrong", "retention_days=10"),
        ({**GROUP, "CWSINK_LOG_STREAM_NAME": "{env:NOWHERE}"}, "wrong", "NOWHERE"),
        ({"CWSINK_LOG_GRUP_NAME": "/x"}, "warning", "Did you mean CWSINK_LOG_GROUP_NAME"),
        ({"CWSINK_REGION": "eu-west-1", "FAPILOG_CLOUDWATCH__REGION": "eu-west-2"}, "warning", "CWSINK_REGION is set"),
    ],
)
def test_settings_that_are_wrong_or_without_effect(
    env: dict[str, str], verdict: str, text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each is said once: as a finding, and not on stderr, too."""
    one(ask("settings", env=env), verdict, text)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("env", "verdict", "text"),
    [
        ({**GROUP, "CWSINK_TARGET": "stderr"}, "wrong", "unset CWSINK_TARGET"),
        ({**GROUP, "CWSINK_TARGET": "kafka"}, "wrong", "none of cloudwatch"),
        ({"AWS_LAMBDA_FUNCTION_NAME": "f", "LAMBDA_TASK_ROOT": "/var/task"}, "ok", "Lambda sends its stdout"),
        (
            {"AWS_LAMBDA_FUNCTION_NAME": "f", "LAMBDA_TASK_ROOT": "/var/task", "CWSINK_TARGET": "cloudwatch"},
            "wrong",
            "CWSINK_TARGET=stdout",
        ),
        (GROUP, "unknown", "nothing was logged there yet"),
        ({}, "unknown", "CWSINK_LOG_GROUP_NAME=/myapp/prod"),
    ],
)
def test_where_records_go(env: dict[str, str], verdict: str, text: str) -> None:
    """Not to CloudWatch at all, or to a target where nothing was logged yet."""
    one(ask("target", env=env), verdict, text)


def test_another_writer_has_other_settings(small: SinkConfig, server: StrictCloudWatch) -> None:
    """The spool has those of the writer; a variable that says otherwise has no effect, or another writer has one."""
    writer = Writer(msgspec.structs.replace(small, batch_size=500))
    assert writer.append("x")
    assert "batch_size 500" in one(ask("writers", env=named(server)), "ok", "as ").seen
    found = one(ask("writers", env={**named(server), "CWSINK_BATCH_SIZE": "100"}), "warning", "in one place")
    assert "batch_size 500, not 100 (CWSINK_BATCH_SIZE)" in found.seen
    one(ask("writers", env={**named(server), "CWSINK_ON_FULL": "drop_newest"}), "warning", "on_full drop_oldest, not")


# Disk.


def test_the_root(tmp_path: Path) -> None:
    """Not there yet, there, open to others, a relative one, and a damaged spool in it."""
    root = tmp_path / "spools"
    one(ask("root"), "ok", "made by the first record")
    one(ask("root", env={"CWSINK_SPOOL_DIRECTORY": "/proc/spools"}), "wrong", "cannot make it")
    root.mkdir(0o700)
    one(ask("root"), "ok", f"{root}, of user {machine.user_name(os.geteuid())}")
    (root / "app.0123456789").mkdir(0o700)
    (root / "app.0123456789" / "FORMAT").write_text("{")
    damaged = one(ask("root"), "wrong", "app.0123456789 cannot be opened")
    assert "The records there are kept: the next worker that logs there" in damaged.seen
    assert damaged.advice == ""
    assert ask("target") == []
    root.chmod(0o777)
    assert "other users may write" in next(each.seen for each in ask("root") if each.verdict == "wrong")
    one(ask("root", env={"CWSINK_SPOOL_DIRECTORY": "spools"}), "wrong", "relative")
    one(ask("root", env={"CWSINK_SPOOL_DIRECTORY": __file__}), "wrong", "Not a directory")


@pytest.mark.parametrize(
    ("kind", "verdict", "text"),
    [
        ("ext4", "ok", "survives a restart"),
        ("tmpfs", "warning", "lost at a restart"),
        ("overlay", "warning", "Mount a volume"),
        ("nfs4", "wrong", "several hosts may share"),
        ("", "unknown", "cannot be told"),
    ],
)
def test_what_survives_a_restart(kind: str, verdict: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It depends on the file system, and on whether that is /tmp, which many systems empty."""
    monkeypatch.setattr(place, "filesystem_at", lambda path: kind)
    one(ask("disk", env={"CWSINK_SPOOL_DIRECTORY": "/var/lib/no-such-root"}), verdict, text)
    if verdict == "ok":
        one(ask("disk", env={"CWSINK_SPOOL_DIRECTORY": "/tmp/no-such-root"}), "warning", "empty /tmp at a restart")


def test_the_room(small: SinkConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough, less than the spools may take, or none; also before anything was logged."""
    with monkeypatch.context() as full:
        full.setattr(disk, "free_bytes", lambda path: 100)
        one(ask("room"), "wrong", "nothing can be logged there")
    writer = Writer(small)
    assert writer.append("x")
    one(ask("room"), "ok", "MiB free")
    # Records use a disk as far as it goes. So a small one costs none, as long as none is counted as lost.
    for free, text in ((10 << 20, "CWSINK_SPOOL_MAX_BYTES=5MiB"), (100, "soon fills the disk")):
        monkeypatch.setattr(disk, "free_bytes", lambda path, free=free: free)
        one(ask("room"), "warning", text)
    now_ms = int(time.time() * 1000)
    assert refusals.add(writer.directory, [Loss(3, now_ms, now_ms, "spool_full", 0)])
    one(ask("room"), "wrong", "Records are lost")
    monkeypatch.setattr(disk, "free_bytes", lambda path: 1 << 40)
    for files, verdict, text in ((0, "wrong", "no more files can be made"), (5, "warning", "5 more files can be made")):
        monkeypatch.setattr(disk, "free_files", lambda path, files=files: files)
        assert "df -i" in one(ask("room"), verdict, text).advice
    monkeypatch.setattr(disk, "free_files", lambda path: None)  # btrfs counts none
    one(ask("room"), "ok", "MiB free")
    monkeypatch.setattr(disk, "free_bytes", lambda path: None)
    one(ask("room"), "unknown", "does not say")
    monkeypatch.setattr(disk, "free_bytes", lambda path: 1 << 40)
    monkeypatch.setattr("cwsink.spool.disk.most_file_bytes", lambda: 100)
    one(ask("room"), "wrong", "ulimit -f")


def test_the_user(monkeypatch: pytest.MonkeyPatch, small: SinkConfig) -> None:
    """The command's workers may be of another one, also by gunicorn's own option; so may the spools."""
    one(ask("user"), "ok", machine.user_name(os.geteuid()))
    one(ask("user", "sudo", "-u", "nobody", "gunicorn", "app"), "warning", "sudo -u nobody cwsink doctor")
    one(ask("user", "gunicorn", "--user", "nobody", "app"), "warning", "nobody")
    one(ask("user", "gosu", "no-such-user", "gunicorn"), "wrong", "no such user")
    assert Writer(small).append("x")
    monkeypatch.setattr(machine, "owner_of", lambda path: 54321)
    one(ask("user"), "warning", "spools are of 54321")


# Delivery.


def test_who_leads(small: SinkConfig) -> None:
    """Nobody, a process, another host; and who gave way."""
    writer = Writer(small)
    assert writer.append("x")
    one(ask("leader"), "ok", "none now")
    with leading(writer.directory, small):
        writer.flush(CHILD_SECONDS)
        one(ask("leader"), "ok", f"pid {os.getpid()}")
        published = leader_state.read(writer.directory)
        assert published
        published.unable = [leader_state.Unable(4711, "h", "own", "AccessDenied: no", 0.0)]
        Path(writer.directory.leader_state).write_bytes(msgspec.json.encode(published))
        one(ask("leader"), "warning", "pid 4711 gave way, unable to send: AccessDenied")
    Path(writer.directory.leader_host).write_bytes(msgspec.json.encode(heartbeat.Mark("another boot", "web-2")))
    one(ask("leader"), "wrong", "host web-2 leads")


def test_a_stopped_guard_is_named(small: SinkConfig) -> None:
    """It keeps the lock that a writer has handed to it, and nobody leads."""
    writer = Writer(small)
    assert writer.append("x")
    lock = FlusherLock(writer.directory.root)
    assert lock.try_acquire()
    with subprocess.Popen(["sleep", "60"], pass_fds=[lock.fd]) as guard:
        lock.close()
        one(ask("leader"), "ok", "a flusher serves other spools here")
        guard.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, guard.pid, os.WSTOPPED)
        for topic in ("leader", "delivery"):
            one(ask(topic), "wrong", f"the flusher (pid {guard.pid}) is a stopped process → kill -CONT {guard.pid}")
        guard.kill()


def test_how_delivery_goes(small: SinkConfig, server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each state, with what to type; then losses and dead letters."""
    server.create_stream("/test/group", "stream")
    writer = Writer(small)
    assert writer.append("x")
    path = writer.directory.path
    one(ask("delivery"), "wrong", f"nobody sends → cwsink flush --once {path}")
    presence.this.forget_below("")
    writer.close()
    orphan = one(ask("delivery"), "wrong", "an orphan of host")
    assert f"`{orphan.advice}`" == words.to_send(path)  # as all other hints name it
    server.faults.deny("logs:PutLogEvents")
    with leading(writer.directory, small):
        assert server.wait_for(lambda seen: seen.calls["PutLogEvents"] > 0)
        until = time.monotonic() + CHILD_SECONDS
        while "AccessDeniedException" not in str(found := ask("delivery")) and time.monotonic() < until:
            time.sleep(0.05)
        one(found, "wrong", "Allow the action that the error names")
        server.faults.allow("logs:PutLogEvents")
    deliver(writer.directory, small)
    one(ask("delivery"), "ok", "nothing waits, 1 delivered")
    seen = course.look(writer.directory)
    for is_stopped, command in ((True, "kill -CONT 4711"), (False, "kill -KILL 4711")):
        leader = Leader(4711, "h", 1, "own")
        stalled = msgspec.structs.replace(seen, state="stalled", leader_is_stopped=is_stopped, pending=1, leader=leader)
        monkeypatch.setattr(course, "look", lambda _, stalled=stalled: stalled)
        one(ask("delivery"), "wrong", command)


def test_what_is_lost_or_dead(small: SinkConfig, server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning each, with the next command."""
    server.create_stream("/test/group", "stream")
    server.faults.poison = "BAD"
    writer = Writer(small)
    assert writer.append("BAD")
    assert writer.append("good")
    deliver(writer.directory, small)
    dead = one(ask("delivery"), "warning", "cwsink replay --dead-letters --dry-run")
    assert "1 poison" in dead.seen
    now_ms = int(time.time() * 1000)
    assert refusals.add(writer.directory, [Loss(1204, now_ms, now_ms, "spool_full", 0)])
    assert [each.topic for each in ask("delivery")] == ["delivery", "losses", "dead letters"]
    assert "1,204 records lost since" in ask("delivery")[1].seen
    assert ask("delivery")[1].advice == "Raise spool_max_bytes, or log less."
    with monkeypatch.context() as patch:
        patch.setattr(disk, "free_bytes", lambda fd: 0)
        losses = ask("delivery")[1]
        assert losses.seen.endswith(": the disk is full (0 B free)")
        assert losses.advice == "Make room on the disk."  # other files take all of it
        patch.setattr(disk, "free_bytes", lambda fd: 2**40)
        patch.setattr(disk, "free_files", lambda fd: 0)
        losses = ask("delivery")[1]
        assert losses.seen.endswith(": no file can be made there, because the inodes are used up")
        assert losses.advice == "Remove files from that disk (`df -i` counts them)."
    with open(writer.directory.dead_letters, "a", encoding="utf-8") as file:
        file.write('{"dropped": 36}\n')
    assert "36 dead letters lost" in ask("delivery")[-1].seen


def test_damage_cannot_be_replayed(small: SinkConfig) -> None:
    """Nothing but damage is dead: the advice is to throw it away, and says what that is."""
    writer = Writer(small)
    DeadLetters(writer.directory.dead_letters).add_damage(1, 0, b"x")
    dead = one(ask("delivery"), "warning", "CloudWatch can never take 1 corrupt")
    assert f"`cwsink replay --dead-letters --clear {writer.directory.path}` throws away what is kept" in dead.advice


# The application.

CORE = {"FAPILOG_CORE__SINKS": '["cwsink"]'}


@pytest.mark.parametrize(
    ("env", "verdict", "text"),
    [
        ({}, "unknown", "named in code"),
        ({"FAPILOG_CORE__LOG_LEVEL": "INFO"}, "unknown", "named in code"),
        ({**CORE, "FAPILOG_PLUGINS__ALLOWLIST": '["cwsink"]'}, "ok", "its sink is cwsink"),
        (CORE, "warning", "FAPILOG_PLUGINS__ALLOWLIST"),
        ({"FAPILOG_CORE__SINKS": '["cloudwatch"]'}, "warning", "cwsink.install()"),
        ({"FAPILOG_CORE__SINKS": '["stdout_json"]'}, "wrong", "none of them is cwsink"),
        ({"FAPILOG_CORE__SINKS": "[broken"}, "wrong", "its settings are wrong"),
        ({"FAPILOG_CORE__MAX_QUEUE_SIZE": "a-secret"}, "wrong", "core.max_queue_size: Input should be"),
        ({"CWSINK_PIPELINE": "queue"}, "warning", "CWSINK_PIPELINE=inline"),
    ],
)
def test_fapilog(env: dict[str, str], verdict: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether its sink is ours, and whether it writes through."""
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert "a-secret" not in str(one(ask("fapilog"), verdict, text))


def test_a_plugin_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its code is read, and it is neither made nor run."""
    from importlib.metadata import EntryPoint

    from cwsink.frontends import fapilog_plan

    here = [EntryPoint("slow", f"{__name__}:Slow", "fapilog.enrichers"), EntryPoint("gone", "no.such:P", "x")]
    monkeypatch.setitem(sys.modules, __name__, sys.modules[Slow.__module__])
    monkeypatch.setattr(fapilog_plan, "entry_points", lambda group: here if group == "fapilog.enrichers" else [])
    monkeypatch.setattr("cwsink.frontends.inline.seam.missing", lambda: ["fapilog.core.logger:x"])
    env = {**CORE, "FAPILOG_PLUGINS__ALLOWLIST": '["cwsink"]', "FAPILOG_CORE__ENRICHERS": '["slow", "gone"]'}
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    found = ask("fapilog")
    assert [each.verdict for each in found] == ["ok", "wrong", "warning", "warning"]
    assert "the plugin slow may wait (" in found[2].seen
    assert "cannot be loaded" in found[3].seen


class Slow:
    """A plugin that asks somebody."""

    def __init__(self) -> None:
        raise AssertionError("it is made")

    async def enrich(self, event: dict[str, Any]) -> dict[str, Any]:
        await self.client.get()  # type: ignore[attr-defined]
        return {}


@pytest.mark.parametrize(
    ("topic", "command", "verdict", "text"),
    [
        ("server", "sh -c 'migrate; gunicorn app'", "warning", "does not pass TERM on"),
        ("server", "gunicornn app:app", "warning", "no command gunicornn is found here, and no"),
        ("server", "gunicornn app:app", "warning", "Did you mean gunicorn?"),
        ("server", "env PATH=/nowhere sleep 9", "warning", "no command sleep"),
        ("server", "env A=b sleep 9", "ok", "sleep"),
        ("server", "env -C /bin ./sleep 9", "ok", "sleep"),
        ("server", "python -m its.worker", "ok", "its.worker"),
        ("server", "sh entrypoint.sh", "warning", "exec, before the last command"),
        ("server", "env CWSINK_PIPELINE=queue uwsgi --http :80", "wrong", "--enable-threads"),
        ("server", "uwsgi app.ini", "unknown", "in app.ini"),
        ("server", "env UWSGI_ENABLE_THREADS=1 uwsgi --http :80", "ok", "uwsgi"),
        ("server", "gunicorn -k gevent --preload app", "warning", "leave --preload out"),
        ("stopping", "gunicorn --graceful-timeout 4 app", "warning", "--graceful-timeout 10"),
        ("stopping", "env GUNICORN_CMD_ARGS=--graceful-timeout=3 gunicorn app", "warning", "kills a worker after 3 s"),
        ("stopping", "gunicorn -c its.py app", "unknown", "graceful_timeout may be in its.py"),
        ("stopping", "env GUNICORN_CMD_ARGS='-c its.py' gunicorn app", "unknown", "graceful_timeout may be in its.py"),
        ("stopping", "gunicorn -c its.py --graceful-timeout 20 app", "ok", "longer than 20 s"),
        ("server", "env GUNICORN_CMD_ARGS='-k gevent --preload' gunicorn app", "warning", "leave --preload out"),
        ("server", "gunicorn -c its.py app", "unknown", "worker_class may be in its.py"),
        ("server", "gunicorn -k gevent -c its.py app", "unknown", "preload_app may be in its.py"),
        ("user", "env GUNICORN_CMD_ARGS='--user nosuchuser' gunicorn app", "wrong", "no such user"),
        ("stopping", "hypercorn app", "warning", "after 3 s"),
        ("stopping", "hypercorn -c its.toml app", "unknown", "graceful_timeout may be in its.toml"),
        ("stopping", "uwsgi app.ini", "unknown", "worker-reload-mercy may be in app.ini"),
        ("stopping", "env UWSGI_INI=/app.ini uwsgi", "unknown", "worker-reload-mercy may be in /app.ini"),
        ("stopping", "env UVICORN_TIMEOUT_GRACEFUL_SHUTDOWN=2 uvicorn app", "warning", "after 2 s"),
        ("stopping", "gunicorn app", "ok", "longer than 30 s"),
        ("stopping", "cwsink run -- gunicorn app", "ok", "longer than 40 s"),
        ("stopping", "uvicorn app", "ok", "as long as it takes"),
    ],
)
def test_the_server(topic: str, command: str, verdict: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recognised by its words; what does not suit is said."""
    monkeypatch.setattr(machine, "words_of", lambda pid: ["/sbin/init"])
    one(ask(topic, *shlex.split(command)), verdict, text)


@pytest.mark.parametrize(
    ("command", "sees_it"),
    [
        ("gunicorn app", True),
        ("env -C {there} gunicorn app", True),
        ("sh -c 'cd {there} && exec gunicorn app'", True),
        ("env -C / gunicorn app", False),
        ("uvicorn app", False),
    ],
)
def test_a_file_that_gunicorn_reads_without_a_word(
    command: str, sees_it: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gunicorn.conf.py of the working directory: its options are as unknown as those of a file that is named."""
    (tmp_path / "gunicorn.conf.py").write_text("")
    monkeypatch.chdir("/" if "{there}" in command else tmp_path)
    words = shlex.split(command.format(there=tmp_path))
    for topic in ("stopping", "server", *(["user"] if os.geteuid() == 0 else [])):
        found = [each for each in ask(topic, *words) if "may be in gunicorn.conf.py" in each.seen]
        assert [each.verdict for each in found] == (["unknown"] if sees_it else []), topic


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc/locks")
def test_the_working_directory_is_that_of_the_living_process(
    small: SinkConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The doctor's own one has nothing to do with it."""
    (tmp_path / "gunicorn.conf.py").write_text("")
    worker = subprocess.Popen(["sleep", "100"], cwd=tmp_path)
    try:
        monkeypatch.setattr("cwsink.doctor.application.attached_pids", lambda directory: [worker.pid])
        monkeypatch.setattr(machine, "words_of", lambda pid: ["gunicorn", "app"])
        assert Writer(small).append("x")
        one(ask("stopping"), "unknown", "graceful_timeout may be in gunicorn.conf.py")
    finally:
        worker.kill()
        worker.wait()


@pytest.mark.parametrize("command", ["uwsgi --http :80", "gunicorn -k gevent app"])
def test_a_server_that_suits(command: str) -> None:
    """It is named, and that it suits."""
    assert [each.verdict for each in ask("server", *command.split()) if each.topic != "process 1"] == ["ok", "ok"]


def test_the_first_process_is_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would not hand TERM on to the server."""
    monkeypatch.setattr(machine, "words_of", lambda pid: ["/bin/sh", "-c", "a; b"])
    one(ask("server"), "warning", "it is a shell")


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc/locks")
def test_a_living_writer_tells_what_the_server_is(small: SinkConfig) -> None:
    """Without a command, the command line of a process that has logged is read: this one's, here."""
    assert Writer(small).append("x")
    seen = one([each for each in ask("server") if each.topic == "server"], "ok", "").seen
    assert "python" in seen or "pytest" in seen  # by how it was started


# AWS.


@pytest.mark.parametrize(
    ("env", "verdict", "text"),
    [
        ({"AWS_REGION": "us-esat-1"}, "warning", "CWSINK_REGION=us-east-1"),
        ({"AWS_REGION": ""}, "wrong", "no region is named"),
        ({"AWS_REGION": "eu-central-1"}, "ok", "eu-central-1"),
        ({"CWSINK_PROFILE": "nobody"}, "ok", "us-east-1"),
    ],
)
def test_the_region(env: dict[str, str], verdict: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slip of the pen is not among those of AWS, and the one that is meant is named."""
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    one(ask("region", env={**GROUP, **env}), verdict, text)


def test_the_name_and_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is not known; a proxy is looked up in its place, and its password is not shown."""

    def fail(host: str, *_: object, **__: object) -> None:
        raise socket.gaierror(-2, f"Name or service not known: {host}")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    one(ask("name", env=GROUP), "wrong", "getent hosts logs.us-east-1.amazonaws.com")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:very-secret@proxy.example:3128")
    found = ask("name", env=GROUP)
    assert "very-secret" not in str(found)
    assert "proxy.example:3128" in one(found, "ok", "is reached by the proxy").seen
    one(found, "wrong", "getent hosts proxy.example")


def test_a_name_server_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is what is wrong, and nothing else waits for it: the look-up, the endpoint, the permissions, STS."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(CHILD_SECONDS))
    questions = [each for each in rounds.QUESTIONS if each.ask.__module__.endswith("reach")]
    quick = [each._replace(seconds=2.0) if each.topic == "name" else each for each in questions]
    found = list(rounds.examine(patient.admit([], {**os.environ, **GROUP}), quick))
    one(found, "wrong", "something hangs there")
    assert [each.topic for each in found] == ["region", "name", "endpoint", "credentials", "permissions"]
    assert "its name is not known" in found[2].seen


def test_an_endpoint_that_does_not_answer() -> None:
    """Refused, and one that speaks no TLS."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    env = {**GROUP, "CWSINK_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    one(ask("endpoint", env=env), "wrong", "EndpointConnectionError")
    with socket.create_server(("127.0.0.1", 0)) as plain:
        env["CWSINK_ENDPOINT_URL"] = f"https://127.0.0.1:{plain.getsockname()[1]}"
        answering = threading.Thread(target=_answer_without_tls, args=(plain,))
        answering.start()
        assert Outcome.UNTRUSTED.value.advice in one(ask("endpoint", env=env), "wrong", "AWS_CA_BUNDLE").advice
        answering.join()


@pytest.mark.parametrize(
    ("name", "content", "topic", "environment"),
    [
        ("AWS_CONFIG_FILE", "garbage\n[[", "settings", {}),
        ("AWS_CONFIG_FILE", "garbage\n[[", "region", {"AWS_REGION": ""}),
        ("AWS_SHARED_CREDENTIALS_FILE", "garbage\n[[", "settings", {}),
        ("AWS_CONFIG_FILE", "", "credentials", {"CWSINK_PROFILE": "nobody"}),
        ("AWS_CONFIG_FILE", "", "settings", {"AWS_RETRY_MODE": "often"}),
    ],
)
def test_a_configuration_that_cannot_be_read(
    name: str,
    content: str,
    topic: str,
    environment: dict[str, str],
    server: StrictCloudWatch,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """It is the one thing that is wrong, and not the endpoint; what cannot be asked for it says so."""
    file = tmp_path / "file"
    file.write_text(content)
    monkeypatch.setenv(name, str(file))
    for key, value in environment.items():
        monkeypatch.setenv(key, value) if value else monkeypatch.delenv(key)
    questions = [each for each in rounds.QUESTIONS if each.ask.__module__.endswith("reach")]
    found = list(rounds.examine(patient.admit([], {**os.environ, **named(server)}), questions))
    assert [each.topic for each in found if each.verdict == "wrong"] == [topic], found
    assert "curl" not in str(found)
    assert "not tried, because the configuration cannot be read" in found[-1].seen


@pytest.mark.parametrize("date", ["", "Date: soon\r\n"])
def test_an_endpoint_without_a_date_answers_all_the_same(date: str) -> None:
    """Its clock is not known. That is all."""
    error = b'{"__type": "UnrecognizedClientException", "message": "who?"}'
    head = f"HTTP/1.1 400 Bad Request\r\nx-amzn-RequestId: 1\r\n{date}Content-Length: {len(error)}\r\n\r\n"
    with socket.create_server(("127.0.0.1", 0)) as plain:
        answering = threading.Thread(target=_answer, args=(plain, head.encode() + error))
        answering.start()
        port = plain.getsockname()[1]
        found = ask("endpoint", env={**GROUP, "CWSINK_ENDPOINT_URL": f"http://127.0.0.1:{port}"})
        answering.join()
    assert [(each.topic, each.verdict) for each in found] == [("endpoint", "ok"), ("clock", "unknown")]
    assert "the answer has no Date" in str(found[1])


def _answer(listening: socket.socket, answer: bytes) -> None:
    with listening.accept()[0] as connection:
        connection.recv(65_536)
        connection.sendall(answer)


def _answer_without_tls(listening: socket.socket) -> None:
    with listening.accept()[0] as connection:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def test_the_endpoint_and_the_clock(server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers without credentials; the clock is compared with its Date; a stranger is known by its answer."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert [each.topic for each in ask("endpoint", env=named(server))] == ["endpoint", "clock"]
    assert {each.verdict for each in ask("endpoint", env=named(server))} == {"ok"}
    server.faults.junk_next(action="DescribeLogStreams")
    one(ask("endpoint", env=named(server)), "wrong", "not as CloudWatch does")
    now = time.time
    for off, verdict in ((400.0, "wrong"), (-90.0, "warning")):
        monkeypatch.setattr(examination, "time", SimpleNamespace(time=lambda off=off: now() + off))
        one(ask("endpoint", env=named(server)), verdict, "timedatectl set-ntp true")


def test_the_credentials(server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whose they are and until when; of the key, its end is shown, and the secret never."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE7WXYZ")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-long-secret-of-mine")
    found = one(ask("credentials", env=named(server)), "ok", "the environment (AWS_ACCESS_KEY_ID), key ...WXYZ")
    assert "EXAMPLE" not in found.seen
    helper = tmp_path / "helper"
    config = tmp_path / "config"
    config.write_text(f"[profile p]\ncredential_process = cat {helper}\n[profile broken]\ncredential_process = false\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    made = {"Version": 1, "AccessKeyId": "ASIAEXAMPLE7ABCD", "SecretAccessKey": "z" * 40, "SessionToken": "t" * 40}
    helper.write_text(json.dumps({**made, "Expiration": "2099-01-02T03:04:05Z"}))
    one(ask("credentials", env={**named(server), "CWSINK_PROFILE": "p"}), "ok", "until 03:04:05 UTC")
    one(ask("credentials", env={**named(server), "CWSINK_PROFILE": "broken"}), "wrong", "run the command by hand")
    one(ask("credentials", env={**named(server), "CWSINK_PROFILE": "nobody"}), "wrong", "ProfileNotFound")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    one(ask("credentials", env=named(server)), "wrong", "aws configure list")


def test_what_is_allowed(server: StrictCloudWatch) -> None:
    """Each action is tried by a call without an effect: nothing is stored or made, and no rule is broken."""
    env = named(server)

    def allowed() -> dict[str, Finding]:
        return {each.topic: each for each in ask("permissions", env=env)}

    assert allowed()["CreateLogGroup"].verdict == "unknown"
    assert "the group /test/group is missing" in allowed()["CreateLogGroup"].seen
    env["CWSINK_CREATE_LOG_GROUP"] = "false"
    assert "aws logs create-log-group" in one(allowed().values(), "wrong", "not to create it").advice
    env["CWSINK_CREATE_LOG_GROUP"] = "true"
    server.faults.deny("DescribeLogStreams")
    assert "cannot be seen" in allowed()["group"].seen
    server.faults.allow("DescribeLogStreams")
    server.create_group("/test/group")
    assert "the stream stream is missing" in allowed()["CreateLogStream"].seen
    server.create_stream("/test/group", "stream")
    assert {name: each.verdict for name, each in allowed().items()} == {
        "PutLogEvents": "ok",
        "CreateLogStream": "ok",
        "CreateLogGroup": "ok",
    }
    server.faults.deny("CreateLogGroup")
    assert "not needed" in allowed()["CreateLogGroup"].seen
    server.faults.deny("PutLogEvents")
    advice = one(allowed().values(), "wrong", "AccessDenied").advice
    assert "Allow logs:PutLogEvents on arn:aws:logs:us-east-1" in advice
    server.faults.allow("PutLogEvents")
    server.faults.fail_next(1, "UnrecognizedClientException", action="PutLogEvents")
    one(allowed().values(), "wrong", "Check the AWS credentials")
    server.faults.fail_next(1, "ThrottlingException", action="PutLogEvents")
    one(allowed().values(), "unknown", "Ask again later")
    assert server.events() == []
    group = server.group("/test/group")
    assert group
    assert list(group.streams) == ["stream"]


# The probe, and the round as a whole.


def test_the_probe(server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch) -> None:
    """One record arrives and is read back; it is not, if that is not allowed; nothing arrives without PutLogEvents."""
    env = {**named(server), "CWSINK_BATCH_TIMEOUT_SECONDS": "0.1", "CWSINK_DRAIN_TIMEOUT_SECONDS": "0"}
    for name, value in env.items():
        monkeypatch.setenv(name, value)

    def probe() -> list[Finding]:
        return list(rounds.examine(patient.admit([], os.environ), (), probe=True))

    one(probe(), "ok", "was read back")
    assert [json.loads(each)["logger"] for each in server.messages()] == ["cwsink.doctor"]
    server.faults.deny("GetLogEvents")
    one(probe(), "ok", "cannot be read back")
    monkeypatch.setattr(trial, "SECONDS", 1.5)
    server.faults.deny("PutLogEvents")
    one(probe(), "wrong", "AccessDeniedException")


def test_a_question_that_hangs_or_fails_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has its time, and all have one together; no secret and no character that acts gets out."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-long-secret-of-mine")

    def fails(_: Patient) -> Iterable[Finding]:
        yield ok("first", "\x1b[31mred\nnext a-long-secret-of-mine")
        raise RuntimeError("boom a-long-secret-of-mine")

    def hangs(_: Patient) -> Iterable[Finding]:
        time.sleep(CHILD_SECONDS)
        return []

    asked = (Question("fails", fails), Question("hangs", hangs, 0.05), Question("last", lambda _: [ok("last", "x")]))
    found = list(rounds.examine(patient.admit([], os.environ), asked))
    assert [(each.topic, each.verdict) for each in found] == [
        ("first", "ok"), ("fails", "unknown"), ("hangs", "unknown"), ("last", "ok"),
    ]  # fmt: skip
    assert found[0].seen == "\\x1b[31mred\\nnext ***"
    assert "boom ***" in found[1].seen
    (late,) = rounds.examine(patient.admit([], os.environ), asked[2:], seconds=0.0)
    assert "the time is over" in late.seen


def run(*words: str, env: dict[str, str], code: int) -> str:
    """What the command prints to a pipe."""
    done = subprocess.run(
        [sys.executable, "-m", "cwsink", "doctor", *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUTF8": "1", **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=CHILD_SECONDS,
    )
    assert (done.returncode, done.stderr) == (code, ""), done
    return done.stdout


def test_the_command(small: SinkConfig, server: StrictCloudWatch) -> None:
    """All is well: exit code 0, one line each, the same as JSON; and 1 for a command whose environment is wrong."""
    server.create_stream("/test/group", "stream")
    writer = Writer(small)
    assert writer.append("x")
    deliver(writer.directory, small)
    env = named(server)
    lines = run(env=env, code=0).splitlines()
    assert lines[-1] == "Nothing is wrong."
    assert any(line.startswith("OK    PutLogEvents") for line in lines)
    assert any(line.startswith("OK    clock") for line in lines)
    content = json.loads(run("--json", "--", "env", "CWSINK_REGION=no region", "gunicorn", "app", env=env, code=1))
    assert content["wrong"] >= 1
    assert {"topic", "verdict", "seen", "advice"} == set(content["findings"][0])
    assert any("no region" in each["seen"] for each in content["findings"] if each["verdict"] == "wrong")
    assert any(each["seen"] == "gunicorn" for each in content["findings"] if each["topic"] == "server")
