"""Which GPUs hold a served copy of a model: whole copies side by side, or one split over several.

A split follows llama.cpp's `--split-mode layer`: every device holds a contiguous run of layers with
their KV cache and a compute buffer of its own, the last one the output head as well. llama.cpp keeps
the input embedding, of which a token reads one row, in host memory; engines of GPTQ and AWQ
checkpoints keep it on the first device. `estimate`, `detailed_capacity` and the marts all take their
answers from `fit`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, isclose
from typing import Final, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, computed_field

from quant_assets.capacity.device_memory import (
    DeviceBudget,
    device_budget,
    shares_memory_with_system,
)
from quant_assets.capacity.memory import MemoryEstimate, layer_cache_bytes
from quant_assets.errors import InputError
from quant_assets.formats.ggml_types import ggml_type
from quant_assets.formats.group_quantization import UNQUANTIZED_BITS
from quant_assets.gpus.registry import Gpu
from quant_assets.models.inspection import LayerWeights
from quant_assets.models.weight_parts import WeightParts, spread, stored_parts, typical_parts

MAX_CARDS: Final = 1024
"""A bound that catches typos."""

_OUTPUT_TYPE: Final = "Q6_K"
"""llama.cpp's mixtures store the output head in it at least (`llama_tensor_get_type`)."""


_SAME_FILES: Final = 0.02
"""Up to this difference the weights are those of the files: rounded, or padded by the allocator."""


class Offload(BaseModel):
    """What stays in host memory, in the words of llama.cpp's command line.

    Of the layers and the output head after them, the last `gpu_layers` lie on GPUs (`-ngl`; None:
    all). Of the first `cpu_moe_layers` layers the experts stay in host memory (`--n-cpu-moe`).
    """

    model_config = ConfigDict(frozen=True)

    gpu_layers: int | None = Field(default=None, ge=0)
    cpu_moe_layers: int = Field(default=0, ge=0)

    @property
    def keeps_all_on_gpus(self) -> bool:
        """Whether nothing that a GPU can hold is left in host memory."""
        return self.gpu_layers is None and not self.cpu_moe_layers


ON_GPUS: Final = Offload()


class LayerNeeds(NamedTuple):
    """Bytes of one layer: weights except experts, experts, KV cache of all sequences."""

    dense: int
    experts: int
    kv: int


@dataclass(frozen=True, slots=True)
class CopyParts:
    """Bytes of one served copy by part; `compute` is needed on every device that runs layers.

    `embedding` is the input embedding in host memory; with `embedding_on_gpu` it is part of the first
    layer instead.
    """

    layers: tuple[LayerNeeds, ...]
    output: int
    embedding: int
    compute: int
    embedding_on_gpu: int = 0


class DeviceShare(BaseModel):
    """What one device, or the host, holds of a copy. `first_layer` is None where it has no layer.

    Of `n_layers` layers from `first_layer` on it holds everything that is not in host memory.
    `expert_bytes` of its `weights_bytes` are experts of which a router chooses some per token.
    """

    model_config = ConfigDict(frozen=True)

    first_layer: int | None
    n_layers: int
    holds_output: bool
    weights_bytes: int
    expert_bytes: int
    kv_cache_bytes: int
    compute_bytes: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def total_bytes(self) -> int:
        """Everything that the device holds."""
        return self.weights_bytes + self.kv_cache_bytes + self.compute_bytes


class Placement(BaseModel):
    """One copy on equal devices, in the order of its layers, and its part in host memory."""

    model_config = ConfigDict(frozen=True)

    devices: list[DeviceShare]
    host: DeviceShare
    gpu_layers: int
    cpu_moe_layers: int


