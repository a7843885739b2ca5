"""The record of the job that made a file: `<file>.job.json` beside it, for later runs.

The record is written before the file gets its name, so that a finished file always has one. A file
is replaced only with the user's agreement if this project did not make it, if it was changed, or if
it was made from another source.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ValidationError

from quant_assets.atomic_files import write_text_atomically
from quant_assets.errors import ConfirmationRequired, ResourceError
from quant_assets.host.own_files import read_own_file
from quant_assets.models.identity import sha256_of

_SUFFIX = ".job.json"
_MAX_BYTES = 1_000_000  # records take a few thousand
_SOURCE = "source"
_REPLACE_HINT = "Choose another --output-dir, or replace the file with --overwrite."


class OutputRecord(BaseModel):
    """The job that made a file.

    `source` is the path of the model; `identity` everything that decides the file's bytes, with the
    source's content hash under `source`; `result` the run's result.
    """

    source: str
    identity: dict[str, str]
    sha256: str
    result: dict[str, Any]


def record_path(output: Path) -> Path:
    """The path of the record of the file `output`."""
    return output.with_name(f"{output.name}{_SUFFIX}")


class RecordedJob(Protocol):
    """A job that writes one file; with `record`, it also writes a record."""

    source: Path
    output: Path
    record: bool


def settle_record(
    job: RecordedJob, identity: Mapping[str, str], sha256: str, result: BaseModel
) -> None:
    """Write the record of a file that is about to get its name, or remove an earlier record."""
    if not job.record:
        record_path(job.output).unlink(missing_ok=True)
        return
    record = OutputRecord(
        source=str(job.source),
        identity=dict(identity),
        sha256=sha256,
        result=result.model_dump(mode="json"),
    )
    write_text_atomically(record_path(job.output), record.model_dump_json(indent=2))


def read_record(output: Path) -> OutputRecord | None:
    """The record of `output`; None if it is missing or unreadable."""
    try:
        return OutputRecord.model_validate_json(read_own_file(record_path(output), _MAX_BYTES))
    except ValidationError:
        return None


def finished_output(
    output: Path,
    identity: Mapping[str, str],
    source: Path,
    *,
    overwrite: bool,
    log: Callable[[str], None],
) -> OutputRecord | None:
    """The record of `output` if this job has finished it and it is intact; else None.

    None means that the file may be written; `log` gets the reason why an existing one is rewritten.
    Without `overwrite`, raises `ConfirmationRequired` if that would replace a file of another
    source, a file changed since, or one of unknown origin. A link is replaced; its target stays.
    Raises `ResourceError` when `output` is a folder.
    """
    if output.is_dir():
        raise ResourceError(
            f"The output {output} is a folder.",
            "A file would be written under this name.",
            "Remove or rename the folder, or choose another --output-dir.",
        )
    record = read_record(output)
    known_source = record is not None and record.identity.get(_SOURCE) == identity[_SOURCE]
    unchanged = (
        record is not None
        and known_source
        and output.exists()
        and sha256_of(output) == record.sha256
    )
    if record is not None and unchanged and record.identity == identity:
        return record
    if overwrite or output.is_symlink() or not output.exists():
        return None
    if record is None:
        raise ConfirmationRequired(
            f"The file {output} exists, and it is not known to be made from {source}.",
            f"It has no readable record {record_path(output).name}, so another model or tool may "
            "have made it.",
            _REPLACE_HINT,
        )
    if not known_source:
        raise ConfirmationRequired(
            f"The file {output} was made from another model.",
            f"It comes from {record.source} ({_short(record.identity)}); this run would make it from "
            f"{source} ({_short(identity)}).",
            _REPLACE_HINT,
        )
    if not unchanged:
        raise ConfirmationRequired(
            f"The file {output} was changed after it was made from {source}.",
            "Its SHA-256 differs from its record.",
            _REPLACE_HINT,
        )
    log(f"Rewriting: {'; '.join(differences(record.identity, identity))}.")
    return None


def _short(identity: Mapping[str, str]) -> str:
    return f"content {identity.get(_SOURCE, 'unknown')[:12]}"


def differences(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """The differences between the jobs `old` and `new`, in words."""
    return [
        f"{key.replace('_', ' ')} was {old.get(key, 'unknown')}, is {new.get(key, 'unknown')}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
