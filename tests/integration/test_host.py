"""What a host is called, asked of fakes of EC2's, ECS's and Kubernetes' ways to say it, and what streams are named."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cwsink import SinkConfig, Writer, diagnostics, host, target
from cwsink.spool import directory, host_names
from cwsink.testing import StrictCloudWatch
from tests.conftest import Spawn
from tests.harness.interleave import deliver, until
from tests.harness.support import CHILD_SECONDS, finish, may_unshare, quick_config

Answers = dict[tuple[str, str], Callable[[BaseHTTPRequestHandler], "str | None"]]


@pytest.fixture
def metadata() -> Iterator[tuple[str, Answers, list[tuple[str, str]]]]:
    """A metadata service: its URL, what it answers by (method, path), and what it was asked."""
    answers: Answers = {}
    asked: list[tuple[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            asked.append((self.command, self.path))
            text = answers.get((self.command, self.path), lambda _: None)(self)
            with contextlib.suppress(OSError):  # who asked has gone
                self.send_response(200 if text is not None else 404)
                self.end_headers()
                self.wfile.write((text or "").encode())

        do_GET = do_PUT = answer  # noqa: N815  # http.server's names

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", answers, asked
        server.shutdown()
        thread.join()


def test_an_instance_id_is_asked_with_a_token(metadata: tuple[str, Answers, list[tuple[str, str]]]) -> None:
    """IMDSv2: a token is fetched by PUT and sent with the question."""
    url, answers, asked = metadata
    answers["PUT", "/latest/api/token"] = lambda request: (
        "secret" if request.headers["X-aws-ec2-metadata-token-ttl-seconds"] else None
    )
    answers["GET", "/latest/meta-data/instance-id"] = lambda request: (
        "i-0abc" if request.headers["X-aws-ec2-metadata-token"] == "secret" else None
    )
    assert host.look_up("instance_id", {"AWS_EC2_METADATA_SERVICE_ENDPOINT": url}) == "i-0abc"
    assert asked == [("PUT", "/latest/api/token"), ("GET", "/latest/meta-data/instance-id")]


def test_the_metadata_service_is_not_asked_where_it_is_disabled(
    metadata: tuple[str, Answers, list[tuple[str, str]]],
) -> None:
    """AWS_EC2_METADATA_DISABLED is honoured."""
    url, _, asked = metadata
    env = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": url, "AWS_EC2_METADATA_DISABLED": "true"}
    assert host.look_up("instance_id", env) is None
    assert asked == []


def test_no_instance_id_off_ec2(metadata: tuple[str, Answers, list[tuple[str, str]]]) -> None:
    """An error answer is no id, and no exception."""
    assert host.look_up("instance_id", {"AWS_EC2_METADATA_SERVICE_ENDPOINT": metadata[0]}) is None
    assert host.look_up("instance_id", {"AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://127.0.0.1:9"}) is None


def test_a_metadata_service_that_hangs_costs_no_more_than_the_budget(
    metadata: tuple[str, Answers, list[tuple[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token that does not come ends in no id once the budget is spent."""
    url, answers, _ = metadata
    release = threading.Event()
    answers["PUT", "/latest/api/token"] = lambda _: "late" if release.wait(30) else None
    monkeypatch.setattr(host, "BUDGET_SECONDS", 0.1)
    try:
        assert host.look_up("instance_id", {"AWS_EC2_METADATA_SERVICE_ENDPOINT": url}) is None
    finally:
        release.set()


@pytest.mark.parametrize("part", ["head", "body"])
def test_an_answer_that_drips_costs_no_more_than_the_budget(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    """A byte now and then ends no single wait; the whole answer has one budget all the same."""
    monkeypatch.setattr(host, "BUDGET_SECONDS", 0.3)
    ended, has_given_up = threading.Event(), threading.Event()
    answer = "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" if part == "body" else "HTTP/1.1 200 OK\r\nX: "

    def drip(listener: socket.socket) -> None:
        with listener.accept()[0] as connection:
            try:
                connection.sendall(answer.encode())
                while not ended.wait(0.02):
                    connection.sendall(b"i")
            except OSError:  # who asked has closed the connection, in the middle of the answer
                has_given_up.set()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=drip, args=(listener,))
        server.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            assert host.look_up("instance_id", {"AWS_EC2_METADATA_SERVICE_ENDPOINT": url}) is None
            assert has_given_up.wait(30), "it was dripping until we gave up"
        finally:
            ended.set()
            server.join()


