"""Results of finished jobs: the same job is not done twice while its output is unchanged."""

from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

from pydantic import BaseModel, ValidationError

from quant_assets.artifacts.job import library_versions
from quant_assets.artifacts.output_record import RecordedJob, finished_output
from quant_assets.processes.protocol import EventChannel

Result = TypeVar("Result", bound=BaseModel)


class _Job(RecordedJob, Protocol):
    overwrite: bool


def library_identity() -> dict[str, str]:
    """Versions of the libraries that determine the output's bytes, as a part of a job's identity."""
    return {name.replace("-", "_"): version for name, version in library_versions("gguf").items()}


def finished_result(
    job: _Job,
    identity: Mapping[str, str],
    result_type: type[Result],
    channel: EventChannel,
    *,
    suffices: Callable[[Result], bool] = lambda _: True,
) -> Result | None:
    """The recorded result of this very job, if it finished and its output is unchanged.

    None if the output must be written, because there is none or its result does not suffice. To be
    called under the output's lock: another process may just have finished the job. Raises what
    `finished_output` raises for a file that must not be replaced.
    """
    record = finished_output(
        job.output,
        identity,
        job.source,
        overwrite=job.overwrite,
        log=lambda reason: channel.log(reason, "warning"),
    )
    if record is None:
        return None
    try:
        result = result_type.model_validate(record.result)
    except ValidationError:
        return None
    if not suffices(result):
        return None
    channel.log("Nothing to do: this job has finished, and its output is unchanged.")
    return result.model_copy(update={"output": job.output})
