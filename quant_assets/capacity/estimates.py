"""Memory estimates for a model on disk, a published shape, or a mere number of parameters."""

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from quant_assets.capacity.allocator import MAX_VOCABULARY, AllocationJob, ask_allocator
from quant_assets.capacity.device_memory import shares_memory_with_system
from quant_assets.capacity.memory import (
    MemoryEstimate,
    Serving,
    Weights,
    estimate_memory,
    weights_at_level,
)
from quant_assets.capacity.placement import ON_GPUS, GpuFit, Offload, fit
from quant_assets.capacity.reference_models import nearest_reference, reference_models
from quant_assets.errors import InputError, QuantAssetsError
from quant_assets.formats.gguf_header import with_room_for_data
from quant_assets.formats.gguf_levels import parse_level
from quant_assets.formats.group_quantization import parse_group_quantization
from quant_assets.gpus.registry import GpuRegistry
from quant_assets.models.hf_config import read_config
from quant_assets.models.inspection import ModelShape, inspect_model
from quant_assets.models.source import resolve_source
from quant_assets.models.stored_quantization import quantization_config
from quant_assets.quantize.gguf.job import GgufPlanJob, plan_gguf
from quant_assets.settings import Settings

DEFAULT_LEVEL: Final = "Q4_K_M"

_COUNT = re.compile(r"^(\d+(?:\.\d+)?(?:e\d{1,2})?)\s*([kmbt]?)$", re.IGNORECASE)
_FACTORS: Final = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
_PLAUSIBLE_PARAMETERS: Final = (1e4, 1e14)
_FLOAT_TYPES: Final = {"F32", "F16", "BF16"}


def parse_parameter_count(text: str) -> int:
    """The number in `7B`, `135M`, `1.5b` or `7e9`; raises `InputError` for anything else."""
    match = _COUNT.match(text.strip())
    count = float(match[1]) * _FACTORS[match[2].lower()] if match else 0.0
    low, high = _PLAUSIBLE_PARAMETERS
    if not low <= count <= high:
        raise InputError(
            f"{text!r} is not a number of parameters.",
            f"Expected a number between {low:g} and {high:g}, with K, M, B or T.",
            "Write 7B, 135M or 1.5B.",
        )
    return round(count)


def estimate_of_size(n_parameters: int, level: str | None, serving: Serving) -> MemoryEstimate:
    """The estimate for a model of `n_parameters`, shaped like the published model nearest in size."""
    reference = nearest_reference(n_parameters)
    shape = reference.shape
    scaled = shape.model_copy(
        update={
            "n_parameters": n_parameters,
            "n_linear_parameters": round(
                shape.n_linear_parameters * n_parameters / shape.n_parameters
            ),
        }
    )
    weights = weights_at_level(scaled, level or DEFAULT_LEVEL)
    name = f"{n_parameters / 1e9:g} B parameters, layers and heads of {reference.name}"
    return estimate_memory(name, scaled, weights, serving)


def estimate_of_model(
    model: str, level: str | None, serving: Serving, settings: Settings
) -> MemoryEstimate:
    """The estimate for `model`: a local folder or GGUF file, a file in a package, a published name.

    Without a level the weights count as stored. A GGUF level of float weights is planned exactly,
    tensor by tensor, by llama.cpp's own policy in a worker. From the header of a GGUF file, which may
    lack its data, or one planned for a folder, llama.cpp's allocator answers; without one, or where
    it does not know the model, arithmetic does, and the estimate says why. Raises `InputError` for a
    missing model or an unknown level.
    """
    published = {name.casefold(): reference for name, reference in reference_models().items()}
    if (reference := published.get(model.strip().casefold())) is not None:
        weights = weights_at_level(reference.shape, level or DEFAULT_LEVEL)
        return estimate_memory(reference.name, reference.shape, weights, serving)
    path = Path(model).expanduser()
    if model.startswith("package:"):
        path = resolve_source(model, settings).path
    elif not path.exists():
        raise InputError(
            f"There is no model at {model!r}.",
            "It is neither a path nor a published shape; models on the hub are not "
            "downloaded for an estimate.",
            f"Use --params 7B, a local path, or one of {', '.join(reference_models())}.",
        )
    shape = inspect_model(path, require_data=False)
    with tempfile.TemporaryDirectory(prefix="quant-assets-") as scratch:
        source = path if path.is_dir() else with_room_for_data(path, Path(scratch))
        weights, header = _weights(source, shape, level, Path(scratch))
        return _with_allocation(
            estimate_memory(path.name, shape, weights, serving), header, serving
        )


class _Header(NamedTuple):
    """The GGUF header to ask llama.cpp about, or the reason why there is none.

    `has_level`: its tensors have the types of the level in question.
    """

    path: Path | None
    has_level: bool = False
    reason: str | None = None