def test_a_metadata_service_cannot_send_us_elsewhere(metadata: tuple[str, Answers, list[tuple[str, str]]]) -> None:
    """A redirect is no answer, and is not followed."""
    url, answers, asked = metadata

    def redirect(request: BaseHTTPRequestHandler) -> str:
        request.send_response(302)
        request.send_header("Location", f"{url}/elsewhere")
        request.end_headers()
        return ""

    answers["GET", "/task"] = redirect
    assert host.look_up("task_id", {"ECS_CONTAINER_METADATA_URI_V4": url}) is None
    assert asked == [("GET", "/task")]


def test_a_task_id_is_the_end_of_the_tasks_arn(metadata: tuple[str, Answers, list[tuple[str, str]]]) -> None:
    """ECS task metadata version 4."""
    url, answers, _ = metadata
    arn = "arn:aws:ecs:us-east-1:123456789012:task/prod/158d1c8083dd49d6b527399fd6414f5c"
    answers["GET", "/v4/abc/task"] = lambda _: json.dumps({"TaskARN": arn})
    env = {"ECS_CONTAINER_METADATA_URI_V4": f"{url}/v4/abc"}
    assert host.look_up("task_id", env) == "158d1c8083dd49d6b527399fd6414f5c"
    answers["GET", "/v4/abc/task"] = lambda _: "junk"
    assert host.look_up("task_id", env) is None
    assert host.look_up("task_id", {}) is None


@pytest.mark.parametrize(
    ("env", "name"),
    [
        ({"POD_NAME": "web-7f-abc", "HOSTNAME": "node"}, "web-7f-abc"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "HOSTNAME": "web-7f-abc"}, "web-7f-abc"),
        ({"HOSTNAME": "laptop"}, None),
    ],
)
def test_a_pod_is_called_by_the_downward_api_or_its_host_name(env: dict[str, str], name: str | None) -> None:
    """POD_NAME first; HOSTNAME only inside Kubernetes."""
    assert host.look_up("pod", env) == name


@pytest.mark.parametrize("text", ["<html>log in to the network</html>", "", "i-0abc\nx", "x" * 600, "é", "i 0"])
def test_what_is_no_id_is_not_taken_for_one(metadata: tuple[str, Answers, list[tuple[str, str]]], text: str) -> None:
    """A captive portal answers everything with 200: its page must not become, or prevent, a stream."""
    url, answers, _ = metadata
    answers["PUT", "/latest/api/token"] = answers["GET", "/latest/meta-data/instance-id"] = lambda _: text
    answers["GET", "/task"] = lambda _: json.dumps({"TaskARN": text})
    assert host.look_up("instance_id", {"AWS_EC2_METADATA_SERVICE_ENDPOINT": url}) is None
    assert host.look_up("task_id", {"ECS_CONTAINER_METADATA_URI_V4": url}) is None


@pytest.mark.parametrize("task", ["[]", "null", "7", '"TaskARN"', "{}", '{"TaskARN": null}', "[" * 100_000])
def test_a_task_that_is_described_otherwise_is_no_task(
    metadata: tuple[str, Answers, list[tuple[str, str]]], task: str
) -> None:
    """Any JSON at all: no id, and no exception."""
    url, answers, _ = metadata
    answers["GET", "/task"] = lambda _: task
    assert host.look_up("task_id", {"ECS_CONTAINER_METADATA_URI_V4": url}) is None


@pytest.mark.parametrize("url", ["", "nonsense", "http://", "http://[", "ftp://127.0.0.1/", "http://127.0.0.1:99999"])
def test_an_address_that_is_none_is_no_such_place(url: str) -> None:
    """Whatever the variables hold."""
    assert host.look_up("instance_id", {"AWS_EC2_METADATA_SERVICE_ENDPOINT": url or "http://127.0.0.1:9"}) is None
    assert host.look_up("task_id", {"ECS_CONTAINER_METADATA_URI_V4": url}) is None


