"""The URL at which CloudWatch is: what is legal, and which of botocore's variables give one (pure)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from cwsink.errors import ConfigError

_LAST_PORT: Final = 65_535
_QUERY: Final = re.compile(r"([?#]).*", re.DOTALL)
_URL: Final = re.compile(r"https?://(\[[0-9a-fA-F:.]+\]|[^/?#:\[\]\s]+)(:\d{1,5})?(/[^?#\s]*)?", re.IGNORECASE)


def check(url: str) -> None:
    """Raise ConfigError unless a request can be sent to this URL. A password or a query in it is not shown."""
    if "@" in url:
        raise ConfigError(
            "endpoint_url holds a user name or a password, which would lie in the spool for every later leader. "
            "Leave them out: AWS's requests are signed."
        )
    match = _URL.fullmatch(url)
    if match is None or not 0 < int((match[2] or ":443")[1:]) <= _LAST_PORT:
        raise ConfigError(f"endpoint_url={shown(url)!r} is no URL. Write it like https://logs.us-east-1.amazonaws.com.")


def shown(url: str) -> str:
    """Return a text that may be an endpoint's URL without its query, which may hold a token. No legal one has any."""
    return _QUERY.sub(r"\1***", url)


def of_variables(env: Mapping[str, str]) -> str | None:
    """Return the endpoint that botocore's own variables name.

    A later process with other variables may replay the spool, so the endpoint must be in the spool.
    """
    if env.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == "true":
        return None
    return env.get("AWS_ENDPOINT_URL_CLOUDWATCH_LOGS") or env.get("AWS_ENDPOINT_URL") or None
