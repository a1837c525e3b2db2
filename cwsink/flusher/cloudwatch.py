"""The CloudWatch Logs client. Only cwsink.flusher.aws_data and .examination import botocore, too.

Every call gives an `Answer`; no exception of botocore leaves this module.

botocore would serialise and validate the body of PutLogEvents, which takes 21.8 ms for 1 MB. We encode the body with
msgspec, and a `before-call` hook puts it in place, which takes 2.5 ms. Credentials, endpoints and signing stay
botocore's. With `compression="gzip"` the body is compressed as the CloudWatch agent does it. A role is assumed with
credentials that refresh themselves before they expire.

botocore's retries would send inside a call, where the leader cannot check its lease. So botocore does not retry
(`total_max_attempts=1`), and the leader does. boto3 is not needed: botocore alone is loaded in 0.19 s instead of 0.35,
and takes 3 MiB less. Of what botocore reads about AWS's services, we keep only what is called here (aws_data).
"""

from __future__ import annotations

import contextlib
import copy
import errno
import getpass
import gzip
import os
import re
from collections.abc import Iterable, Mapping, MutableMapping
from functools import partial
from importlib import import_module
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from cwsink.config import SinkConfig
from cwsink.diagnostics import report
from cwsink.flusher import confidential, deadline, helper, proxy, stranger
from cwsink.flusher.chunk import body
from cwsink.flusher.confidential import answer
from cwsink.flusher.outcome import Answer
from cwsink.spool.record import Event
from cwsink.target import Target
from cwsink.version import __version__

# Level 1 makes 248 KB of 1 MB of log lines in 6 ms of CPU, zlib's default of 6 makes 205 KB in 15 ms, and 9 makes
# 196 KB in 44 ms (python -m benchmarks.compression). CloudWatch charges for the size before compression.
_GZIP_LEVEL: Final = 1

_LOOPBACK: Final = re.compile(r"(.+\.)?localhost|127(\.\d+){3}|\[?::1\]?")

_PUT_LOG_EVENTS: Final = "before-call.cloudwatch-logs.PutLogEvents"
_BEFORE_SEND: Final = "before-send.cloudwatch-logs"
_RECEIVED: Final = "response-received.cloudwatch-logs"
_AFTER_PUT: Final = "after-call.cloudwatch-logs.PutLogEvents"

# This process has reached a limit. That passes, and says nothing of the file that it was about to read.
_LIMITS: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)

# All sessions of one process share these: what botocore has read of AWS, and its event handlers.
_data: Any = None
_emitter: Any = None
# Servers without TLS that the operator was told of.
_told: set[str] = set()


def import_botocore() -> None:
    """Import all that a call needs. It takes 0.15 s."""
    getpass.getpass = _ask_nobody  # before botocore, which remembers it
    # urllib3 first, and not in the depth of botocore's imports. There the stack of its regular expressions' compiler
    # crosses a border of CPython's frame memory, and each call over that border maps 16 KiB and gives them back.
    for name in ("urllib3", "botocore.session", "botocore.handlers", "botocore.parsers", "cwsink.flusher.aws_data"):
        import_module(name)
    import_module("encodings.idna")  # Python would import it at the first look-up of a host name


def _ask_nobody(*_: object, **__: object) -> str:
    """Take the place of `getpass`, by which botocore asks for an MFA code.

    It would ask at a terminal, or read a line of stdin, and both belong to somebody else. Raises what botocore raises
    if there are no credentials.
    """
    from botocore.exceptions import CredentialRetrievalError

    raise CredentialRetrievalError(
        provider="assume-role",
        error_msg="the profile wants an MFA code (mfa_serial), and nobody is there to be asked for it. Use a profile "
        "without, or credentials that were fetched before",
    )


def load() -> None:
    """Import botocore, and read AWS's descriptions of our calls. It takes 0.2 s, once for all clients of this process.

    A client that is made afterwards takes 5 ms, also in a forked child. No credentials are looked for. Something may be
    wrong with AWS's variables or files (a profile that is not there). Then nothing is read now, and the first call of
    each client says what it is.
    """
    import_botocore()
    with contextlib.suppress(Exception):
        session = new_session(None)
        session.set_credentials("none", "none")
        session.create_client("logs", region_name="us-east-1").close()


