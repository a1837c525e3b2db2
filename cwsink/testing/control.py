"""The control channel of a strict server in another process (pure).

`server` calls it for paths below `/_cwsink/`. `process.SpawnedCloudWatch` is the
client. All bodies are JSON.

```text
GET  /_cwsink/summary    counts, see `summary`
GET  /_cwsink/messages   accepted messages in arrival order (none with keep_events off)
GET  /_cwsink/requests   PutLogEvents calls, see StoredRequest
GET  /_cwsink/ids        distinct ids, sorted (with id_pattern)
POST /_cwsink/faults     {"latency_seconds": 0.2, "fail_next": {"n": 5}}: sets attributes
                         of Faults, and calls its methods with these arguments
POST /_cwsink/reset      forget everything
```

A web page that a developer looks at could send such requests, too. A browser names the page in `Origin`, or the page's
own name in `Host`. Such requests are refused.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from cwsink.testing.faults import Faults
from cwsink.testing.store import Store
from cwsink.testing.wire import HttpRequest, Reply

PREFIX: Final = "/_cwsink/"

# Our own limit: enough to see what is wrong, without a megabyte of repeats.
MAX_SHOWN_VIOLATIONS: Final = 100


def summary(store: Store) -> dict[str, Any]:
    """Return the counts of everything that the store holds.

    Returns:
        events, bytes (counted as PutLogEvents does), requests (PutLogEvents calls), calls
        by action, errors by code, rejected by member of rejectedLogEventsInfo, violations
        (their number), violation_texts (the first 100), epochs (senders by epoch),
        distinct_ids and repeated_ids (0 without an id_pattern).
    """
    with store.changed:
        epochs: dict[str, set[str]] = {}
        for request in store.requests:
            if request.epoch is not None:
                epochs.setdefault(str(request.epoch), set()).add(request.sender)
        return {
            "events": store.accepted_events,
            "bytes": store.accepted_bytes,
            "requests": len(store.requests),
            "calls": dict(store.calls),
            "errors": dict(store.errors),
            "rejected": dict(store.rejected),
            "violations": len(store.violations),
            "violation_texts": store.violations[:MAX_SHOWN_VIOLATIONS],
            "epochs": {epoch: sorted(senders) for epoch, senders in epochs.items()},
            "distinct_ids": len(store.ids),
            "repeated_ids": store.repeated_ids,
        }


def reply(store: Store, faults: Faults, request: HttpRequest) -> Reply:
    """Answer one request of the control channel."""
    if "origin" in request.headers or not _is_loopback(request.headers.get("host", "localhost")):
        return _json({"error": "only programs of this machine may ask, and no web page"}, 403)
    asked = f"{request.method} {request.path.removeprefix(PREFIX)}"
    if asked == "GET summary":
        return _json(summary(store))
    if asked == "GET messages":
        return _json([event.message for event in store.events()])
    if asked == "GET requests":
        with store.changed:
            return _json(store.requests)
    if asked == "GET ids":
        with store.changed:
            return _json(sorted(store.ids))
    if asked == "POST reset":
        store.reset()
        faults.clear()
        return _json({})
    if asked == "POST faults":
        try:
            _set_faults(faults, msgspec.json.decode(request.body, type=dict[str, Any]))
        except (AttributeError, TypeError, msgspec.DecodeError) as error:
            return _json({"error": str(error)}, 400)
        return _json({})
    return _json({"error": f"unknown: {asked}"}, 404)


def _is_loopback(host: str) -> bool:
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    return name in ("localhost", "127.0.0.1", "[::1]")


def _set_faults(faults: Faults, wanted: dict[str, Any]) -> None:
    for name, value in wanted.items():
        if name.startswith("_"):
            raise AttributeError(f"no misbehaviour is called {name!r}")
        member = getattr(faults, name)
        if not callable(member):
            setattr(faults, name, value)
        elif isinstance(value, dict):
            member(**value)
        elif isinstance(value, list):
            member(*value)
        else:
            member(value)


def _json(value: Any, status: int = 200) -> Reply:
    return Reply(status, msgspec.json.encode(value), {"Content-Type": "application/json"})
