"""A model or artifact on disk, described from its headers and manifest."""

from pathlib import Path
from typing import Any

from quant_assets.artifacts.manifest import manifest_of
from quant_assets.models.inspection import inspect_model
from quant_assets.models.stored_quantization import detect_quantization


def describe_model(path: Path) -> dict[str, Any]:
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
    facts: dict[str, Any] = {
        "path": str(path),
        "format": stored.format,
        "intent": stored.method,
        "architecture": shape.architecture,
        "parameters": shape.n_parameters,
        "layers": shape.n_layers,
        "context_length": shape.context_length,
        "bits_per_weight": round(8 * weights_bytes / shape.n_parameters, 4),
        "weights_bytes": weights_bytes,
        "tensors_by_type": shape.weight_types,
    }
    if manifest is not None:
        facts |= {
            "job": manifest.job_id,
            "status": manifest.status,
            "level": manifest.job.level,
            "settings": manifest.job.parameters,
            "source": manifest.source_provenance,
            "perplexity": manifest.perplexity,
            "made_at": manifest.created_at.isoformat(),
            "made_with": manifest.engine,
        }
    return facts