# The spool's FORMAT says where to send, or leaves it to the profile's file. These variables must not: see below.
_OF_THE_TARGET: Final = ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL_CLOUDWATCH_LOGS", "AWS_ENDPOINT_URL")
# Services that give credentials. An endpoint for all services (LocalStack) is also meant for them.
_CREDENTIAL_SERVICES: Final = ("STS", "SSO", "SSO_OIDC")


def take_credentials_only(env: MutableMapping[str, str]) -> None:
    """Take the variables that say where to send out of the environment. It may give credentials only.

    The environment is that of the application that happened to start this process. A spool of another application may
    have no region or endpoint of its own, and would be sent where these variables point.
    """
    if url := env.get("AWS_ENDPOINT_URL"):
        for service in _CREDENTIAL_SERVICES:
            env.setdefault(f"AWS_ENDPOINT_URL_{service}", url)
    for name in _OF_THE_TARGET:
        env.pop(name, None)


def new_session(profile: str | None = None) -> Any:
    """Return a new session of botocore. The first one of a process takes 20 ms, and each other one takes 1."""
    global _data, _emitter
    getpass.getpass = _ask_nobody
    import botocore.session

    from cwsink.flusher.aws_data import AwsData

    session = botocore.session.Session(profile=profile, include_builtin_handlers=_emitter is None)
    if _emitter is None:
        _data = AwsData(session.get_component("data_loader").search_paths)
        session.register("before-send", _before_send)
        _emitter = copy.copy(session.get_component("event_emitter"))
        deadline.bind()
        helper.bind()
    else:
        session.register_component("event_emitter", copy.copy(_emitter))
    session.register_component("data_loader", _data)
    return session


