"""Notices a misspelt region, from the list that the installed botocore brings.

botocore itself is not imported: an application does not load it for cwsink. And its list may be older than a region, so
nobody is refused for it.
"""

from __future__ import annotations

import os
from collections import Counter
from functools import cache
from importlib.util import find_spec

import msgspec


def doubt(region: str) -> str | None:
    """Return what there is to say against a region: the nearest name that botocore knows. None: nothing."""
    if not _known() or region in _known():
        return None
    near = nearest(region)
    hint = f" Did you mean {near!r}?" if near else ""
    return f"region={region!r} is no region that the installed botocore knows.{hint} Records wait until it answers."


def nearest(region: str) -> str | None:
    """Return the region that is probably meant; None if botocore knows this one, or none like it."""
    if region in _known():
        return None
    import difflib  # here, because only a mistake needs it, and every worker would hold it in memory

    near = difflib.get_close_matches(region.lower(), sorted(_known()), n=10)
    # Two letters that changed their places are the commonest slip, and no difference here.
    letters = Counter(region.lower())
    return min(near, key=lambda name: _differing(Counter(name), letters), default=None)


def _differing(one: Counter[str], other: Counter[str]) -> int:
    return (one - other).total() + (other - one).total()


@cache
def _known() -> frozenset[str]:
    """Return the names of all regions; empty if they cannot be read."""
    try:
        spec = find_spec("botocore")
        assert spec is not None
        assert spec.submodule_search_locations
        with open(os.path.join(spec.submodule_search_locations[0], "data", "partitions.json"), "rb") as file:
            partitions = msgspec.json.decode(file.read())["partitions"]
        return frozenset(name for each in partitions for name in each["regions"])
    except Exception:  # there is no botocore, or another one: then there is no hint
        return frozenset()
