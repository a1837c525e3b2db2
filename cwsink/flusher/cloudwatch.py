"""The CloudWatch Logs client: the only module that imports botocore, but for its loader (cwsink.flusher.aws_data).

Every call gives an `Answer`; no exception of botocore leaves this module. The
body of PutLogEvents is encoded once, with msgspec, and put in place by a
`before-call` hook, which keeps botocore's credentials, endpoints and signing and
saves its serialising and validating (measured: 2.5 ms for a 1 MB call against 21.8).

With `compression="gzip"` the body is compressed as the CloudWatch agent does it. A role is
assumed with credentials that refresh themselves before they expire.

We retry ourselves (`total_max_attempts=1`): botocore's retries would send inside a
call, where the lease cannot be checked. boto3 itself is not needed: botocore alone is loaded in 0.19 s instead of
0.35, and takes 3 MiB less. Of what it reads about AWS's services, only what is called here is kept.
"""

from __future__ import annotations

import copy
import gzip
import os
from collections.abc import Iterable, Mapping, MutableMapping
from functools import partial
from importlib import import_module
from typing import Any, Final, Protocol

import msgspec

from cwsink.config import SinkConfig
from cwsink.diagnostics import report
from cwsink.flusher.chunk import body
from cwsink.flusher.outcome import Answer
from cwsink.spool.directory import SpoolFormat
from cwsink.spool.record import Event
from cwsink.version import __version__

# A request of 1 MB of log lines becomes 248 KB in 6 ms of CPU; zlib's default, 6, makes it 205 KB in 15 ms,
# 9 makes it 196 KB in 44 ms (python -m benchmarks.compression). CloudWatch charges for what comes out of it.
_GZIP_LEVEL: Final = 1

_NO_ID: Final = "the answer has no AWS request id. Is that a proxy's? Check endpoint_url and the proxy settings"

_PUT_LOG_EVENTS: Final = "before-call.cloudwatch-logs.PutLogEvents"
# An error of any other operation is one of fetching credentials (AssumeRole, GetRoleCredentials). Its code
# must not be taken for a word about the events.
_OPERATIONS: Final = frozenset(("PutLogEvents", "CreateLogGroup", "CreateLogStream", "PutRetentionPolicy"))


# What sessions of one process share: what botocore has read of AWS, and its handlers of events.
_data: Any = None
_emitter: Any = None


def import_botocore() -> None:
    """Import all that a call needs: 0.15 s."""
    for name in ("botocore.session", "botocore.handlers", "botocore.parsers", "cwsink.flusher.aws_data"):
        import_module(name)
    import_module("encodings.idna")  # of the first look-up of a host name


def load() -> None:
    """Import it, and read AWS's descriptions of our calls: 0.2 s, once for all clients of this process.

    A client made after it takes 5 ms, also in a forked child. No credentials are looked for.
    """
    import_botocore()
    session = _new_session(None)
    session.set_credentials("none", "none")
    session.create_client("logs", region_name="us-east-1").close()


# What a spool's FORMAT says, or leaves to the profile's file. The environment is that of whoever started this process.
_OF_THE_TARGET: Final = ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL_CLOUDWATCH_LOGS", "AWS_ENDPOINT_URL")
# Services that give credentials; an endpoint for all services (LocalStack) is theirs, too.
_CREDENTIAL_SERVICES: Final = ("STS", "SSO", "SSO_OIDC")


def take_credentials_only(env: MutableMapping[str, str]) -> None:
    """Keep the environment from saying where to send: it gives credentials, and no more.

    A spool without a region or an endpoint of its own would else go where another application's variables point.
    """
    if url := env.get("AWS_ENDPOINT_URL"):
        for service in _CREDENTIAL_SERVICES:
            env.setdefault(f"AWS_ENDPOINT_URL_{service}", url)
    for name in _OF_THE_TARGET:
        env.pop(name, None)


def _new_session(profile: str | None) -> Any:
    """Return a session of botocore of its own. The first one of a process takes 20 ms, the others 1."""
    global _data, _emitter
    import botocore.session

    from cwsink.flusher.aws_data import AwsData

    session = botocore.session.Session(profile=profile, include_builtin_handlers=_emitter is None)
    if _emitter is None:
        _data = AwsData(session.get_component("data_loader").search_paths)
        _emitter = copy.copy(session.get_component("event_emitter"))
    else:
        session.register_component("event_emitter", copy.copy(_emitter))
    session.register_component("data_loader", _data)
    return session


class _LogsClient(Protocol):
    """The calls we use of botocore's client."""

    meta: Any

    def put_log_events(self, **parameters: Any) -> Mapping[str, Any]: ...
    def create_log_group(self, **parameters: Any) -> Mapping[str, Any]: ...
    def create_log_stream(self, **parameters: Any) -> Mapping[str, Any]: ...
    def put_retention_policy(self, **parameters: Any) -> Mapping[str, Any]: ...
    def close(self) -> None: ...