@pytest.mark.parametrize("junk", [b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx", b""])
def test_what_does_not_speak_http_is_no_such_place(junk: bytes) -> None:
    """Another service at that address, or one that breaks off: no exception leaves the look-up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(junk)

        thread = threading.Thread(target=answer)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        assert host.look_up("instance_id", {"AWS_EC2_METADATA_SERVICE_ENDPOINT": url}) is None
        thread.join()


# The names of streams, through the spool


@pytest.fixture
def cloud(metadata: tuple[str, Answers, list[tuple[str, str]]]) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """An environment in which all of EC2, ECS and Kubernetes answer; and what they were asked."""
    url, answers, asked = metadata
    answers["PUT", "/latest/api/token"] = lambda _: "secret"
    answers["GET", "/latest/meta-data/instance-id"] = lambda _: "i-0abc"
    answers["GET", "/task"] = lambda _: json.dumps({"TaskARN": "arn:aws:ecs:us-east-1:1:task/prod/158d1c80"})
    env = {
        "AWS_EC2_METADATA_SERVICE_ENDPOINT": url,
        "ECS_CONTAINER_METADATA_URI_V4": url,
        "POD_NAME": "web-7f-abc",
    }
    return env, asked


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What cwsink says about itself."""
    lines: list[str] = []
    monkeypatch.setattr(diagnostics, "_subscribers", [lambda _, line: lines.append(line)])
    return lines


def stream_of(template: str, env: dict[str, str], tmp_path: object, **settings: object) -> str:
    config = SinkConfig(log_stream_name=template, spool_directory=f"{tmp_path}/named", **settings)
    return directory.open_for(config, env).format.log_stream_name


@pytest.mark.parametrize(
    ("template", "stream", "questions"),
    [
        ("{instance_id}", "i-0abc", 2),
        ("{task_id}", "158d1c80", 1),
        ("{pod}", "web-7f-abc", 0),
        ("{app}/{pod}/{instance_id}/{date}", "shop/web-7f-abc/i-0abc/{date}", 2),
        ("{hostname}", socket.gethostname(), 0),
        ("{app}-{date:%H}", "shop-{date:%H}", 0),
        ("plain", "plain", 0),
    ],
)
def test_a_stream_is_named_after_its_place(
    cloud: tuple[dict[str, str], list[tuple[str, str]]],
    said: list[str],
    tmp_path: object,
    template: str,
    stream: str,
    questions: int,
) -> None:
    """Each placeholder asks its own service, and a template that does not want to know asks nobody."""
    env, asked = cloud
    assert stream_of(template, env, tmp_path, app_name="shop") == stream
    assert len(asked) == questions
    assert said == []


def test_a_stream_keeps_its_name_over_restarts(
    cloud: tuple[dict[str, str], list[tuple[str, str]]], tmp_path: object
) -> None:
    """Each start finds the same spool."""
    env, _ = cloud
    config = SinkConfig(log_stream_name="{task_id}-{pod}", spool_directory=f"{tmp_path}/named")
    first, again = (directory.open_for(config, env) for _ in range(2))
    assert (first.path, first.format) == (again.path, again.format)


def test_what_the_service_has_told_once_is_kept_for_the_boot(
    metadata: tuple[str, Answers, list[tuple[str, str]]],
    cloud: tuple[dict[str, str], list[tuple[str, str]]],
    tmp_path: object,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A later worker does not ask; after the next boot, and of another service, one does."""
    env, asked = cloud
    assert stream_of("{instance_id}", env, tmp_path) == "i-0abc"
    metadata[1].clear()
    assert stream_of("{instance_id}", env, tmp_path) == "i-0abc"
    assert len(asked) == 2
    monkeypatch.setattr(host, "boot_id", lambda: "the next one")
    assert stream_of("{instance_id}", env, tmp_path) == socket.gethostname()
    assert len(asked) == 3


def test_a_service_that_is_slow_once_splits_no_host(
    metadata: tuple[str, Answers, list[tuple[str, str]]], tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight workers start at once, and the first question gets no answer in time: all have the same stream."""
    url, answers, asked = metadata
    release = threading.Event()
    answers["PUT", "/latest/api/token"] = lambda _: "late" if len(asked) == 1 and release.wait(30) else "secret"
    answers["GET", "/latest/meta-data/instance-id"] = lambda _: "i-0abc"
    monkeypatch.setattr(host, "BUDGET_SECONDS", 0.2)
    env = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": url}
    try:
        with ThreadPoolExecutor(8) as workers:
            streams = set(workers.map(lambda _: stream_of("{instance_id}", env, tmp_path), range(8)))
    finally:
        release.set()
    assert streams == {"i-0abc"}
    assert len(asked) == 3, "each has asked for itself"


def test_a_spool_that_was_removed_is_made_anew_without_a_question(
    cloud: tuple[dict[str, str], list[tuple[str, str]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An append finds its spool and root gone: it waits for no service, and keeps the stream's name."""
    env, asked = cloud
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    root = tmp_path / "named"
    writer = Writer(SinkConfig(log_stream_name="{instance_id}", spool_directory=str(root), flusher="external"))
    assert writer.append("before")
    shutil.rmtree(root)
    until(lambda: writer.append("after") and root.exists(), "it is made anew")
    assert writer.directory.format.log_stream_name == "i-0abc"
    assert len(asked) == 2


def test_a_root_that_cannot_be_written_keeps_nobody_from_asking(
    cloud: tuple[dict[str, str], list[tuple[str, str]]], tmp_path: Path
) -> None:
    """The name is found all the same; what is wrong with the root is told elsewhere."""
    assert host_names.look_up(str(tmp_path / "is" / "not" / "there"), "instance_id", cloud[0]) == "i-0abc"


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"boot_id": 1}', b"\xff", b"[" * 100_000])
def test_damaged_names_are_asked_for_anew(
    cloud: tuple[dict[str, str], list[tuple[str, str]]], tmp_path: Path, content: bytes
) -> None:
    """Whatever lies there."""
    (tmp_path / f"host-{os.geteuid()}.json").write_bytes(content)
    assert host_names.look_up(str(tmp_path), "instance_id", cloud[0]) == "i-0abc"


@pytest.mark.parametrize("name", ["instance_id", "task_id", "pod"])
def test_a_place_that_has_no_such_name_falls_back_to_the_host(said: list[str], tmp_path: object, name: str) -> None:
    """The stream is named after the host, one line says so, and workers that start again do not repeat it."""
    for _ in range(3):
        assert stream_of(f"{{{name}}}", {"AWS_EC2_METADATA_DISABLED": "true"}, tmp_path) == socket.gethostname()
    (line,) = said
    assert f"{{{name}}}" in line
    assert socket.gethostname() in line


def test_two_applications_on_one_host_have_two_streams(tmp_path: object) -> None:
    """{app}: by setting, else by fapilog's own variable; the setting wins."""
    variable = {target.APP_VARIABLE: "admin"}
    assert stream_of("{app}", {}, tmp_path, app_name="shop") == "shop"
    assert stream_of("{app}", variable, tmp_path) == "admin"
    assert stream_of("{app}", variable, tmp_path, app_name="shop") == "shop"
    assert len(directory.find_spools(f"{tmp_path}/named")) == 2


def test_two_applications_deliver_to_their_own_streams(server: StrictCloudWatch) -> None:
    """Same group, same host, same template."""
    for app in ("shop", "admin"):
        config = quick_config(server.endpoint_url, flusher="external", app_name=app, log_stream_name="{app}.{hostname}")
        writer = Writer(config)
        assert writer.append(f"of {app}")
        deliver(writer.directory, config)
    found = {event.stream: event.message for event in server.events("/test/group")}
    assert found == {f"{app}.{socket.gethostname()}": f"of {app}" for app in ("shop", "admin")}


def test_a_day_ends_at_midnight_utc_by_the_events_own_time(server: StrictCloudWatch) -> None:
    """Events around the last midnight go to two streams, each in its own order, whenever they are sent."""
    midnight_ms = int(time.time() // 86_400) * 86_400_000
    config = quick_config(server.endpoint_url, flusher="external", log_stream_name="app/{date:%Y/%m/%d}")
    writer = Writer(config)
    for offset in (0, -1, 1, -2, 2):
        assert writer.append(f"{offset}", midnight_ms + offset)
    deliver(writer.directory, config)
    today, yesterday = (time.strftime("app/%Y/%m/%d", time.gmtime(midnight_ms // 1000 - ago)) for ago in (0, 86_400))
    assert server.messages(stream=today) == ["0", "1", "2"]
    assert server.messages(stream=yesterday) == ["-2", "-1"]
    assert len(server.events()) == 5


def test_the_name_of_a_program_may_be_no_text(spawn: Spawn, tmp_path: Path, server: StrictCloudWatch) -> None:
    """A file has any bytes as its name."""
    path = os.fsdecode(os.path.join(os.fsencode(tmp_path), b"caf\xe9.py"))
    Path(path).write_text(
        "import cwsink; w = cwsink.Writer.open(log_group_name='/app', log_stream_name='{app}', self_metrics='emf');"
        "print(w.append('hello'), w.flush(30), cwsink.stats().spools[0].leader.started_by)"
    )
    code = f"import runpy, sys; sys.argv[0] = {path!r}; runpy.run_path({path!r})"
    said = finish(spawn(code, env=server.environment()))
    assert said.startswith("True True pid ")
    assert said.endswith(" (caf\\udce9.py)\n")
    assert [event.stream for event in server.events() if event.message == "hello"] == ["caf\\udce9.py"]


NAMED_BY_BYTES = """
import socket
socket.sethostname(b"h\\xffst")
import cwsink
writer = cwsink.Writer.open(log_group_name="/app", region="us-east-1", flusher="external")
print(writer.append("hello"), cwsink.stats().spools[0].log_stream_name)
"""


@pytest.mark.skipif(not may_unshare("--uts"), reason="not run: needs root, Linux and unshare(1)")
def test_the_name_of_a_host_may_be_no_text() -> None:
    """The kernel takes any bytes."""
    command = ["unshare", "--uts", sys.executable, "-c", NAMED_BY_BYTES]
    assert subprocess.check_output(command, text=True, timeout=CHILD_SECONDS) == "True h\\udcffst\n"
