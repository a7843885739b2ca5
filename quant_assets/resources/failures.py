"""The project's three-part errors as Dagster failures, and back.

A step fails with the three parts in its metadata; a command that ran the job raises them again.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from quant_assets.errors import QuantAssetsError, explained
from quant_assets.redaction import redact

_WHAT, _WHY, _NEXT_STEP = "what", "why", "what to do next"
_SEE_LOG = "Open the run in the Dagster UI (`make ui`) for its log."


@contextmanager
def clear_failures() -> Iterator[None]:
    """Raise errors that have a three-part explanation, system errors included, as `Failure`."""
    try:
        yield
    except Exception as error:
        known = explained(error)
        if known is None:
            raise
        parts = {_WHAT: known.what, _WHY: known.why, _NEXT_STEP: known.next_step}
        raise dg.Failure(
            description=redact(str(known)),
            metadata={name: dg.MetadataValue.text(redact(text)) for name, text in parts.items()},
            allow_retries=False,
        ) from error


def error_of(job_name: str, result: dg.ExecuteInProcessResult) -> QuantAssetsError:
    """The error of a failed job: the three parts that its first failed step carries, if any."""
    for event in result.all_events:
        if not event.is_step_failure:
            continue
        data = event.step_failure_data
        if data.user_failure_data is not None:
            parts = {name: value.value for name, value in data.user_failure_data.metadata.items()}
            if {_WHAT, _WHY, _NEXT_STEP} <= parts.keys():
                return QuantAssetsError(str(parts[_WHAT]), str(parts[_WHY]), str(parts[_NEXT_STEP]))
        if data.error is not None:
            cause = data.error.cause or data.error
            return QuantAssetsError(
                f"The step {event.step_key} of {job_name} failed.",
                cause.message.strip(),
                _SEE_LOG,
            )
    failures = [event.job_failure_data for event in result.all_events if event.is_job_failure]
    errors = [data.error for data in failures if data.error is not None]
    return QuantAssetsError(
        f"The job {job_name} failed.",
        (errors[0].cause or errors[0]).message.strip() if errors else "No step reported a reason.",
        _SEE_LOG,
    )
