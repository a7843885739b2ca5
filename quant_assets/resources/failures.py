"""Show the project's own errors in Dagster as a Failure with its three parts as metadata."""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from quant_assets.errors import QuantAssetsError
from quant_assets.redaction import redact


@contextmanager
def clear_failures() -> Iterator[None]:
    """Turn a `QuantAssetsError` of the block into a `dagster.Failure`."""
    try:
        yield
    except QuantAssetsError as error:
        parts = {"what": error.what, "why": error.why, "what to do next": error.next_step}
        raise dg.Failure(
            description=redact(str(error)),
            metadata={name: dg.MetadataValue.text(redact(text)) for name, text in parts.items()},
            allow_retries=False,
        ) from error
