"""Ways to log to CloudWatch, for the benchmarks that compare them in an application, and the environment of that."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parent.parent.parent
_PACKAGES: Final = {
    "built-in": ("boto3",),
    "cwsink": ("botocore",),
    "watchtower": ("boto3", "watchtower"),
    "nothing": (),
}


class Subject(NamedTuple):
    """A way to log, as `benchmarks.staging.logger` makes it.

    Attributes:
        name: in the table.
        frontend: what the application logs with, "fapilog" or "logging".
        sink: where that goes: "cwsink", "built-in" (fapilog's own), "watchtower" or "nothing".
        has_flusher: the application runs under `cwsink run`.
    """

    name: str
    frontend: str
    sink: str
    has_flusher: bool = False

    @property
    def packages(self) -> tuple[str, ...]:
        """What it needs."""
        return (*_PACKAGES[self.sink], *(("fapilog",) if self.frontend == "fapilog" else ()))

    @property
    def is_installed(self) -> bool:
        """Tell whether all of that is there."""
        return all(map(importlib.util.find_spec, self.packages))

    def floor(self, subjects: Sequence[Subject]) -> Subject:
        """Return the "nothing" of the same frontend."""
        return next(each for each in subjects if each.frontend == self.frontend and each.sink == "nothing")

    def environment(self, folder: Path, group: str, url: str, **more: str) -> dict[str, str]:
        """Return the environment of an application in `folder`, with its spools there. `more` is added."""
        ours = ("FAPILOG_", "CWSINK_", "AWS_")
        return {
            **{key: value for key, value in os.environ.items() if not key.startswith(ours)},
            "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}",
            "AWS_ACCESS_KEY_ID": "benchmark",
            "AWS_SECRET_ACCESS_KEY": "benchmark",
            "AWS_EC2_METADATA_DISABLED": "true",
            "CWSINK_SPOOL_DIRECTORY": str(folder / "spools"),
            "FAPILOG_CORE__LOG_LEVEL": "INFO",
            "FAPILOG_CORE__MAX_QUEUE_SIZE": "50000",
            "FAPILOG_CORE__SINKS": '["cloudwatch"]',
            "FAPILOG_CLOUDWATCH__LOG_GROUP_NAME": group,
            "FAPILOG_CLOUDWATCH__REGION": "us-east-1",
            "FAPILOG_CLOUDWATCH__ENDPOINT_URL": url,
            "FRONTEND": self.frontend,
            "SINK": self.sink,
            **more,
        }
