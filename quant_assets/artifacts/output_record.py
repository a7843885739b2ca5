"""Which job made a file: `<file>.job.json` beside it, by which a later run knows what lies there.

The record is written before the file gets its name, so that there is no moment at which a finished
file has none. A file that is replaced only with the user's agreement is one that this project did
not make, that somebody changed, or that was made of another source.
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
_MAX_BYTES = 1_000_000  # records have a few thousand
_SOURCE = "source"
_AGREE = "Choose another --output-dir, or replace the file with --overwrite."


class OutputRecord(BaseModel):
    """What made a file.

    `source` is the path of the model; `identity` everything that decides the file's bytes, with the
    source's content hash under `source`; `result` what the run reported.
    """

    source: str
    identity: dict[str, str]
    sha256: str
    result: dict[str, Any]


def record_path(output: Path) -> Path:
    """Where the record of the file `output` lies."""
    return output.with_name(f"{output.name}{_SUFFIX}")


class RecordedJob(Protocol):
    """A job that writes one file; `record` says whether a record is wanted."""

    source: Path
    output: Path
    record: bool


def settle_record(
    job: RecordedJob, identity: Mapping[str, str], sha256: str, result: BaseModel
) -> None:
    """Write the record of a file that is about to get its name, or remove an earlier file's."""
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
    """The record of `output`; None where there is none that can be read."""
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
    report: Callable[[str], None],
) -> OutputRecord | None:
    """The record of `output` when this very job has finished it and it is whole; else None.

    None means that the file may be made; `report` is told why one that is there is made anew.
    Without `overwrite`, raises `ConfirmationRequired` where that would replace a file of another
    source, a file that was changed since, or one that is not known. A link is a name only: it is
    replaced, and what it points to stays. Raises `ResourceError` when `output` is a folder.
    """
    if output.is_dir():
        raise ResourceError(
            f"The output {output} is a folder.",
            "A file is to be written under this name.",
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
            f"The file {output} exists, and nothing says that it was made of {source}.",
            f"It has no readable record {record_path(output).name}, so another model or tool may "
            "have made it.",
            _AGREE,
        )
    if not known_source:
        raise ConfirmationRequired(
            f"The file {output} was made of another model.",
            f"It comes from {record.source} ({_short(record.identity)}); this run would make it of "
            f"{source} ({_short(identity)}).",
            _AGREE,
        )
    if not unchanged:
        raise ConfirmationRequired(
            f"The file {output} was changed after it was made of {source}.",
            "Its SHA-256 is not that of its record.",
            _AGREE,
        )
    report(f"Made anew: {'; '.join(differences(record.identity, identity))}.")
    return None


def _short(identity: Mapping[str, str]) -> str:
    return f"content {identity.get(_SOURCE, 'unknown')[:12]}"


def differences(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """In words, what makes the job `new` another one than `old`."""
    return [
        f"{key.replace('_', ' ')} was {old.get(key, 'unknown')}, is {new.get(key, 'unknown')}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