class CloudWatch:
    """Sends to one log group, for one epoch."""

    def __init__(self, spool_format: SpoolFormat, config: SinkConfig, epoch: int) -> None:
        """Remember; the client is made by the first call (it reads files, and may ask for credentials)."""
        self._format = spool_format
        self._config = config
        self._epoch = epoch
        self._entity = msgspec.to_builtins(config.entity)
        self._client: _LogsClient | None = None
        self._region = spool_format.region
        self._body = b""

    def put(self, stream: str, events: Iterable[Event], sequence_token: str | None = None) -> Answer:
        """Send the events of one request."""
        group = self._format.log_group_name
        self._body = body(group, stream, events, sequence_token, self._entity)
        try:
            return self._call("put_log_events", logGroupName=group, logStreamName=stream, logEvents=[])
        finally:
            self._body = b""

    def create_group(self) -> Answer:
        """Create the log group; that it exists already is a success, and leaves it as it is."""
        config, group = self._config, self._format.log_group_name
        wanted = {"kmsKeyId": config.kms_key_id, "tags": config.tags, "logGroupClass": config.log_group_class}
        options = {name: value for name, value in wanted.items() if value is not None}
        answer = self._call("create_log_group", logGroupName=group, **options)
        if not answer.code and not answer.already_existed and config.retention_days is not None:
            kept = self._call("put_retention_policy", logGroupName=group, retentionInDays=config.retention_days)
            if kept.status != 200:
                report(
                    "retention",
                    f"{group} was created, but its retention could not be set to {config.retention_days} days: "
                    f"{kept.code}: {kept.message}. Records are delivered; set it by hand.",
                )
        return answer

    def create_stream(self, stream: str) -> Answer:
        """Create a log stream; that it exists already is a success."""
        return self._call("create_log_stream", logGroupName=self._format.log_group_name, logStreamName=stream)

    def forget_session(self) -> None:
        """Let the next call read credentials anew: a cached provider can hand out expired ones for ever."""
        self.close()

    def close(self) -> None:
        """Close the connection."""
        client, self._client = self._client, None
        if client is not None and hasattr(client, "close"):
            client.close()

    def _call(self, operation: str, **parameters: Any) -> Answer:
        from botocore import exceptions
        from botocore.parsers import ResponseParserError

        try:
            if self._client is None:
                self._client = self._connect()
            answer = getattr(self._client, operation)(**parameters)
        except exceptions.ClientError as error:
            if error.operation_name not in _OPERATIONS:
                return Answer(code="CredentialRetrievalError", message=str(error))
            return _failure(error.response, str(error))
        except (exceptions.ConnectionError, exceptions.HTTPClientError) as error:
            # A connection that was never made cannot have carried the call out; all else may have.
            never_sent = isinstance(error, exceptions.EndpointConnectionError | exceptions.ConnectTimeoutError)
            message = str(error)
            if isinstance(error, exceptions.SSLError) and (bundle := os.environ.get("AWS_CA_BUNDLE")):
                message += f" (AWS_CA_BUNDLE is {bundle})"  # "No such file" does not say which
            return Answer(code=type(error).__name__, message=message, is_ambiguous=not never_sent)
        except ResponseParserError as error:
            return Answer(code="ResponseParserError", message=str(error), is_ambiguous=True)
        except Exception as error:
            # NoCredentials, NoRegion, a broken credential_process, a proxy's surprise: all keep the batch.
            # What is none of botocore's own comes from a client that is not made yet, or from parsing an answer.
            may_have_arrived = self._client is not None and not isinstance(error, exceptions.BotoCoreError)
            return Answer(code=type(error).__name__, message=str(error), is_ambiguous=may_have_arrived)
        metadata = answer.get("ResponseMetadata", {})
        if not metadata.get("RequestId"):
            return Answer(status=metadata.get("HTTPStatusCode"), code="NoRequestId", message=_NO_ID, is_ambiguous=True)
        return Answer(
            status=metadata.get("HTTPStatusCode"),
            request_id=metadata["RequestId"],
            rejected=answer.get("rejectedLogEventsInfo"),
            rejected_entity=(answer.get("rejectedEntityInfo") or {}).get("errorType"),
            is_ambiguous=True,
        )

    def _connect(self) -> _LogsClient:
        from botocore.config import Config

        botocore_config = Config(
            retries={"total_max_attempts": 1},
            connect_timeout=self._config.connect_timeout_seconds,
            read_timeout=self._config.read_timeout_seconds,
            parameter_validation=False,
            max_pool_connections=1,
            user_agent_extra=f"cwsink/{__version__} epoch/{self._epoch} pid/{os.getpid()}",
        )
        session = self._session(botocore_config)
        client: _LogsClient = session.create_client(
            "logs", region_name=self._region, endpoint_url=self._format.endpoint_url, config=botocore_config
        )
        client.meta.events.register(_PUT_LOG_EVENTS, self._set_body)
        return client

    def _session(self, botocore_config: Any) -> Any:
        """Return a session of the profile, or of the role that is assumed with it."""
        config = self._config
        source = _new_session(config.profile)
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

        session = _new_session(config.profile)
        session.get_component("credential_provider").providers.insert(0, AssumedRole())
        return session

    def _set_body(self, params: dict[str, Any], **_: Any) -> None:
        params["body"] = self._body
        if self._config.compression == "gzip":
            params["body"] = gzip.compress(self._body, compresslevel=_GZIP_LEVEL, mtime=0)
            params["headers"]["Content-Encoding"] = "gzip"


def _failure(response: Mapping[str, Any], text: str) -> Answer:
    error = response.get("Error", {})
    metadata = response.get("ResponseMetadata", {})
    status = metadata.get("HTTPStatusCode")
    code = str(error.get("Code", "") or "Unknown")
    if code == "ResourceAlreadyExistsException":
        return Answer(status=200, request_id=metadata.get("RequestId", "") or "exists", already_existed=True)
    return Answer(
        status=status,
        code=code,
        message=str(error.get("Message", "") or text.rstrip(": ")),
        request_id=metadata.get("RequestId", ""),
        expected_token=response.get("expectedSequenceToken") or error.get("expectedSequenceToken"),
        is_ambiguous=status is None or status >= 500,
    )
