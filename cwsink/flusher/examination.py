"""Asks AWS what `cwsink doctor` wants to know of a target, and changes nothing there.

Each permission is tried by a call that cannot have an effect, whoever answers:

* PutLogEvents with one event of 1970. CloudWatch accepts the call, and rejects the event as too old: nothing is stored.
* CreateLogStream and CreateLogGroup with the name of one that exists. The answer is that it exists already. For one
  that is missing this cannot be tried.
* DescribeLogStreams and GetLogEvents read, and GetCallerIdentity of STS tells who asks. A flusher needs none of them.

All goes the flusher's way: by its client, with its credentials, role, proxy and deadlines.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, NamedTuple

from msgspec.structs import replace

from cwsink.config import SinkConfig
from cwsink.flusher import confidential
from cwsink.flusher.cloudwatch import CloudWatch, new_session
from cwsink.flusher.outcome import Answer
from cwsink.spool.record import Event
from cwsink.target import Target

# A person waits for the answers.
_MOST_CONNECT_SECONDS: Final = 3.0
_MOST_READ_SECONDS: Final = 5.0
_TOO_OLD: Final = Event(1, 0, 0, "cwsink doctor asks whether it may send. This event is too old to be kept.")
_LEAST_SECRET_CHARACTERS: Final = 8
_SHOWN_CHARACTERS: Final = 4
_OF_STS: Final = ("AWS_ENDPOINT_URL_STS", "AWS_ENDPOINT_URL")


class Credentials(NamedTuple):
    """Whose credentials a flusher would use.

    Attributes:
        found_by: the provider that has them, as botocore calls it ("env", "iam-role" ...).
        key: the end of the access key's id.
        until: when they expire; None if they do not, or if that is not known.
        arn: the user or role, as STS says; None if STS was not asked, or has not answered.
    """

    found_by: str
    key: str
    until: datetime | None
    arn: str | None


class Examination(CloudWatch):
    """Asks for one target.

    Attributes:
        found: the content of the last answer that came.
        ahead_seconds: how far this host's clock is ahead of the server's, by the `Date` of the last answer.
    """

    def __init__(self, target: Target, config: SinkConfig, *, is_signed: bool = True) -> None:
        """`is_signed`: False asks without credentials, only to see whether anybody answers."""
        quick = replace(
            config,
            connect_timeout_seconds=min(config.connect_timeout_seconds, _MOST_CONNECT_SECONDS),
            read_timeout_seconds=min(config.read_timeout_seconds, _MOST_READ_SECONDS),
        )
        super().__init__(target, quick, 0)
        self._is_signed = is_signed
        self.found: Mapping[str, Any] = {}
        self.ahead_seconds: float | None = None

    def has_region(self) -> str | None:
        """Return the region that a flusher would use; None if there is none. Raises what botocore raises."""
        region: str | None = self._format.region or new_session(self._config.profile).get_config_variable("region")
        return region

    def send_nothing(self, stream: str) -> Answer:
        """Try to send."""
        return self.put(stream, [_TOO_OLD])

    def describe(self, stream: str = "") -> Answer:
        """Look for streams of the group. `found` then has them."""
        prefix = {"logStreamNamePrefix": stream} if stream else {}
        return self._call("describe_log_streams", logGroupName=self._format.log_group_name, limit=1, **prefix)

    def read(self, stream: str, since_ms: int) -> Answer:
        """Read the events of a stream. `found` then has them."""
        group = self._format.log_group_name
        return self._call(
            "get_log_events", logGroupName=group, logStreamName=stream, startTime=since_ms, startFromHead=True
        )

    def group_again(self) -> Answer:
        """Try to create the group, which exists. Its retention and tags stay as they are."""
        return self._call("create_log_group", logGroupName=self._format.log_group_name)

    def credentials(self, *, asks_sts: bool = True) -> Credentials | None:
        """Return whose credentials are used; None if there are none. Raises what botocore raises."""
        from botocore.config import Config

        times = self._config.connect_timeout_seconds, self._config.read_timeout_seconds
        once = Config(connect_timeout=times[0], read_timeout=times[1], retries={"total_max_attempts": 1})
        session = self._session(once)
        if (found := session.get_credentials()) is None:
            return None
        frozen = found.get_frozen_credentials()
        for secret in (frozen.secret_key, frozen.token):
            if secret and len(secret) >= _LEAST_SECRET_CHARACTERS:
                confidential.learn(secret)
        until = getattr(found, "_expiry_time", None)  # of credentials that expire; a private name of botocore
        until = until if isinstance(until, datetime) else None
        key = frozen.access_key[-_SHOWN_CHARACTERS:]
        return Credentials(str(found.method), key, until, self._caller(session, once) if asks_sts else None)

    def _caller(self, session: Any, botocore_config: Any) -> str | None:
        """Return whom STS knows by the credentials. Beside an emulator or a private endpoint it is not asked."""
        if self._format.endpoint_url and not any(os.environ.get(name) for name in _OF_STS):
            return None
        with contextlib.suppress(Exception):  # it may be out of reach, and a flusher does not need it
            client = session.create_client("sts", region_name=self._region, config=botocore_config)
            with contextlib.closing(client):
                arn: str = client.get_caller_identity()["Arn"]
                return arn
        return None

    def _connect(self, **options: Any) -> Any:
        from botocore import UNSIGNED

        if not self._is_signed:
            options["signature_version"] = UNSIGNED
        client = super()._connect(**options)
        client.meta.events.register("after-call", self._after_call)
        return client

    def _session(self, botocore_config: Any) -> Any:
        if self._is_signed:
            return super()._session(botocore_config)
        session = new_session()
        session.set_credentials("none", "none")
        self._region = self.has_region()
        return session

    def _after_call(self, http_response: Any, parsed: Mapping[str, Any], **_: Any) -> None:
        self.found = parsed
        with contextlib.suppress(KeyError, ValueError, TypeError, OverflowError):  # no Date, or no time
            self.ahead_seconds = time.time() - parsedate_to_datetime(http_response.headers["Date"]).timestamp()


def proxy_of(url: str) -> str | None:
    """Return the proxy that a request to a URL takes, without the password; None if it takes none."""
    from botocore.utils import get_environ_proxies

    found = get_environ_proxies(url).get(url.partition(":")[0])
    return confidential.hidden(found) if found else None


def endpoint_of(region: str) -> str:
    """Return the URL of CloudWatch Logs in a region."""
    session = new_session()
    session.set_credentials("none", "none")
    client = session.create_client("logs", region_name=region)
    try:
        url: str = client.meta.endpoint_url
        return url
    finally:
        client.close()