class GpuFit(BaseModel):
    """How one or several cards of a GPU fit an estimate.

    `copies` independent copies run on `cards` cards together; each spans `gpus_per_copy` GPUs (a
    card may be several) or `cards_for_one_copy` cards, the fewest that hold one. Both are None if no
    number of them does: a layer exceeds a GPU. `placement` is that of one copy on them.
    """

    model_config = ConfigDict(frozen=True)

    gpu: str
    vram_gb: float
    usable_gb: float
    cards: int
    copies: int
    gpus_per_copy: int | None
    cards_for_one_copy: int | None
    placement: Placement | None


def copy_parts(estimate: MemoryEstimate) -> CopyParts:
    """The bytes of `estimate` by part; they sum to its weights and KV cache."""
    parts = _weight_parts(estimate)
    layers = list(parts.layers)
    embedding_on_gpu = parts.embedding if estimate.weights.checkpoint else 0
    layers[0] = LayerWeights(layers[0].dense + embedding_on_gpu, layers[0].experts)
    return CopyParts(
        layers=tuple(
            LayerNeeds(layer.dense, layer.experts, kv)
            for layer, kv in zip(layers, _kv_by_layer(estimate), strict=True)
        ),
        output=parts.output,
        embedding=parts.embedding - embedding_on_gpu,
        compute=estimate.compute_bytes,
        embedding_on_gpu=embedding_on_gpu,
    )


def fit(
    estimate: MemoryEstimate,
    gpu: Gpu,
    reserve_gb: float | None = None,
    *,
    cards: int = 1,
    offload: Offload | None = ON_GPUS,
) -> GpuFit:
    """How `cards` cards of `gpu` fit `estimate`; `reserve_gb` replaces the setting's reserve.

    Without an `offload`, the smallest with which they hold a copy. Raises `InputError` for one that
    the model does not allow.
    """
    budget, parts = device_budget(gpu, reserve_gb), copy_parts(estimate)
    if offload != ON_GPUS and estimate.weights.checkpoint:
        raise InputError(
            f"A copy at {estimate.level} cannot lie partly in host memory.",
            "Only llama.cpp, which runs GGUF files, computes a part of a model on the CPU.",
            "Choose a GGUF level with --level, or let a copy span several cards with --gpus.",
        )
    if offload != ON_GPUS and shares_memory_with_system(gpu):
        raise InputError(
            f"A copy on {gpu.canonical_name} cannot lie partly in host memory.",
            "The GPU has no memory of its own: it shares the system's.",
            "Leave out --gpu-layers, --n-cpu-moe and --offload for it.",
        )
    if offload is None:
        offload = smallest_offload(parts, budget, cards * gpu.devices)
    placement = place(parts, budget, offload)
    spanned = len(placement.devices) if placement else None
    return GpuFit(
        gpu=gpu.canonical_name,
        vram_gb=gpu.vram_gb,
        usable_gb=budget.usable_bytes * gpu.devices / 1e9,
        cards=cards,
        copies=copies_held(parts, budget, cards * gpu.devices, offload),
        gpus_per_copy=spanned,
        cards_for_one_copy=None if spanned is None else ceil(spanned / gpu.devices),
        placement=placement,
    )


def gpus_per_copy(parts: CopyParts, budget: DeviceBudget, offload: Offload = ON_GPUS) -> int | None:
    """The fewest devices of `budget` that hold a copy; None if a single layer exceeds one."""
    sizes = _device_items(parts, offload)
    limit = budget.usable_bytes - parts.compute
    if sizes and max(sizes) > limit:
        return None
    return len(_filled(sizes, limit)) if sizes else 0


