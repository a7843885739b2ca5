"""Keep secrets out of logs, errors and metadata."""

import os

_SECRET_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN")


def redact(text: str) -> str:
    """Replace the value of every secret of the environment that occurs in `text`."""
    for variable in _SECRET_VARIABLES:
        secret = os.environ.get(variable, "").strip()
        if secret:
            text = text.replace(secret, f"<{variable}>")
    return text
