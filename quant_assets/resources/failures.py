"""Show the project's own errors in Dagster as a Failure with its three parts as metadata."""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from quant_assets.errors import explained
from quant_assets.redaction import redact


@contextmanager
def clear_failures() -> Iterator[None]:
    """Turn an error that is explained in three parts, the system's included, into a `Failure`."""
    try:
        yield
    except Exception as error:
        known = explained(error)
        if known is None:
            raise
        parts = {"what": known.what, "why": known.why, "what to do next": known.next_step}
        raise dg.Failure(
            description=redact(str(known)),
            metadata={name: dg.MetadataValue.text(redact(text)) for name, text in parts.items()},
            allow_retries=False,
        ) from error
