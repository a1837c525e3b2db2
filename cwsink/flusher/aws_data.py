"""A loader for botocore that keeps only what we need of AWS's descriptions of its services.

botocore reads what it knows of AWS from JSON files: all 133 operations of CloudWatch Logs, of which we call 6, and the
endpoints of 300 services in 8 partitions. That is 11 MiB of dicts in the guard, and again in the flusher that is forked
from it. A client with 133 methods takes 10 ms to make, and one with 6 takes 3.

So this loader keeps our operations with the shapes that they name, and the endpoints of the services that are called
here. A service without an endpoint gets its partition's default pattern, which is botocore's own rule. The services
that credential providers call keep their whole model. A file that does not look as expected is left to botocore.

Only `cwsink.flusher.cloudwatch` imports this module, and as late as botocore.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final

import msgspec
from botocore.loaders import JSONFileLoader, Loader

# All of CloudWatch Logs that is called. botocore may call others to fetch credentials (AssumeRole, GetRoleCredentials).
# The code of such an error must not be taken for an answer about the events (cwsink.flusher.cloudwatch).
OPERATIONS: Final = frozenset(
    "PutLogEvents CreateLogGroup CreateLogStream PutRetentionPolicy DescribeLogStreams GetLogEvents".split()
)
# CloudWatch Logs, and the services that credential providers call, by their names in endpoints.json.
_SERVICES: Final = ("logs", "sts", "portal.sso", "oidc", "signin")

_Raw = dict[str, msgspec.Raw]


class AwsData(Loader):  # type: ignore[misc]  # botocore has no types
    """botocore's loader of service models and endpoints."""

    def __init__(self, search_paths: list[str]) -> None:
        """`search_paths`: where botocore's own loader looks."""
        super().__init__(search_paths, file_loader=_Files(), include_default_search_paths=False)

    def list_available_services(self, type_name: str) -> list[str]:
        """Return the services with a directory. botocore looks into each of 400 for the file, which takes 30 ms."""
        return sorted({name for path in self.search_paths if os.path.isdir(path) for name in os.listdir(path)})


class _Files(JSONFileLoader):  # type: ignore[misc]  # as above
    def load_file(self, file_path: str) -> Any:
        """Return the content of a file, or None if there is none. The path comes without the ending."""
        parts = file_path.split(os.sep)
        reduced: Callable[[_Raw], dict[str, Any]] | None = None
        if parts[-1] == "endpoints":
            reduced = _endpoints
        elif parts[-1] == "service-2" and parts[-3:-2] == ["logs"]:
            reduced = _model
        if reduced is not None and (data := _read(file_path)) is not None:
            try:
                return reduced(msgspec.json.decode(data, type=_Raw))
            except (msgspec.MsgspecError, LookupError, TypeError, AttributeError):
                pass
        return super().load_file(file_path)


def _read(path: str) -> bytes | None:
    ways: dict[str, Callable[..., Any]] = {"json": open, "json.gz": gzip.open}
    for ending, opened in ways.items():
        with suppress(FileNotFoundError), opened(f"{path}.{ending}", "rb") as file:
            data: bytes = file.read()
            return data
    return None


def _endpoints(data: _Raw) -> dict[str, Any]:
    """Return endpoints.json with only our services."""
    partitions = []
    for partition in msgspec.json.decode(data.pop("partitions"), type=list[_Raw]):
        services = msgspec.json.decode(partition.pop("services"), type=_Raw)
        ours = {name: _plain(services[name]) for name in _SERVICES if name in services}
        partitions.append({**_all_plain(partition), "services": ours})
    return {"partitions": partitions, **_all_plain(data)}


def _model(data: _Raw) -> dict[str, Any]:
    """Return service-2.json with only our operations and the shapes that they lead to."""
    every = msgspec.json.decode(data.pop("operations"), type=_Raw)
    operations = {name: _plain(every[name]) for name in OPERATIONS}
    raw = msgspec.json.decode(data.pop("shapes"), type=_Raw)
    shapes: dict[str, Any] = {}
    wanted = list(_shapes_in(operations))
    while wanted:
        if (name := wanted.pop()) not in shapes:
            shapes[name] = _plain(raw[name])
            wanted += _shapes_in(shapes[name])
    return {**_all_plain(data), "operations": operations, "shapes": shapes}


def _shapes_in(part: Any) -> Iterator[str]:
    """Yield the names of the shapes that a part of the model refers to."""
    if isinstance(part, dict):
        if isinstance(name := part.get("shape"), str):
            yield name
        for each in part.values():
            yield from _shapes_in(each)
    elif isinstance(part, list):
        for each in part:
            yield from _shapes_in(each)


def _plain(part: msgspec.Raw) -> Any:
    return _without_words(msgspec.json.decode(part))


def _all_plain(parts: _Raw) -> dict[str, Any]:
    return {name: _plain(part) for name, part in parts.items()}


def _without_words(part: Any) -> Any:
    """Return a part of a model without its documentation."""
    if isinstance(part, dict):
        return {
            name: _without_words(each)
            for name, each in part.items()
            if not (name == "documentation" and isinstance(each, str))
        }
    return [_without_words(each) for each in part] if isinstance(part, list) else part
