"""A model or artifact on disk, described from its headers and manifest."""

from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from quant_assets.artifacts.manifest import manifest_of
from quant_assets.models.inspection import inspect_model
from quant_assets.models.stored_quantization import StoredFormat, StoredMethod, detect_quantization


class ModelDescription(BaseModel):
    """A model on disk and, from `job` on, the making of an artifact; null for any other model.

    `bits_per_weight` counts all weight data over all parameters, `tensors_by_type` tensors.
    """

    model_config = ConfigDict(frozen=True)

    path: str
    format: StoredFormat
    intent: StoredMethod
    architecture: str
    parameters: int
    layers: int
    context_length: int | None
    bits_per_weight: float
    weights_bytes: int
    tensors_by_type: dict[str, int]
    job: str | None = None
    status: Literal["valid", "rejected"] | None = None
    level: str | None = None
    settings: dict[str, str | int | float | bool] | None = None
    source: str | None = None
    perplexity: float | None = None
    perplexity_standard_error: float | None = None
    made_at: datetime | None = None
    made_with: dict[str, str] | None = None


def describe_model(path: Path) -> ModelDescription:
    """Format, bits per weight, shape and sizes (bytes) of a model and, for an artifact, its job.

    Raises `InputError` when `path` does not hold a model, or a damaged one.
    """
    manifest = manifest_of(path)
    model = path
    if path.is_dir() and manifest is not None and manifest.job.target_format == "gguf":
        model = path / manifest.files[0].name
    stored = detect_quantization(model)
    shape = inspect_model(model)
    weights_bytes = shape.weights_bytes or 0
    description = ModelDescription(
        path=str(path),
        format=stored.format,
        intent=stored.method,
        architecture=shape.architecture,
        parameters=shape.n_parameters,
        layers=shape.n_layers,
        context_length=shape.context_length,
        bits_per_weight=round(8 * weights_bytes / shape.n_parameters, 4),
        weights_bytes=weights_bytes,
        tensors_by_type=shape.weight_types,
    )
    if manifest is None:
        return description
    return description.model_copy(
        update={
            "job": manifest.job_id,
            "status": manifest.status,
            "level": manifest.job.level,
            "settings": manifest.job.parameters,
            "source": manifest.source_provenance,
            "perplexity": manifest.perplexity,
            "perplexity_standard_error": manifest.validation.get("perplexity_standard_error"),
            "made_at": manifest.created_at,
            "made_with": manifest.engine,
        }
    )