class CloudWatch:
    """Calls CloudWatch Logs for one log group, for one epoch.

    Attributes:
        sent_bytes: the bodies of all requests so far that were to send events.
    """

    def __init__(self, spool_format: Target, config: SinkConfig, epoch: int) -> None:
        """Remember. The first call makes the client, because that reads files and may ask for credentials."""
        self._format = spool_format
        self._config = config
        self._epoch = epoch
        self._entity = msgspec.to_builtins(config.entity)
        self._client: Any = None
        self._region = spool_format.region
        self._body = b""
        self._is_sent = self._is_unread = False
        self.sent_bytes = 0

    def put(self, stream: str, events: Iterable[Event], sequence_token: str | None = None) -> Answer:
        """Send the events of one request."""
        group = self._format.log_group_name
        self._body = body(group, stream, events, sequence_token, self._entity)
        try:
            return self._call("put_log_events", logGroupName=group, logStreamName=stream, logEvents=[])
        finally:
            self._body = b""

    def create_group(self) -> Answer:
        """Create the log group. If it exists already, that is a success, and the group stays as it is."""
        config, group = self._config, self._format.log_group_name
        wanted = {"kmsKeyId": config.kms_key_id, "tags": config.tags, "logGroupClass": config.log_group_class}
        options = {name: value for name, value in wanted.items() if value is not None}
        made = self._call("create_log_group", logGroupName=group, **options)
        if not made.code and not made.already_existed and config.retention_days is not None:
            kept = self._call("put_retention_policy", logGroupName=group, retentionInDays=config.retention_days)
            if kept.status != 200:
                report(
                    "retention",
                    f"{group} was created, but its retention could not be set to {config.retention_days} days: "
                    f"{kept.code}: {kept.message}. Records are delivered. Set the retention by hand.",
                )
        return made

    def create_stream(self, stream: str) -> Answer:
        """Create a log stream. If it exists already, that is a success."""
        return self._call("create_log_stream", logGroupName=self._format.log_group_name, logStreamName=stream)

    def close(self) -> None:
        """Close the connection. The next call reads credentials anew: a cached provider may hand out old ones."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _call(self, operation: str, **parameters: Any) -> Answer:
        from botocore import exceptions

        from cwsink.flusher.aws_data import OPERATIONS

        self._is_sent = self._is_unread = False
        try:
            if self._client is None:
                self._client = self._connect()
            found = getattr(self._client, operation)(**parameters)
        except exceptions.ClientError as error:
            if error.operation_name not in OPERATIONS:
                return answer(code="CredentialRetrievalError", message=str(error))
            return _failure(error.response, str(error))
        except (exceptions.ConnectionError, exceptions.HTTPClientError) as error:
            return _no_answer(error, is_sent=self._is_sent)
        except Exception as error:
            return self._surprise(error)
        metadata = (found or {}).get("ResponseMetadata", {})
        status, request_id = metadata.get("HTTPStatusCode"), metadata.get("RequestId", "")
        if doubt := stranger.doubt_about(status, request_id):
            return answer(status=status, code=stranger.CODE, message=doubt, is_ambiguous=True)
        return answer(
            status=status,
            request_id=request_id,
            rejected=found.get("rejectedLogEventsInfo"),
            rejected_entity=(found.get("rejectedEntityInfo") or {}).get("errorType"),
            is_ambiguous=True,
        )

    def _surprise(self, error: Exception) -> Answer:
        """Return what any other exception means. Whatever it is, the records stay."""
        from botocore.exceptions import BotoCoreError
        from botocore.parsers import ResponseParserError

        code, message = type(error).__name__, confidential.text_of(error)
        if isinstance(error, stranger.NotCloudWatchError):
            return answer(code=stranger.CODE, message=message, is_ambiguous=True)
        if self._is_unread and not isinstance(error, MemoryError):  # botocore stumbles over what has come
            return answer(code=stranger.CODE, message=stranger.NO_OBJECT, is_ambiguous=True)
        if self._is_sent or isinstance(error, BotoCoreError):
            return answer(code=code, message=message, is_ambiguous=self._is_sent)
        if self._client is None and isinstance(error, ValueError):
            return answer(code="InvalidConfigError", message=message)  # int("x"), a file that is no UTF-8
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _LIMITS):
            return answer(code=code, message=message)
        if isinstance(error, ResponseParserError):  # it shows the answer, which may have the keys in it
            message = "a service that gives credentials has answered what cannot be read"
        # Nothing was sent yet, so it comes from whoever was to give credentials: a token's file that is not there, a
        # helper that cannot be started, an answer of a service that lacks the key or cannot be read.
        return answer(code="CredentialRetrievalError", message=f"{code}: {message}")

    def _connect(self, **options: Any) -> Any:
        from botocore.config import Config

        botocore_config = Config(
            retries={"total_max_attempts": 1},
            connect_timeout=self._config.connect_timeout_seconds,
            read_timeout=self._config.read_timeout_seconds,
            parameter_validation=False,
            max_pool_connections=1,
            user_agent_extra=f"cwsink/{__version__} epoch/{self._epoch} pid/{os.getpid()}",
            **options,
        )
        session = self._session(botocore_config)
        client = session.create_client(
            "logs", region_name=self._region, endpoint_url=self._format.endpoint_url, config=botocore_config
        )
        client.meta.events.register(_PUT_LOG_EVENTS, self._set_body)
        client.meta.events.register(_BEFORE_SEND, self._note_sending)
        client.meta.events.register(_RECEIVED, self._note_reading)
        client.meta.events.register(_AFTER_PUT, stranger.check)
        return client

    def _session(self, botocore_config: Any) -> Any:
        """Return a session of the profile, or of the role that the profile assumes."""
        config = self._config
        confidential.learn(config.external_id)
        source = new_session(config.profile)
        source.set_default_client_config(botocore_config)  # for clients that credential providers make by themselves
        self._region = self._format.region or source.get_config_variable("region")
        if config.role_arn is None:
            return source
        from botocore.credentials import AssumeRoleCredentialFetcher, CredentialProvider, DeferredRefreshableCredentials
        from botocore.exceptions import NoCredentialsError

        credentials = source.get_credentials()
        if credentials is None:
            raise NoCredentialsError
        extra = {"RoleSessionName": f"cwsink-{os.getpid()}", "ExternalId": config.external_id}
        fetcher = AssumeRoleCredentialFetcher(
            client_creator=partial(source.create_client, region_name=self._region, config=botocore_config),
            source_credentials=credentials,
            role_arn=config.role_arn,
            extra_args={name: value for name, value in extra.items() if value is not None},
        )

        class AssumedRole(CredentialProvider):  # type: ignore[misc]  # botocore has no types
            METHOD = "assume-role"

            def load(self) -> Any:
                return DeferredRefreshableCredentials(method=self.METHOD, refresh_using=fetcher.fetch_credentials)

        session = new_session(config.profile)
        session.get_component("credential_provider").providers.insert(0, AssumedRole())
        return session

    def _set_body(self, params: dict[str, Any], **_: Any) -> None:
        params["body"] = self._body
        if self._config.compression == "gzip":
            params["body"] = gzip.compress(self._body, compresslevel=_GZIP_LEVEL, mtime=0)
            params["headers"]["Content-Encoding"] = "gzip"
        self.sent_bytes += len(params["body"])

    def _note_sending(self, **_: Any) -> None:
        """Note that the request is sent now. It is signed, so what goes wrong from here on is not the credentials'."""
        self._is_sent = self._is_unread = True

    def _note_reading(self, **_: Any) -> None:
        """Note that the answer could be read, or that none has come."""
        self._is_unread = False


