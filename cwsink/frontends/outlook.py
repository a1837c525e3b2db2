"""Tells a process that ends what its flusher will soon find out: that nothing can be delivered now.

A flusher needs a third of a second to load botocore. The last process of a spool waits for it, and a short program
should not take so much longer because there are no credentials. So the process looks itself: is there a region, may
there be credentials, does anybody listen at the endpoint? It needs no botocore for that.

Only what is certain counts. A variable, a file or a setting that is not known here may give credentials, and then the
flusher is waited for. The texts are those of botocore, which the flusher publishes a moment later.

Names are not looked up here, because that may take seconds: only an endpoint with an address is tried.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import re
import socket
from collections.abc import Iterator, Mapping
from typing import Final
from urllib.parse import urlsplit

from cwsink.clock import monotonic
from cwsink.config import SinkConfig
from cwsink.spool.directory import SpoolFormat

_NO_REGION: Final = "NoRegionError: You must specify a region."
_NO_CREDENTIALS: Final = "NoCredentialsError: Unable to locate credentials"

# Variables with this prefix may give credentials, but for these.
_PREFIX: Final = "AWS_"
_NO_SOURCE: Final = re.compile(
    "AWS_(REGION|DEFAULT_REGION|DEFAULT_OUTPUT|PAGER|CONFIG_FILE|SHARED_CREDENTIALS_FILE|EC2_METADATA_DISABLED|"
    "EXECUTION_ENV|SDK_LOAD_CONFIG|RETRY_MODE|MAX_ATTEMPTS|CA_BUNDLE|IGNORE_CONFIGURED_ENDPOINT_URLS|ENDPOINT_URL.*)"
)
# Lines of the shared files that give none.
_NO_SOURCE_LINE: Final = re.compile(rb"\s*([#;].*|\[.*\]|(region|output|cli_pager)\s*=.*)?")
_SHARED_FILES: Final = (("AWS_CONFIG_FILE", "~/.aws/config"), ("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"))
_FILES_OF_BOTO: Final = ("/etc/boto.cfg", "~/.boto")
_MOST_FILE_BYTES: Final = 64 * 1024
_ANYTHING: Final = b"region or credentials"

_METADATA_SERVICE: Final = ("169.254.169.254", 80)
# It answers a host of EC2 within a millisecond.
_METADATA_SECONDS: Final = 0.15
_NOBODY: Final = (errno.ECONNREFUSED, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
_STDERR: Final = 2
_PROXIES: Final = ("http_proxy", "https_proxy", "all_proxy")


class Outlook:
    """What can be told of a flusher that this process has started, and that has the same environment."""

    def __init__(self, spool_format: SpoolFormat, config: SinkConfig, env: Mapping[str, str]) -> None:
        """Look at the variables and files, and begin to connect. Takes less than a millisecond; never raises."""
        self._missing = ""
        self._endpoint: list[_Attempt] = []
        self._metadata: list[_Attempt] = []
        self._url = spool_format.endpoint_url or ""
        shared = list(_shared_files(env))
        if spool_format.region is None and config.profile is None and not any(b"region" in text for text in shared):
            self._missing = _NO_REGION
        elif config.profile is None and not _may_give_credentials(env, shared):
            if env.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
                self._missing = _NO_CREDENTIALS
            else:
                self._metadata = [_Attempt(_METADATA_SERVICE)]
        if not any(value and name.lower() in _PROXIES for name, value in env.items()):
            self._endpoint = [_Attempt(each) for each in _addresses(self._url)]

    def why_hopeless(self) -> str:
        """Return why nothing can be delivered, as far as it is known by now; "" if something may be."""
        if self._missing:
            return self._missing
        if self._metadata and all(each.has_failed(_METADATA_SECONDS) for each in self._metadata):
            return _NO_CREDENTIALS
        if self._endpoint and all(each.has_failed() for each in self._endpoint):
            return f'EndpointConnectionError: Could not connect to the endpoint URL: "{self._url}"'
        return ""

    def close(self) -> None:
        """End the connections."""
        for each in (*self._endpoint, *self._metadata):
            each.close()


class _Attempt:
    """An attempt to connect, which nobody waits for."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._began = monotonic()
        self._socket: socket.socket | None = None
        self._error = 0
        try:
            made = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
            if made.fileno() > _STDERR:  # else others would write to it
                self._socket = made
                made.setblocking(False)
                self._error = made.connect_ex(address)
        except OSError as error:
            self._error = error.errno or 0

    def has_failed(self, silent_seconds: float = math.inf) -> bool:
        """Tell whether nobody is there: the host says so, or it is silent for so long."""
        if self._socket is not None and self._error in (0, errno.EINPROGRESS):
            self._error = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if self._error:
            return self._error in _NOBODY
        return self._socket is not None and monotonic() - self._began >= silent_seconds and not self._is_connected()

    def _is_connected(self) -> bool:
        try:
            return self._socket is not None and bool(self._socket.getpeername())
        except OSError:
            return False

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()


def _may_give_credentials(env: Mapping[str, str], shared: list[bytes]) -> bool:
    if any(value and name.startswith(_PREFIX) and not _NO_SOURCE.fullmatch(name) for name, value in env.items()):
        return True
    if env.get("BOTO_CONFIG") or any(os.path.exists(os.path.expanduser(path)) for path in _FILES_OF_BOTO):
        return True
    return not all(_NO_SOURCE_LINE.fullmatch(line) for text in shared for line in text.splitlines())


def _shared_files(env: Mapping[str, str]) -> Iterator[bytes]:
    """Yield the content of the files that AWS's tools share. What cannot be read may hold anything."""
    for variable, usual in _SHARED_FILES:
        path = os.path.expanduser(env.get(variable) or usual)
        if os.path.exists(path):
            text = _ANYTHING
            with contextlib.suppress(OSError), open(path, "rb") as file:
                text = file.read(_MOST_FILE_BYTES)
            yield text if len(text) < _MOST_FILE_BYTES else _ANYTHING


def _addresses(url: str) -> list[tuple[str, int]]:
    """Return where the endpoint is, if its URL says so; [] if a name would have to be looked up."""
    with contextlib.suppress(ValueError):
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443)
        if host == "localhost":
            return [("127.0.0.1", port), ("::1", port)]
        if re.fullmatch(r"[\d.]+|[\da-f:]+:[\da-f:.]*", host):
            return [(host, port)]
    return []
