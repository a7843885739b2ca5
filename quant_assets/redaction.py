"""Keep secrets out of logs, errors and metadata."""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

SHORTEST_SECRET = 8
"""Shorter values are left alone: no service hands out such tokens, while `1` or `true`, which
people set to switch something, occur in every text; replacing them would garble numbers and words
and so say what they are."""

_SECRET_NAME = re.compile(
    r"(?:^|_)(?:TOKEN|KEY|APIKEY|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|AUTHORIZATION)$",
    re.IGNORECASE,
)
# Up to the last @ before the path: passwords may hold an @ of their own.
_USER_INFO = re.compile(r"\b([A-Za-z][A-Za-z0-9+.-]*://)[^\s/?#\"'<>]*@")
_CREDENTIALS = re.compile(
    r"(\bauthorization\b[\"']?\s*[:=]\s*[\"']?(?:\w+\s+)?|\bbearer\s+)[^\s\"',;<>]{8,}",
    re.IGNORECASE,
)
_QUERY = re.compile(
    r"([?&](?:[\w-]*(?:token|key|secret|password|signature)|sig)=)[^&\s#\"'<>]+", re.IGNORECASE
)


def is_secret_name(variable: str) -> bool:
    """Whether an environment variable of this name holds a secret, as `HF_TOKEN` does."""
    return _SECRET_NAME.search(variable) is not None


def redact(text: str) -> str:
    """Replace every secret in `text`.

    Secrets are the values of the environment's secret variables from `SHORTEST_SECRET` characters
    on, user names and passwords in URLs, credentials of an authorization header, and keys in the
    query of a URL.
    """
    for variable, secret in _secrets(os.environ):
        text = text.replace(secret, f"<{variable}>")
    text = _USER_INFO.sub(r"\1<redacted>@", text)
    text = _CREDENTIALS.sub(r"\1<redacted>", text)
    return _QUERY.sub(r"\1<redacted>", text)


def redact_values(value: Any) -> Any:
    """`value` of JSON's types with every string in it redacted; keys and numbers stay."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {key: redact_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact_values(item) for item in value]
    return value


def _secrets(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(variable, value) of all secrets, the longest first: one may be part of another."""
    found = {
        variable: value.strip()
        for variable, value in environment.items()
        if is_secret_name(variable) and len(value.strip()) >= SHORTEST_SECRET
    }
    yield from sorted(found.items(), key=lambda item: -len(item[1]))