def copies_held(
    parts: CopyParts, budget: DeviceBudget, devices: int, offload: Offload = ON_GPUS
) -> int:
    """How many copies `devices` equal devices hold.

    A copy that fits on one device never spans two. Every copy is a process of its own and keeps the
    reserve free. With layers or experts in host memory at most one counts, since copies would share
    its bandwidth.
    """
    spanned = gpus_per_copy(parts, budget, offload)
    if spanned is None:
        return 0
    if spanned == 0:
        return 1
    copies = devices // spanned
    if spanned == 1:
        needed = sum(_device_items(parts, offload)) + parts.compute + budget.reserve_bytes
        copies = devices * (budget.capacity_bytes // needed)
    return copies if offload.keeps_all_on_gpus else min(copies, 1)


def place(parts: CopyParts, budget: DeviceBudget, offload: Offload = ON_GPUS) -> Placement | None:
    """The copy on the fewest devices of `budget` that hold it, balanced by bytes.

    None if a single layer exceeds a device. Raises `InputError` for an impossible `offload`.
    """
    gpu_layers = _checked_gpu_layers(parts, offload)
    first = len(parts.layers) + 1 - gpu_layers
    resident = _resident_layers(parts, offload)
    counts = _fewest_balanced(_device_items(parts, offload), budget.usable_bytes - parts.compute)
    if counts is None:
        return None
    devices, start = [], 0
    for count in counts:
        held = resident[start : start + count]
        has_output = start + count > len(resident)
        devices.append(
            DeviceShare(
                first_layer=first + start if held else None,
                n_layers=len(held),
                holds_output=has_output,
                weights_bytes=sum(layer.dense + layer.experts for layer in held)
                + (parts.output if has_output else 0),
                expert_bytes=sum(layer.experts for layer in held),
                kv_cache_bytes=sum(layer.kv for layer in held),
                compute_bytes=parts.compute,
            )
        )
        start += count
    return Placement(
        devices=devices,
        host=_host_share(parts, first, offload.cpu_moe_layers),
        gpu_layers=gpu_layers,
        cpu_moe_layers=offload.cpu_moe_layers,
    )


def smallest_offload(parts: CopyParts, budget: DeviceBudget, devices: int) -> Offload:
    """The least that must stay in host memory so that `devices` devices hold the rest.

    Experts go first, from the first layer on; then whole layers. Nothing at all may be left on the
    devices.
    """

    def is_held(offload: Offload) -> bool:
        spanned = gpus_per_copy(parts, budget, offload)
        return spanned is not None and spanned <= devices

    n_layers = len(parts.layers)
    has_experts = any(layer.experts for layer in parts.layers)
    kept_experts = n_layers if has_experts else 0
    tried = [
        *(Offload(cpu_moe_layers=layers) for layers in range(kept_experts + 1)),
        *(
            Offload(gpu_layers=layers, cpu_moe_layers=kept_experts)
            for layers in range(n_layers, 0, -1)
        ),
    ]
    return next((offload for offload in tried if is_held(offload)), Offload(gpu_layers=0))


def llama_server_options(placement: Placement) -> list[str]:
    """The options of `llama-server` that realize `placement`."""
    options = ["--n-gpu-layers", str(placement.gpu_layers)]
    if placement.cpu_moe_layers:
        options += ["--n-cpu-moe", str(placement.cpu_moe_layers)]
    if len(placement.devices) > 1:
        counts = [share.n_layers + share.holds_output for share in placement.devices]
        options += ["--split-mode", "layer", "--tensor-split", ",".join(map(str, counts))]
    return options


def _checked_gpu_layers(parts: CopyParts, offload: Offload) -> int:
    n_layers = len(parts.layers)
    if offload.cpu_moe_layers and not any(layer.experts for layer in parts.layers):
        raise InputError(
            "This model has no experts to keep in host memory.",
            "It is dense: every token uses all of its weights.",
            "Leave whole layers in host memory with --gpu-layers.",
        )
    if offload.cpu_moe_layers > n_layers:
        raise InputError(
            f"The experts of {offload.cpu_moe_layers} layers cannot stay in host memory.",
            f"The model has {n_layers} layers.",
            f"Use --n-cpu-moe {n_layers} for all of them.",
        )
    if offload.gpu_layers is not None and offload.gpu_layers > n_layers + 1:
        raise InputError(
            f"{offload.gpu_layers} layers cannot be put on GPUs.",
            f"The model has {n_layers} layers and its output head, which counts as one more.",
            f"Use --gpu-layers {n_layers + 1} for all of them.",
        )
    return n_layers + 1 if offload.gpu_layers is None else offload.gpu_layers


def _resident_layers(parts: CopyParts, offload: Offload) -> list[LayerNeeds]:
    """What GPUs hold of the layers that they run."""
    first = len(parts.layers) + 1 - _checked_gpu_layers(parts, offload)
    return [
        layer._replace(experts=0) if index < offload.cpu_moe_layers else layer
        for index, layer in enumerate(parts.layers)
    ][first:]


def _device_items(parts: CopyParts, offload: Offload) -> list[int]:
    """Bytes of each item that GPUs hold and no split divides: layers, then the output."""
    sizes = [sum(layer) for layer in _resident_layers(parts, offload)]
    return [*sizes, parts.output] if offload.gpu_layers != 0 else []


def _host_share(parts: CopyParts, first_gpu_layer: int, cpu_moe_layers: int) -> DeviceShare:
    on_host = parts.layers[:first_gpu_layer]
    has_output = first_gpu_layer > len(parts.layers)
    expert_bytes = sum(layer.experts for layer in parts.layers[: max(len(on_host), cpu_moe_layers)])
    used_bytes = (
        sum(layer.dense for layer in on_host) + expert_bytes + (parts.output if has_output else 0)
    )
    return DeviceShare(
        first_layer=0 if on_host else None,
        n_layers=len(on_host),
        holds_output=has_output,
        weights_bytes=used_bytes + parts.embedding,
        expert_bytes=expert_bytes,
        kv_cache_bytes=sum(layer.kv for layer in on_host),
        compute_bytes=parts.compute if used_bytes else 0,
    )


def _fewest_balanced(sizes: Sequence[int], limit: int) -> list[int] | None:
    """How many of `sizes`, in order, each of the fewest devices gets; the fullest as empty as can be.

    None if one of them exceeds `limit`.
    """
    if not sizes:
        return []
    if max(sizes) > limit:
        return None
    fewest = len(_filled(sizes, limit))
    low, high = max(sizes), min(limit, sum(sizes))
    while low < high:
        middle = (low + high) // 2
        if len(_filled(sizes, middle)) <= fewest:
            high = middle
        else:
            low = middle + 1
    return _filled(sizes, low)


def _filled(sizes: Iterable[int], limit: int) -> list[int]:
    """How many of `sizes`, in order, fit on each device of `limit` if each is filled before the next."""
    counts, used = [0], 0
    for size in sizes:
        if used + size > limit and counts[-1]:
            counts.append(0)
            used = 0
        counts[-1] += 1
        used += size
    return counts


def _weight_parts(estimate: MemoryEstimate) -> WeightParts:
    """The parts at the estimate's level: those of the files, scaled to its bytes."""
    weights, typical = estimate.weights, typical_parts(estimate.shape)
    stored = stored_parts(estimate.shape)
    if stored is not None and isclose(stored.total, weights.weights_bytes, rel_tol=_SAME_FILES):
        return stored.rescaled(weights.weights_bytes)
    stored = stored or typical
    if weights.checkpoint:
        return stored.rescaled(
            weights.weights_bytes,
            embedding=typical.embedding * UNQUANTIZED_BITS // 8,
            output=typical.output * UNQUANTIZED_BITS // 8,
        )
    output_bits = ggml_type(_OUTPUT_TYPE).bits_per_weight
    if estimate.bits_per_weight >= output_bits:
        return stored.rescaled(weights.weights_bytes)
    return stored.rescaled(weights.weights_bytes, output=round(typical.output * output_bits / 8))


def _kv_by_layer(estimate: MemoryEstimate) -> list[int]:
    """Bytes of the KV cache per layer, in order; they sum to the estimate's."""
    shape = estimate.shape
    own = [layer_cache_bytes(shape, estimate.serving, layer) for layer in range(shape.n_layers)]
    return own if sum(own) == estimate.kv_cache_bytes else spread(estimate.kv_cache_bytes, own)