def _before_send(request: Any, **_: Any) -> None:
    """Look at a request of botocore before it is sent: learn its secrets, and say once that a server has no TLS."""
    confidential.learn_from(request.headers)
    address = urlsplit(request.url)
    server = f"{address.hostname}:{address.port or 80}"
    if address.scheme != "http" or _LOOPBACK.fullmatch(address.hostname or "") or server in _told:
        return
    _told.add(server)
    report(
        f"plain_{server}",
        f"{server} is asked without TLS: whoever is on the way there can read what is sent, log lines and session "
        "tokens, and can forge the answers. It is sent all the same. Use https, unless this network is yours alone.",
    )


def _no_answer(error: Any, *, is_sent: bool) -> Answer:
    """Return what an exception of the connection means: no answer came, or none that could be read.

    `is_sent`: the request was about to be sent. If not, the connection was one to a service that gives credentials.
    """
    from botocore import exceptions as known

    if isinstance(cause := error.kwargs.get("error"), deadline.TooLongError):
        return answer(code="AnswerTooLong", message=str(cause), is_ambiguous=is_sent)
    if trouble := proxy.trouble_of(error):
        return answer(**trouble)
    # If no connection was made, the call cannot have reached CloudWatch. In all other cases it may have.
    may_be_sent = is_sent and not isinstance(error, known.EndpointConnectionError | known.ConnectTimeoutError)
    message = str(error)
    if isinstance(error, known.SSLError):  # it says "No such file", not which one
        named = {name: os.environ.get(name) for name in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE")}
        message += "".join(f" ({name} is {path})" for name, path in named.items() if path)
    return answer(code=type(error).__name__, message=message, is_ambiguous=may_be_sent)


def _failure(response: Mapping[str, Any], text: str) -> Answer:
    error, metadata = response.get("Error", {}), response.get("ResponseMetadata", {})
    status = metadata.get("HTTPStatusCode")
    if status == proxy.STATUS:
        return answer(status=status, **proxy.WANTS_PASSWORD)
    code = str(error.get("Code", "") or "Unknown")
    if code == "ResourceAlreadyExistsException":
        return answer(status=200, request_id=metadata.get("RequestId", "") or "exists", already_existed=True)
    message = str(error.get("Message", "") or text.rstrip(": "))
    if stranger.has_refused(status, code):
        text = f"HTTP {status}, without an error of AWS's: {message}"
        return answer(status=status, code=stranger.CODE, message=text)
    token = response.get("expectedSequenceToken") or error.get("expectedSequenceToken")
    return answer(
        status=status,
        code=code,
        message=message,
        request_id=metadata.get("RequestId", ""),
        expected_token=token if isinstance(token, str) else None,
        is_ambiguous=status is None or status >= 500,
    )
