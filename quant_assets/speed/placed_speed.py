"""Decoding speed of a copy that is split over several GPUs, or lies partly in host memory.

The stages of one batch of sequences run one after another, so a step takes the sum of their times and
of the transfers of activations between them: a split is never faster than one GPU that held it all.
With several micro-batches in flight the slowest stage bounds the throughput instead.

The GPUs' part follows the speed model; the host reads its weights and its KV cache at a share of its
memory bandwidth.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from pydantic import BaseModel, ConfigDict

from quant_assets.capacity.device_memory import PlacementSettings, placement_settings
from quant_assets.capacity.memory import MemoryEstimate
from quant_assets.capacity.placement import (
    CopyParts,
    DeviceShare,
    GpuFit,
    Placement,
    copy_parts,
    llama_server_options,
)
from quant_assets.gpus.registry import Gpu, GpuRegistry
from quant_assets.models.inspection import ModelShape
from quant_assets.speed.model import BACKEND_OF_VENDOR, SpeedModel
from quant_assets.speed.needs import (
    attention_flops,
    kv_read_bytes,
    touched_linear_parameters,
    unused_share,
)
from quant_assets.speed.workload import Prediction, Workload

_ACTIVATION_BYTES: Final = 4
"""llama.cpp passes activations on in F32."""


class CopySpeed(BaseModel):
    """Decoding of one copy at half of its context, in tokens/s of all its sequences together.

    `low` and `high`: with the GPUs and the host both at the slow, or both at the fast, end of their
    90 % intervals. A step takes `gpu_ms`, `host_ms` and `transfer_ms`. `slowest_stage_tokens_per_s`
    bounds the throughput with several micro-batches in flight; None for a single stage. `rests_on`
    and `runs` say what the GPUs' part rests on; `host_gb_s` is the bandwidth that the host's reaches.
    """

    model_config = ConfigDict(frozen=True)

    decode_tokens_per_s: float
    decode_tokens_per_s_low: float
    decode_tokens_per_s_high: float
    slowest_stage_tokens_per_s: float | None
    gpu_ms: float
    host_ms: float
    transfer_ms: float
    rests_on: str | None
    runs: int | None
    host_gb_s: float | None


class PlacedFit(GpuFit):
    """How a GPU fits, with the speed of one copy on the fewest GPUs that hold it.

    `speed` is None where the registry lacks a figure of the GPU. `llama_server_options` realize the
    placement; there are none for engines of checkpoints.
    """

    speed: CopySpeed | None
    llama_server_options: list[str]


class _Traffic(NamedTuple):
    """Bytes that a decoding step reads in one place."""

    weights: float
    kv: float

    @property
    def total(self) -> float:
        return self.weights + self.kv


def transfer_seconds(hidden_size: int, batch: int, crossings: int) -> float:
    """Time of a step's `crossings` between devices, each with the activations of `batch` tokens."""
    settings = placement_settings()
    activations = hidden_size * _ACTIVATION_BYTES * batch
    return crossings * (settings.link_latency_us / 1e6 + activations / (settings.link_gb_s * 1e9))


def with_speeds(
    found: Sequence[GpuFit],
    estimate: MemoryEstimate,
    model: SpeedModel,
    registry: GpuRegistry,
    host_bandwidth_gb_s: float | None = None,
) -> list[PlacedFit]:
    """Each of `found`, the fits of `estimate`, with its speed (see `placed_speeds`) and options."""
    placed = [
        (registry.by_name[item.gpu], item.placement) for item in found if item.placement is not None
    ]
    speeds = iter(placed_speeds(model, estimate, placed, host_bandwidth_gb_s))
    return [
        PlacedFit(
            **dict(item),
            speed=next(speeds) if item.placement is not None else None,
            llama_server_options=[]
            if item.placement is None or estimate.weights.checkpoint
            else llama_server_options(item.placement),
        )
        for item in found
    ]


def placed_speeds(
    model: SpeedModel,
    estimate: MemoryEstimate,
    placements: Sequence[tuple[Gpu, Placement]],
    host_bandwidth_gb_s: float | None = None,
) -> list[CopySpeed | None]:
    """The speed of each placement of `estimate` on devices of a GPU; None where the model lacks one.

    `host_bandwidth_gb_s` replaces the assumed peak of the host's memory.
    """
    parts = copy_parts(estimate)
    on_gpus = [
        (gpu, _gpu_workload(estimate, parts, gpu, placement))
        for gpu, placement in placements
        if placement.devices
    ]
    predictions = iter(model.predict([gpu for gpu, _ in on_gpus], [work for _, work in on_gpus]))
    settings = placement_settings()
    if host_bandwidth_gb_s is not None:
        settings = settings.model_copy(update={"host_bandwidth_gb_s": host_bandwidth_gb_s})
    speeds: list[CopySpeed | None] = []
    for _, placement in placements:
        prediction = next(predictions) if placement.devices else None
        if placement.devices and prediction is None:
            speeds.append(None)
        else:
            speeds.append(_speed(estimate, parts, placement, prediction, settings))
    return speeds


