"""settings.json: what a writer leaves for whoever leads, and what a leader makes of it."""

from __future__ import annotations

import errno
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import asdict

import cwsink
from cwsink import diagnostics, host
from cwsink.config import SinkConfig
from cwsink.flusher.instructions import config_of
from cwsink.spool import directory, files, sending
from cwsink.spool.directory import SpoolDirectory

EVERYTHING: dict[str, Any] = {
    "log_group_name": "/app",
    "log_stream_name": "host",
    "region": "eu-west-1",
    "endpoint_url": "http://127.0.0.1:9",
    "batch_size": 7,
    "batch_timeout_seconds": 2.5,
    "max_batch_events": 100,
    "max_event_bytes": 5_000,
    "circuit_breaker_enabled": False,
    "connect_timeout_seconds": 1.5,
    "drain_timeout_seconds": 9.0,
    "durability": "host",
    "oversize": "split",
    "compression": "gzip",
    "adopt_orphans": True,
    "retention_days": 14,
    "tags": {"team": "shop"},
    "profile": "logs",
    "role_arn": "arn:aws:iam::123456789012:role/logs",
    "external_id": "x",
    "entity": {"keyAttributes": {"Type": "Service", "Name": "shop"}, "attributes": {"a": "b"}},
}
OF_THE_WRITER: dict[str, Any] = {
    "flusher": "external",
    "on_full": "drop_newest",
    "block_timeout_seconds": 1.0,
    "segment_bytes": 8_192,
    "app_name": "shop",
    "allow_unsafe_filesystem": True,
}


