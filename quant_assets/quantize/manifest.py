"""The manifest of an artifact: what it is, how it was made, and how it was judged."""

import datetime
from typing import Literal

from pydantic import BaseModel

from quant_assets.quantize.job import JobSpec

MANIFEST_NAME = "manifest.json"


class ArtifactFile(BaseModel):
    """One file of an artifact, by its name inside the artifact's folder."""

    name: str
    size_bytes: int
    sha256: str


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
    files: list[ArtifactFile]
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
