"""A strict, local CloudWatch Logs for tests and benchmarks (public).

`StrictCloudWatch` runs in threads of the test's process. `spawn()` starts one in a
process of its own, and `python -m cwsink.testing` starts one by hand. All of them
enforce the documented limits of the real service, record each broken one as text,
and misbehave on request.

```text
 client --HTTP--> server --------> gateway --------> actions --------> store
                  | listener       | faults          | shapes, rules   (what was
                  | wire           (misbehaviour)    | entity, queries  accepted)
                  (threads, bytes)                   (pure)
```

The pytest fixtures are in `cwsink.testing.pytest_plugin`, the only module here that
imports pytest. Not promised: IAM, SigV4 verification, quotas, metric filters, queries.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cwsink.testing.faults import Faults
    from cwsink.testing.process import SpawnedCloudWatch, spawn
    from cwsink.testing.server import StrictCloudWatch
    from cwsink.testing.store import StoredEvent, StoredRequest

__all__ = [
    "Faults",
    "SpawnedCloudWatch",
    "StoredEvent",
    "StoredRequest",
    "StrictCloudWatch",
    "spawn",
]

_MODULES = {
    "Faults": "faults",
    "SpawnedCloudWatch": "process",
    "StoredEvent": "store",
    "StoredRequest": "store",
    "StrictCloudWatch": "server",
    "spawn": "process",
}


# Where cwsink is installed, every run of pytest loads the plugin in this package. Most of these
# runs never ask for a server, so the modules are imported only when a name is used.
if not TYPE_CHECKING:  # a checker that saw it would take every misspelt name for one of ours

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