def _with_allocation(estimate: MemoryEstimate, header: _Header, serving: Serving) -> MemoryEstimate:
    """`estimate` with what llama.cpp's allocator reserves, or with the reason why not."""
    if header.path is None:
        return estimate.model_copy(update={"memory_note": header.reason})
    if estimate.shape.vocab_size > MAX_VOCABULARY:
        reason = f"llama.cpp is not asked to load {estimate.shape.vocab_size:,} tokens."
        return estimate.model_copy(update={"memory_note": reason})
    try:
        job = AllocationJob(model=header.path.resolve(), servings=[serving])
        (allocation,) = ask_allocator(job).allocations
    except QuantAssetsError as error:
        return estimate.model_copy(update={"memory_note": f"{error.what} {error.why}"})
    weights, shape = estimate.weights, estimate.shape
    if header.has_level:
        weights = weights.model_copy(update={"weights_bytes": allocation.weights_bytes})
        shape = inspect_model(header.path, require_data=False)
    return estimate.model_copy(
        update={
            "weights": weights,
            "shape": shape,
            "weights_bytes": weights.weights_bytes,
            "kv_cache_bytes": allocation.state_bytes,
            "compute_bytes": allocation.compute_bytes,
            "memory_basis": "llama.cpp's allocator",
        }
    )


def _weights(
    path: Path, shape: ModelShape, level: str | None, scratch: Path
) -> tuple[Weights, _Header]:
    """The weights at `level`, and the header that llama.cpp would load them with."""
    is_folder = path.is_dir()
    is_float = set(shape.weight_types) <= _FLOAT_TYPES
    stored_type = max(shape.weight_types, key=lambda name: shape.weight_types[name])
    if level is not None and parse_group_quantization(level) is not None:
        reason = "llama.cpp does not serve GPTQ and AWQ."
        return weights_at_level(shape, level), _Header(None, reason=reason)
    if is_folder and not is_float:
        stored = _stored(path, shape, stored_type)
        weights = stored if level is None else weights_at_level(shape, level)
        return weights, _Header(None, reason="A quantized checkpoint has no GGUF header.")
    gguf_level = None if level is None else parse_level(level)
    plans_level = gguf_level is not None and is_float and not gguf_level.needs_imatrix
    if not is_folder and not plans_level:
        if gguf_level is None:
            return _stored(path, shape, stored_type), _Header(path, has_level=True)
        return weights_at_level(shape, gguf_level.name), _Header(path)
    planned_level = gguf_level.name if gguf_level is not None and plans_level else stored_type
    header = scratch / "planned.gguf"
    try:
        plan = plan_gguf(
            GgufPlanJob(
                source=path.resolve(),
                source_kind="hf" if is_folder else "gguf",
                level=planned_level,
                output=scratch / "estimate.gguf",
                header=header,
            )
        )
    except QuantAssetsError as error:
        note = _Header(None, reason=f"{error.what} {error.why}")
        if gguf_level is None:
            return _stored(path, shape, stored_type), note
        return weights_at_level(shape, gguf_level.name), note
    if gguf_level is None:
        return _stored(path, shape, stored_type), _Header(header)
    if not plans_level:
        return weights_at_level(shape, gguf_level.name), _Header(header)
    return Weights(
        level=gguf_level.name,
        weights_bytes=sum(group.size_bytes for group in plan.groups),
        basis=f"exact: every tensor in the type llama.cpp assigns (a file of {plan.file_bytes:,} bytes)",
        weight_type=gguf_level.main_type,
    ), _Header(header, has_level=True)


def _stored(path: Path, shape: ModelShape, stored_type: str) -> Weights:
    assert shape.weights_bytes is not None
    return Weights(
        level=f"as stored (mostly {stored_type})",
        weights_bytes=shape.weights_bytes,
        basis="the tensors of the files",
        weight_type=_stored_type(path, shape),
        checkpoint=path.is_dir(),
    )


def _stored_type(path: Path, shape: ModelShape) -> str:
    """The type of most stored weights, as the speed model names it."""
    assert shape.tensor_roles is not None
    stored = quantization_config(read_config(path)) if path.is_dir() else None
    if stored is not None and stored.quant_method in ("gptq", "awq") and stored.bits is not None:
        return f"{stored.quant_method}-{stored.bits}bit"
    return shape.tensor_roles.main_type


def fits(
    estimate: MemoryEstimate,
    registry: GpuRegistry,
    gpu_names: Sequence[str] = (),
    reserve_gb: float | None = None,
    *,
    cards: int = 1,
    offload: Offload | None = ON_GPUS,
) -> list[GpuFit]:
    """How `cards` cards of each named GPU fit `estimate`; without names, of every GPU that holds a copy.

    A family's name selects all its variants. Smallest memory first. `offload` is that of `fit`.
    Raises `InputError` for an unknown name, or an `offload` that the model does not allow.
    """
    if gpu_names:
        gpus = [gpu for name in gpu_names for gpu in registry.variants(name)]
        return [fit(estimate, gpu, reserve_gb, cards=cards, offload=offload) for gpu in gpus]
    partly_on_host = offload != ON_GPUS
    every = [
        fit(estimate, gpu, reserve_gb, cards=cards, offload=offload)
        for gpu in registry.all
        if not (partly_on_host and shares_memory_with_system(gpu))
    ]
    holding = [candidate for candidate in every if candidate.copies]
    return sorted(holding, key=lambda candidate: (candidate.vram_gb, candidate.gpu))