def _speed(
    estimate: MemoryEstimate,
    parts: CopyParts,
    placement: Placement,
    prediction: Prediction | None,
    settings: PlacementSettings,
) -> CopySpeed:
    batch, efficiency = estimate.batch, settings.host_efficiency
    on_host = _host_traffic(estimate, parts, placement).total
    peak = settings.host_bandwidth_gb_s * 1e9
    transfer_s = transfer_seconds(estimate.shape.hidden_size, batch, _crossings(placement))
    gpu_s = [0.0, 0.0, 0.0]
    if prediction is not None:
        gpu_s = [
            batch / rate for rate in (prediction.low, prediction.tokens_per_s, prediction.high)
        ]
    host_s = [
        on_host / (peak * share) for share in (efficiency.low, efficiency.middle, efficiency.high)
    ]
    low, middle, high = (
        batch / (gpu + host + transfer_s) for gpu, host in zip(gpu_s, host_s, strict=True)
    )
    read = [_traffic(estimate, parts, share).total for share in placement.devices]
    stages = [gpu_s[1] * stage / sum(read) for stage in read] + ([host_s[1]] if on_host else [])
    return CopySpeed(
        decode_tokens_per_s=middle,
        decode_tokens_per_s_low=low,
        decode_tokens_per_s_high=high,
        slowest_stage_tokens_per_s=batch / max(stages) if len(stages) > 1 else None,
        gpu_ms=1e3 * gpu_s[1],
        host_ms=1e3 * host_s[1],
        transfer_ms=1e3 * transfer_s,
        rests_on=prediction.rests_on if prediction else None,
        runs=prediction.runs if prediction else None,
        host_gb_s=settings.host_bandwidth_gb_s * efficiency.middle if on_host else None,
    )


def _crossings(placement: Placement) -> int:
    """Transfers of activations in a step: between neighbouring stages, and out of a layer that runs
    on a GPU to its experts in host memory and back.
    """
    devices, host = placement.devices, placement.host
    if not devices:
        return 0
    to_experts = max(0, placement.cpu_moe_layers - host.n_layers)
    return len(devices) - 1 + (host.n_layers > 0) + 2 * to_experts


def _gpu_workload(
    estimate: MemoryEstimate, parts: CopyParts, gpu: Gpu, placement: Placement
) -> Workload:
    """A decoding step of the part on GPUs, as if one of them ran it."""
    shape, batch = estimate.shape, estimate.batch
    everywhere = [_traffic(estimate, parts, share) for share in placement.devices]
    host = _host_traffic(estimate, parts, placement)
    on_gpus = _Traffic(
        sum(item.weights for item in everywhere), sum(item.kv for item in everywhere)
    )
    weights_share = on_gpus.weights / (on_gpus.weights + host.weights)
    kv_share = on_gpus.kv / (on_gpus.kv + host.kv) if on_gpus.kv else 0.0
    read_tokens = estimate.context / 2
    return Workload(
        phase="decode",
        engine="transformers" if estimate.weights.checkpoint else "llama.cpp",
        backend=BACKEND_OF_VENDOR[gpu.vendor],
        weight_type=estimate.weights.weight_type,
        weight_bytes=on_gpus.weights,
        parameters=weights_share
        * (touched_linear_parameters(shape, 1) + shape.vocab_size * shape.hidden_size),
        layers=max(1, sum(share.n_layers for share in placement.devices)),
        batch=batch,
        tokens=batch,
        tokens_per_pass=batch,
        kv_bytes=on_gpus.kv,
        attention_flops=kv_share * batch * attention_flops(shape, read_tokens),
        sparse=shape.n_experts > 0,
        flash_attention=estimate.serving.flash_attention,
    )


def _traffic(estimate: MemoryEstimate, parts: CopyParts, share: DeviceShare) -> _Traffic:
    """What a step reads of `share`: all but unused experts and an embedding, and half of the cache."""
    shape = estimate.shape
    weights = share.weights_bytes - share.expert_bytes * unused_share(shape, estimate.batch)
    if share.first_layer == 0:
        weights -= parts.embedding_on_gpu
    cache = estimate.kv_cache_bytes
    kv = _kv_read_bytes(shape, estimate) * share.kv_cache_bytes / cache if cache else 0.0
    return _Traffic(weights, kv)


def _host_traffic(estimate: MemoryEstimate, parts: CopyParts, placement: Placement) -> _Traffic:
    weights, kv = _traffic(estimate, parts, placement.host)
    return _Traffic(weights - parts.embedding, kv)


def _kv_read_bytes(shape: ModelShape, estimate: MemoryEstimate) -> float:
    return estimate.batch * kv_read_bytes(shape, estimate.serving, estimate.context / 2)
