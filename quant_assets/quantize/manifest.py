"""The manifest of an artifact: what it is, how it was made, and how it was judged."""

import datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, ValidationError, field_validator

from quant_assets.errors import InputError
from quant_assets.formats.json_files import read_json_object
from quant_assets.formats.safetensors_header import is_plain_name
from quant_assets.quantize.job import JobSpec

MANIFEST_NAME = "manifest.json"


class ArtifactFile(BaseModel):
    """One file of an artifact, by its name inside the artifact's folder."""

    name: str
    size_bytes: int
    sha256: str

    @field_validator("name")
    @classmethod
    def _inside_the_folder(cls, name: str) -> str:
        if not is_plain_name(name):
            raise ValueError(f"{name!r} is not the name of a file in the artifact's folder")
        return name


class ArtifactManifest(BaseModel):
    """`manifest.json` beside an artifact's files.

    `bits_per_weight` counts every byte of tensor data over every parameter. `tensor_types` counts
    tensors by type. `engine` names the pass that wrote the file, `validation` what was seen when
    the artifact was loaded. Times are seconds, sizes and memory bytes; null means not measured.
    """

    job: JobSpec
    job_id: str
    status: Literal["valid", "rejected"]
    rejection: str | None = None
    source_provenance: str
    files: list[ArtifactFile] = Field(min_length=1)
    n_parameters: int
    bits_per_weight: float
    tensor_types: dict[str, int]
    engine: dict[str, str]
    validation: dict[str, str | int | float | bool | None]
    perplexity: float | None = None
    seconds: float
    peak_rss_bytes: int | None = None
    created_at: datetime.datetime

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size_bytes for file in self.files)


def read_manifest(folder: Path) -> ArtifactManifest | None:
    """The manifest of the artifact in `folder`; None where there is no manifest.json.

    Raises `InputError` for a file that is damaged or is not the manifest of an artifact.
    """
    path = folder / MANIFEST_NAME
    if not path.exists():
        return None
    next_step = "Make the artifact again, or remove the file if it belongs to something else."
    content = read_json_object(path, next_step=next_step)
    try:
        return ArtifactManifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            f"The file {path} is not the manifest of an artifact.",
            f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}.",
            next_step,
        ) from error


def manifest_of(path: Path) -> ArtifactManifest | None:
    """The manifest of the artifact that `path`, a folder or one of its files, belongs to, or None.

    Raises `InputError` for a damaged manifest of a folder; one that merely lies beside a file need
    not be about it.
    """
    if path.is_dir():
        return read_manifest(path)
    try:
        manifest = read_manifest(path.parent)
    except InputError:
        return None
    named = {entry.name for entry in manifest.files} if manifest is not None else set()
    return manifest if path.name in named else None
