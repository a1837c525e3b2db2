"""What is wrong with a proxy before CloudWatch: it wants a password, or the variable that names it holds no URL.

botocore shows neither. Of a proxy that refuses to log in it says that it cannot be connected to, or that a call of ours
is not allowed. Of a wrong URL it says what Python's parser says, and not whose URL it is.
"""

from __future__ import annotations

import os
from typing import Any, Final
from urllib.parse import urlsplit

# The only status of HTTP that a proxy alone gives, and what it means.
STATUS: Final = 407
WANTS_PASSWORD: Final = {
    "code": "ProxyAuthenticationError",
    "message": f"the proxy asks for a user and a password, or refuses those that it has got ({STATUS})",
}
_REFUSED: Final = f"Tunnel connection failed: {STATUS}"


def trouble_of(error: Any) -> dict[str, str]:
    """Return the code and message for an exception of botocore's that comes from the proxy; {} for any other one."""
    from botocore.exceptions import ProxyConnectionError

    cause = error.kwargs.get("error")
    if _REFUSED in str(cause):
        return WANTS_PASSWORD
    may_be_named_wrongly = isinstance(cause, ValueError) or isinstance(error, ProxyConnectionError)
    if may_be_named_wrongly and (name := wrong_variable("http") or wrong_variable("https")):
        return {"code": "InvalidProxyError", "message": f"what the variable {name} holds is not the URL of a proxy"}
    return {}


def wrong_variable(scheme: str) -> str | None:
    """Return the variable that names the proxy for http or https, if what it holds is no URL; else None."""
    for name in (f"{scheme}_proxy", f"{scheme}_PROXY".upper()):
        if value := os.environ.get(name):
            return None if _is_url(value) else name
    return None


def _is_url(value: str) -> bool:
    from botocore.httpsession import ProxyConfiguration
    from urllib3.util import parse_url

    url = ProxyConfiguration({"http": value}).proxy_url_for("http://")  # adds a scheme if it knows none there
    if url.count("://") > 1:
        return False  # of socks5://host it makes http://socks5://host
    try:
        return bool(parse_url(url).host and urlsplit(url).hostname)
    except ValueError:
        return False
