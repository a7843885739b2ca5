"""Keep secrets out of logs, errors and metadata."""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

SHORTEST_SECRET = 8
"""Shorter values are kept: no service issues such short tokens, while switches such as `1` or `true`
occur in any text. Replacing them would garble numbers and words and thereby reveal them."""

_SECRET_NAME = re.compile(
    r"(?:^|_)(?:TOKEN|KEY|APIKEY|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|AUTHORIZATION)$",
    re.IGNORECASE,
)
# Up to the last @ before the path: passwords may contain an @.
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

    Secrets are the values of secret environment variables with at least `SHORTEST_SECRET`
    characters, user names and passwords in URLs, credentials in authorization headers, and keys in
    URL queries.
    """
    for variable, secret in _secrets(os.environ):
        text = text.replace(secret, f"<{variable}>")
    text = _USER_INFO.sub(r"\1<redacted>@", text)
    text = _CREDENTIALS.sub(r"\1<redacted>", text)
    return _QUERY.sub(r"\1<redacted>", text)


def redact_values(value: Any) -> Any:
    """The JSON value `value` with every string redacted; keys and numbers are kept."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {key: redact_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact_values(item) for item in value]
    return value


def _secrets(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(variable, value) of all secrets, longest first: one may be part of another."""
    found = {
        variable: value.strip()
        for variable, value in environment.items()
        if is_secret_name(variable) and len(value.strip()) >= SHORTEST_SECRET
    }
    yield from sorted(found.items(), key=lambda item: -len(item[1]))
