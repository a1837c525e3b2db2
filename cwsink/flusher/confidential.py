"""Keeps secrets out of what is said of a call that failed.

What failed is told on stderr, in leader.json and in `cwsink status`, in the words of whoever noticed it. These words
may hold a secret. A server or a debugging proxy repeats the headers of our request, with the session token. AWS itself
does so if a signature does not match. botocore shows a URL with the password in it, a header that cannot be sent, and
what a credential helper has printed.

So secrets that are known are looked for in each text, and shown as `***`: credentials of the environment, what the
requests of this process carried, the external id. What may be a secret is cut out by its place: user information in a
URL, a header's value. What a credential helper says is not shown at all.
"""

from __future__ import annotations

import os
import re
from base64 import b64encode
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import unquote

from cwsink.flusher.outcome import TEXTS, Answer, shortened

HIDDEN: Final = "***"
# A word as short as this is in many texts, and guards nothing.
_LEAST_CHARACTERS: Final = 8
_LEAST_OF_SETTING: Final = 4
# Credentials are renewed about once an hour. An answer repeats those of its own request.
_MOST_LEARNED: Final = 64
# To look for places in a megabyte of "://" would take long. What is shown in the end is shorter than this.
_MOST_SEARCHED_BYTES: Final = 16 * 1024

_VARIABLES: Final = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_SECURITY_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
)
_HEADERS: Final = ("Authorization", "X-Amz-Security-Token", "x-amz-sso_bearer_token")
_KEY_ID: Final = re.compile(r"Credential=([^/,\s]+)")

# What stands where a secret may be -> what is shown instead.
_PLACES: Final = (
    (re.compile(r"(://)[^\s\"'<>]{0,512}@"), rf"\1{HIDDEN}@"),
    (re.compile(r"(Signature=)[0-9a-f]{64}"), rf"\1{HIDDEN}"),
    # http.client shows a header that it cannot send, for instance a token that was read from a file with its newline.
    (re.compile(r"(Invalid header value) b.*", re.DOTALL), rf"\1 {HIDDEN}. Does a credential end with a newline?"),
    # A URL that is wrong: what stands there may be a part of a password.
    (
        re.compile(r"(Failed to parse:|Port could not be cast to integer value as|Invalid endpoint:) .*", re.DOTALL),
        rf"\1 {HIDDEN}. Is the endpoint's or a proxy's URL right?",
    ),
)
_PROXY_USER: Final = re.compile(r"(?:[a-z]+://)?(.*)@[^@]*", re.IGNORECASE)
# Who gives credentials -> what to do. botocore's text about them is what they have said.
_HELPERS: Final = {
    "custom-process": "the credential_process of the profile failed. What it printed may be secret, and is not shown: "
    "run the command by hand",
    "container-role": "the service that gives the container its credentials failed. What it answered may be secret, "
    "and is not shown: look at AWS_CONTAINER_CREDENTIALS_FULL_URI or _RELATIVE_URI",
}

_of_settings: set[str] = set()
_of_requests: deque[str] = deque(maxlen=_MOST_LEARNED)


def learn(secret: str | None) -> None:
    """Hide a setting from now on."""
    if secret is not None and len(secret) >= _LEAST_OF_SETTING:
        _of_settings.add(secret)


def learn_from(headers: Mapping[str, str | bytes]) -> None:
    """Hide the credentials in the headers of a request from now on."""
    for name in _HEADERS:
        value = headers.get(name, "")
        text = value.decode("latin-1") if isinstance(value, bytes) else value
        if found := _KEY_ID.search(text):
            text = found[1]  # the signature differs each time
        if len(text) >= _LEAST_CHARACTERS and text not in _of_requests:
            _of_requests.append(text)


def hidden(text: str, env: Mapping[str, str] | None = None) -> str:
    """Return a text without secrets. `env`: the environment that may hold some; by default, the process's."""
    for secret in sorted(
        {*_of_settings, *_of_requests.copy(), *_of(os.environ if env is None else env)}, key=len, reverse=True
    ):
        text = text.replace(secret, HIDDEN)
    text = shortened(text, _MOST_SEARCHED_BYTES)
    for place, instead in _PLACES:
        text = place.sub(instead, text)
    return text


def _of(env: Mapping[str, str]) -> Iterator[str]:
    """Yield the secrets of an environment: credentials, and what is sent to a proxy to log in."""
    known = [env.get(name, "") for name in _VARIABLES]
    for name, value in env.items():
        if name.upper().endswith("_PROXY") and (found := _PROXY_USER.fullmatch(value)):
            user = unquote(found[1])
            known += [user, user.partition(":")[2], b64encode(user.encode("utf-8", "surrogateescape")).decode()]
    for secret in known:
        if len(secret := secret.strip()) >= _LEAST_CHARACTERS:
            yield secret


def text_of(error: Exception) -> str:
    """Return what an exception says, unless those are the words of whoever was to give credentials."""
    return _HELPERS.get(str(getattr(error, "kwargs", {}).get("provider"))) or str(error)


def answer(**fields: Any) -> Answer:
    """Return an Answer whose texts may be shown."""
    texts = {name: hidden(text) for name in TEXTS if (text := fields.get(name))}
    return Answer(**{**fields, **texts})