@pytest.fixture
def spool() -> SpoolDirectory:
    return directory.open_for(SinkConfig(**EVERYTHING))


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was reported."""
    lines: list[str] = []
    monkeypatch.setattr(diagnostics, "_subscribers", [lambda key, message: lines.append(message)])
    return lines


def left(spool: SpoolDirectory) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(spool.sending).read_text())
    return found


def test_a_leader_sends_exactly_as_the_writer_said(spool: SpoolDirectory) -> None:
    """Every setting that has to do with sending is there again, of whatever kind."""
    config = SinkConfig(**EVERYTHING)
    sending.leave(spool, config)
    found = asdict(config_of(spool))
    expected = asdict(config)
    for name in EVERYTHING:
        assert found[name] == expected[name], name


def test_only_what_differs_and_concerns_the_sender_is_written(spool: SpoolDirectory) -> None:
    """Not the defaults, not the target, which FORMAT has, and nothing that only concerns the process that writes."""
    sending.leave(spool, SinkConfig(**{**EVERYTHING, **OF_THE_WRITER}))
    target = {"log_group_name", "log_stream_name", "region", "endpoint_url"}
    assert set(left(spool)["settings"]) == set(EVERYTHING) - target
    sending.leave(spool, SinkConfig(log_group_name="/app"))
    assert left(spool)["settings"] == {}


def test_it_says_who_wrote_it(spool: SpoolDirectory) -> None:
    """Version and installation are for leaders of other versions, host and pid for people."""
    sending.leave(spool, SinkConfig(**EVERYTHING))
    found = left(spool)
    assert (found["cwsink"], found["installation"]) == (cwsink.__version__, sending.installation())
    assert found["written_by"] == f"{socket.gethostname()}/{os.getpid()}"


def test_the_same_settings_are_not_written_again(spool: SpoolDirectory) -> None:
    """A thousand workers with the same settings: the leader is not disturbed, whoever wrote them first."""
    sending.leave(spool, SinkConfig(**EVERYTHING))
    first = sending.stamp(spool)
    sending.leave(spool, SinkConfig(**{**EVERYTHING, **OF_THE_WRITER}))
    assert sending.stamp(spool) == first is not None
    sending.leave(spool, SinkConfig(**{**EVERYTHING, "batch_size": 8}))
    assert sending.stamp(spool) != first


def test_a_file_is_replaced_whole_and_is_nobodys_business(spool: SpoolDirectory) -> None:
    """Mode 0600, and no temporary file stays."""
    before = set(os.listdir(spool.path))
    sending.leave(spool, SinkConfig(**EVERYTHING))
    assert set(os.listdir(spool.path)) - before == {os.path.basename(spool.sending)}
    assert os.stat(spool.sending).st_mode & 0o777 == 0o600


def test_a_file_that_cannot_be_written_is_one_line(spool: SpoolDirectory, said: list[str]) -> None:
    """The application goes on; the former settings hold."""
    os.mkdir(spool.sending)
    sending.leave(spool, SinkConfig(**EVERYTHING))
    (line,) = said
    assert line.startswith(f"cannot write {spool.sending}: ")
    assert [name for name in os.listdir(spool.path) if name.endswith(".tmp")] == []


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff\xfe", b'{"cwsink": 1}', b"[" * 100_000, b" " * 300_000 + b"{}"],
    ids=["empty", "cut off", "no object", "no text", "another kind", "deep", "long"],
)
def test_a_damaged_file_is_as_none(spool: SpoolDirectory, content: bytes) -> None:
    """A spool is sent whatever lies there: to the target of FORMAT, as variables or defaults say."""
    Path(spool.sending).write_bytes(content)
    assert sending.read(spool) is None
    config = config_of(spool)
    assert (config.log_group_name, config.region, config.batch_size) == ("/app", "eu-west-1", 1_000)


def test_a_planted_link_or_pipe_is_not_followed(spool: SpoolDirectory, tmp_path: Path) -> None:
    """Neither another's file is read, nor does anybody wait for a pipe's writer."""
    elsewhere = tmp_path / "elsewhere"
    sending.leave(spool, SinkConfig(**EVERYTHING))
    os.replace(spool.sending, elsewhere)
    os.symlink(elsewhere, spool.sending)
    assert sending.read(spool) is None
    os.unlink(spool.sending)
    os.mkfifo(spool.sending)
    assert sending.read(spool) is None


def test_what_a_newer_writer_knows_and_we_do_not_is_left_out(spool: SpoolDirectory) -> None:
    """A leader of an older version goes on with what it knows."""
    sending.leave(spool, SinkConfig(**EVERYTHING))
    found = left(spool)
    found["settings"]["of_the_future"] = 5
    found["by"] = "a field of the future"
    Path(spool.sending).write_text(json.dumps(found))
    assert config_of(spool).batch_size == 7


@pytest.mark.parametrize("name", sorted(OF_THE_WRITER))
def test_what_only_concerns_a_writer_is_not_taken_from_there(spool: SpoolDirectory, name: str) -> None:
    """Whatever somebody writes there: a leader has no ring to fill and no place to choose."""
    sending.leave(spool, SinkConfig(**EVERYTHING))
    found = left(spool)
    found["settings"][name] = OF_THE_WRITER[name]
    Path(spool.sending).write_text(json.dumps(found))
    assert getattr(config_of(spool), name) == getattr(SinkConfig(), name)


def test_settings_that_contradict_each_other_are_defaults_and_one_line(spool: SpoolDirectory, said: list[str]) -> None:
    """Nobody could repair a spool by hand while its leader does not begin."""
    sending.leave(spool, SinkConfig(**EVERYTHING))
    found = left(spool)
    found["settings"]["batch_size"] = -1
    Path(spool.sending).write_text(json.dumps(found))
    config = config_of(spool)
    assert (config.log_group_name, config.batch_size) == ("/app", 1_000)
    (line,) = said
    assert "batch_size=-1" in line
    assert line.endswith("Defaults are used.")


def test_without_settings_the_variables_say_how_to_send(spool: SpoolDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A spool of an older cwsink: as that did it. The target is FORMAT's all the same."""
    monkeypatch.setenv("FAPILOG_CLOUDWATCH__BATCH_SIZE", "9")
    monkeypatch.setenv("FAPILOG_CLOUDWATCH__LOG_GROUP_NAME", "/another")
    config = config_of(spool)
    assert (config.log_group_name, config.batch_size) == ("/app", 9)
    sending.leave(spool, SinkConfig(**EVERYTHING))
    assert config_of(spool).batch_size == 7


