"""What happens to a world's server and to its disk, and to what lies there."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any, Final

import msgspec

from cwsink import Writer
from cwsink.config import load_config
from cwsink.spool.directory import _checksum as checksum
from cwsink.testing import StrictCloudWatch
from tests.faults.world.plan import DENIED_KEYS, POISON

PUT: Final = "PutLogEvents"


class Troubles:
    """Of one world. The server refuses poison, and denies the denied keys, from the beginning.

    Attributes:
        cuts: when the server began to go away and when it was gone, in seconds since 1970.
    """

    def __init__(self, server: StrictCloudWatch, disk: Path) -> None:
        self.cuts: list[float] = []
        self._server = server
        self._somebody = disk / "somebody"  # fills the small disk
        server.faults.poison = POISON
        server.faults.deny_key(*DENIED_KEYS)

    def allow_all(self) -> None:
        """Let the server take calls with each key."""
        self._server.faults.allow_key(*DENIED_KEYS)

    def misbehave(self, name: str) -> None:
        """Have the server misbehave until it heals; what it refuses and denies stays."""
        faults = self._server.faults
        if name == "throttle":
            faults.throttle_rate(3.0, action=PUT)
        elif name == "drip":
            faults.drip_seconds = 0.003
        elif name == "latency":
            faults.latency_seconds = 0.3
        elif name == "slow":
            faults.latency_seconds = 2.0
        elif name == "outage":
            self.cuts.append(time.time())
            self._server.stop()
            self.cuts.append(time.time())  # on a busy machine it takes a while, and stores what it has begun to read
        elif name == "lost answers":
            faults.drop_connection_after_storing(2)
        elif name == "errors":
            faults.fail_next(2, "ServiceUnavailableException", action=PUT)
        elif name == "junk":
            faults.junk_next(action=PUT)
        elif name == "heal":
            faults.throttle_rate(None)
            faults.drip_seconds = faults.latency_seconds = 0.0
            faults.forget_steps()
            with contextlib.suppress(RuntimeError):  # it runs
                self._server.start()
        else:
            raise ValueError(name)

    def fill_disk(self) -> None:
        """Take all that is left of the small disk."""
        with contextlib.suppress(OSError), self._somebody.open("ab", buffering=0) as file:
            while file.write(b"x" * 4096):
                pass

    def free_disk(self) -> None:
        """Give it back."""
        self._somebody.unlink(missing_ok=True)


def lose_settings(root: Path) -> None:
    """Remove what says how to send, from all spools of a root."""
    for path in root.glob("*/settings.json"):
        path.unlink()


def leave_unusable_spool(settings: dict[str, Any]) -> None:
    """Leave a spool whose FORMAT has a value that only a later version knows."""
    spool = Writer(load_config(settings, flusher="external")).directory
    content = {**msgspec.to_builtins(spool.format), "log_group_class": "OF A LATER VERSION"}
    Path(spool.path, "FORMAT").write_text(json.dumps({**content, "checksum": checksum(content)}), encoding="utf-8")
