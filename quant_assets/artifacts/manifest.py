"""The manifest of an artifact: its content, its making and its validation."""

import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, TypeAdapter, field_validator

from quant_assets.artifacts.job import JobSpec
from quant_assets.errors import InputError
from quant_assets.formats.safetensors_header import is_plain_name
from quant_assets.processes.quantization_job import QuantizationJob
from quant_assets.record_files import MAX_BYTES, UtcTime, read_record

MANIFEST_NAME = "manifest.json"
MAX_PARAMETERS = 10**14
MAX_BITS_PER_WEIGHT = 1000


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
    tensors by type. `engine` names the pass that wrote the file, `validation` the findings from
    loading it. Times are seconds, sizes and memory bytes (see `MemoryUsage`); null means not
    measured. `quantization_job` is the final state of the run that made the artifact.
    """

    job: JobSpec
    job_id: str
    status: Literal["valid", "rejected"]
    rejection: str | None = None
    source_provenance: str
    files: list[ArtifactFile] = Field(min_length=1)
    n_parameters: int = Field(ge=0, le=MAX_PARAMETERS)
    bits_per_weight: float = Field(ge=0, le=MAX_BITS_PER_WEIGHT)
    tensor_types: dict[str, int]
    engine: dict[str, str]
    validation: dict[str, str | int | float | bool | None]
    perplexity: float | None = None
    seconds: float
    peak_rss_bytes: int | None = None
    peak_own_bytes: int | None = None
    peak_vram_bytes: int | None = None
    quantization_job: QuantizationJob | None = None
    created_at: UtcTime

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size_bytes for file in self.files)


_MANIFEST = TypeAdapter(ArtifactManifest)


def read_manifest(folder: Path) -> ArtifactManifest | None:
    """The manifest of the artifact in `folder`; None where there is no manifest.json.

    Raises `InputError` for a file that is damaged or not the manifest of an artifact.
    """
    path = folder / MANIFEST_NAME
    if not os.path.lexists(path):
        return None
    next_step = "Rebuild the artifact, or remove the file if it belongs to something else."
    return read_record(path, _MANIFEST, "artifact's manifest", next_step)


def manifest_of(path: Path) -> ArtifactManifest | None:
    """The manifest of the artifact at `path`, a folder or one of its files; None if there is none.

    A manifest beside a file counts only if it lists the file. Raises `InputError` for a damaged
    manifest of a folder, or of a file whose name it contains.
    """
    if path.is_dir():
        return read_manifest(path)
    try:
        manifest = read_manifest(path.parent)
    except InputError:
        if os.fsencode(path.name) in _content(path.parent / MANIFEST_NAME):
            raise
        return None
    named = {entry.name for entry in manifest.files} if manifest is not None else set()
    return manifest if path.name in named else None


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() and path.stat().st_size <= MAX_BYTES else b""