def test_settings_that_cannot_be_read_now_are_not_guessed(
    spool: SpoolDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of descriptors: the variables of another application must not say with which role this spool is sent."""
    sending.leave(spool, SinkConfig(**EVERYTHING))
    monkeypatch.setenv("CWSINK_ROLE_ARN", "arn:aws:iam::123456789012:role/another")
    opened = files.read_if_there

    def read(path: str, most_bytes: int) -> bytes | None:
        if path == spool.sending:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), path)
        return opened(path, most_bytes)

    monkeypatch.setattr(files, "read_if_there", read)
    with pytest.raises(OSError, match="Too many open files"):
        config_of(spool)
    assert sending.read(spool) is None


# Which credentials an environment gives.

HERE = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "HOME": "/home/a", "PATH": "/bin"}


@pytest.mark.parametrize(
    "other",
    [
        {"AWS_SECRET_ACCESS_KEY": "c"},
        {"AWS_SESSION_TOKEN": "t"},
        {"AWS_PROFILE": "p"},
        {"AWS_CONFIG_FILE": "/etc/aws"},
        {"AWS_WEB_IDENTITY_TOKEN_FILE": "/token"},
        {"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "/v2"},
        {"HOME": "/home/b"},
    ],
)
def test_other_credentials_have_another_stamp(other: dict[str, str]) -> None:
    """Whatever may lead to other credentials is worth another try."""
    assert sending.credentials_stamp({**HERE, **other}) != sending.credentials_stamp(HERE)


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "no_proxy", "REQUESTS_CA_BUNDLE"])
def test_another_way_to_the_network_has_another_stamp(name: str) -> None:
    """A process with another proxy may reach CloudWatch where this one cannot."""
    assert sending.credentials_stamp({**HERE, name: "x"}) != sending.credentials_stamp(HERE)


def test_another_container_has_another_stamp(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its variables may be the same, and its role and network others all the same."""
    here = sending.credentials_stamp(HERE)
    monkeypatch.setattr(host, "name", lambda: "another")
    assert sending.credentials_stamp(HERE) != here


@pytest.mark.parametrize(
    "other",
    [
        {"PATH": "/usr/bin"},
        {"AWS_REGION": "eu-west-1"},
        {"AWS_DEFAULT_REGION": "eu-west-1"},
        {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"},
        {"AWS_ENDPOINT_URL_CLOUDWATCH_LOGS": "http://127.0.0.1:9"},
    ],
)
def test_what_gives_no_credentials_does_not_change_the_stamp(other: dict[str, str]) -> None:
    """Region and endpoint are the spool's; a flusher drops them, and its stamp must be its writer's all the same."""
    assert sending.credentials_stamp({**HERE, **other}) == sending.credentials_stamp(HERE)


@pytest.mark.parametrize(
    ("name", "value", "there"),
    [
        ("AWS_SHARED_CREDENTIALS_FILE", "conf/keys", "{here}/conf/keys"),
        ("AWS_CA_BUNDLE", "../ca:1.pem", "{here}/../ca:1.pem"),
        ("BOTO_CONFIG", "boto.cfg", "{here}/boto.cfg"),
        ("AWS_DATA_PATH", "data:/opt/data:~/data", "{here}/data:/opt/data:~/data"),
        ("SSL_CERT_DIR", "certs", "{here}/certs"),
        ("AWS_CONFIG_FILE", "/etc/aws", "/etc/aws"),
        ("AWS_CONFIG_FILE", "~/aws", "~/aws"),
        ("AWS_CONFIG_FILE", "$CONF/aws", "$CONF/aws"),
        ("AWS_CONFIG_FILE", "", ""),
        ("AWS_CA_BUNDLE", " ", " "),
        ("AWS_PROFILE", "prod", "prod"),
    ],
)
def test_no_path_for_another_directory_is_relative(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, there: str
) -> None:
    """It counts from this directory; a process that gets it in another one has the same stamp."""
    monkeypatch.chdir(tmp_path)
    found = sending.absolute({**HERE, name: value})
    assert found == {**HERE, name: there.replace("{here}", str(tmp_path))}
    stamp = sending.credentials_stamp({**HERE, name: value})
    monkeypatch.chdir("/")
    assert sending.credentials_stamp(found) == stamp


def test_a_relative_path_stays_where_the_directory_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can tell what it means."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert sending.absolute({"AWS_CONFIG_FILE": "aws"}) == {"AWS_CONFIG_FILE": "aws"}
    monkeypatch.chdir(tmp_path)


def test_a_stamp_does_not_depend_on_the_order_and_can_be_made_of_any_bytes() -> None:
    """An environment is not text, and has no order."""
    backwards = dict(reversed(HERE.items()))
    assert sending.credentials_stamp(backwards) == sending.credentials_stamp(HERE)
    assert sending.credentials_stamp({"AWS_PROFILE": os.fsdecode(b"\xff")}) != sending.credentials_stamp({})
