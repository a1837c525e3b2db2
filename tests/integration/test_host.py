"""What a host is called, asked of fakes of EC2's, ECS's and Kubernetes' ways to say it."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cwsink.spool import host

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
