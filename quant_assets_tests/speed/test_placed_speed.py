"""Decoding speed of copies that span GPUs or lie partly in host memory, computed by hand."""

from collections.abc import Sequence

import pytest

from quant_assets.capacity.device_memory import DeviceBudget, placement_settings
from quant_assets.capacity.estimates import fits
from quant_assets.capacity.memory import (
    MemoryEstimate,
    Serving,
    Weights,
    estimate_memory,
    kv_cache_bytes,
    weights_at_level,
)
from quant_assets.capacity.placement import Offload, Placement, copy_parts, place
from quant_assets.capacity.reference_models import reference_models
from quant_assets.gpus.registry import Gpu, load_registry
from quant_assets.models.inspection import LayerWeights, ModelShape, TensorRoles
from quant_assets.speed.model import SpeedModel, load_speed_model
from quant_assets.speed.placed_speed import (
    CopySpeed,
    placed_speeds,
    transfer_seconds,
    with_speeds,
)
from quant_assets.speed.workload import Prediction, Workload

REGISTRY = load_registry()
RTX_3090 = REGISTRY.get("GeForce RTX 3090")
BANDWIDTH = 936e9
GB = 10**9

# 4 layers of 0.5 GB and 8 GB of experts, of which a token uses an eighth; output and embedding 1 GB.
MIXTURE = ModelShape(
    architecture="test",
    n_layers=4,
    hidden_size=4096,
    intermediate_size=4096,
    n_heads=32,
    kv_heads_by_layer=(8,) * 4,
    head_dim_k=128,
    head_dim_v=128,
    vocab_size=32000,
    n_experts=32,
    n_experts_used=4,
    n_parameters=72 * GB,
    n_linear_parameters=68 * GB,
    weights_bytes=36 * GB,
    tensor_roles=TensorRoles(
        main_type="Q4_0", lookup_bytes=GB, expert_bytes=32 * GB, expert_parameters=64 * GB
    ),
    layer_weights=(LayerWeights(GB // 2, 8 * GB),) * 4,
)


class Roofline(SpeedModel):
    """Reads at exactly the bandwidth of the GPU; the interval is a tenth to each side."""

    def predict(
        self, gpus: Sequence[Gpu], workloads: Sequence[Workload]
    ) -> list[Prediction | None]:
        found: list[Prediction | None] = []
        for gpu, work in zip(gpus, workloads, strict=True):
            assert gpu.memory_bandwidth_gb_s is not None
            seconds = (work.weight_bytes + work.kv_bytes) / (gpu.memory_bandwidth_gb_s * 1e9)
            rate = work.tokens / seconds
            found.append(Prediction(rate, rate * 0.9, rate * 1.1, "this GPU", 7))
        return found


ROOFLINE = Roofline.model_construct()


def estimate_of(shape: ModelShape, batch: int = 1, context: int = 4096) -> MemoryEstimate:
    assert shape.weights_bytes is not None
    weights = Weights(level="Q4_0", weights_bytes=shape.weights_bytes, basis="", weight_type="Q4_0")
    return estimate_memory("m", shape, weights, Serving(context=context, batch=batch))


def speed_of(
    estimate: MemoryEstimate,
    capacity_gb: float,
    offload: Offload | None = None,
    bandwidth_gb_s: float | None = None,
) -> tuple[Placement, CopySpeed]:
    room = DeviceBudget(round(capacity_gb * GB), 0)
    placement = place(copy_parts(estimate), room, offload or Offload())
    assert placement is not None
    (speed,) = placed_speeds(ROOFLINE, estimate, [(RTX_3090, placement)], bandwidth_gb_s)
    assert speed is not None
    return placement, speed


def kv_read(estimate: MemoryEstimate) -> float:
    """Half of the cache: an average step is in the middle of the context."""
    return kv_cache_bytes(estimate.shape, estimate.serving) / 2


def test_a_split_takes_the_sum_of_its_stages_and_transfers() -> None:
    estimate = estimate_of(MIXTURE)
    whole, alone = speed_of(estimate, 60)
    split, several = speed_of(estimate, 20)
    assert (len(whole.devices), len(split.devices)) == (1, 2)
    # A token uses an eighth of the experts and no embedding.
    read = 4 * 0.5e9 + 32e9 / 8 + 1e9 + kv_read(estimate)
    seconds = read / BANDWIDTH
    assert alone.gpu_ms == pytest.approx(1e3 * seconds)
    assert alone.decode_tokens_per_s == pytest.approx(1 / seconds)
    assert alone.slowest_stage_tokens_per_s is None
    assert several.gpu_ms == pytest.approx(alone.gpu_ms)
    settings = placement_settings()
    hop = settings.link_latency_us / 1e6 + 4096 * 4 / (settings.link_gb_s * 1e9)
    assert several.decode_tokens_per_s == pytest.approx(1 / (seconds + hop))
    assert several.decode_tokens_per_s < alone.decode_tokens_per_s
    # The second of two stages also has the output: 2 x (0.5 + 1) + 1 GB and half of the cache.
    slowest = (4e9 + kv_read(estimate) / 2) / BANDWIDTH
    assert several.slowest_stage_tokens_per_s == pytest.approx(1 / slowest)


def test_more_devices_are_never_faster() -> None:
    estimate = estimate_of(MIXTURE, batch=8)
    speeds = [speed_of(estimate, capacity)[1] for capacity in (60, 30, 20, 12)]
    assert [speed.gpu_ms for speed in speeds] == pytest.approx([speeds[0].gpu_ms] * 4)
    rates = [speed.decode_tokens_per_s for speed in speeds]
    assert rates == sorted(rates, reverse=True)


def test_experts_in_host_memory_take_the_hosts_bandwidth() -> None:
    estimate = estimate_of(MIXTURE)
    _, speed = speed_of(estimate, 60, Offload(cpu_moe_layers=3), bandwidth_gb_s=100)
    efficiency = placement_settings().host_efficiency
    gpu = (4 * 0.5e9 + 8e9 / 8 + 1e9 + kv_read(estimate)) / BANDWIDTH
    host = 3 * 8e9 / 8 / 100e9
    # Each of the three layers sends its activations to its experts and gets theirs back.
    transfers = transfer_seconds(4096, 1, crossings=6)
    assert speed.host_ms == pytest.approx(1e3 * host / efficiency.middle)
    assert speed.transfer_ms == pytest.approx(1e3 * transfers)
    assert speed.decode_tokens_per_s == pytest.approx(
        1 / (gpu + host / efficiency.middle + transfers)
    )
    assert speed.decode_tokens_per_s_low == pytest.approx(
        1 / (gpu / 0.9 + host / efficiency.low + transfers)
    )
    assert speed.decode_tokens_per_s_high == pytest.approx(
        1 / (gpu / 1.1 + host / efficiency.high + transfers)
    )
    assert (speed.rests_on, speed.runs) == ("this GPU", 7)
    assert speed.host_gb_s == pytest.approx(100 * efficiency.middle)


def test_several_sequences_use_more_experts_of_the_host() -> None:
    one = speed_of(estimate_of(MIXTURE), 60, Offload(cpu_moe_layers=4))[1]
    eight = speed_of(estimate_of(MIXTURE, batch=8), 60, Offload(cpu_moe_layers=4))[1]
    assert eight.host_ms / one.host_ms == pytest.approx((1 - (7 / 8) ** 8) / (1 / 8))


def test_layers_in_host_memory_take_their_cache_with_them() -> None:
    estimate = estimate_of(MIXTURE)
    _, speed = speed_of(estimate, 60, Offload(gpu_layers=3), bandwidth_gb_s=100)
    middle = placement_settings().host_efficiency.middle
    host = 2 * (0.5e9 + 1e9) + kv_read(estimate) / 2
    gpu = 2 * (0.5e9 + 1e9) + 1e9 + kv_read(estimate) / 2
    assert speed.host_ms == pytest.approx(1e3 * host / (100e9 * middle))
    assert speed.gpu_ms == pytest.approx(1e3 * gpu / BANDWIDTH)
    assert speed.transfer_ms == pytest.approx(1e3 * transfer_seconds(4096, 1, crossings=1))


def test_without_a_gpu_all_time_is_the_hosts() -> None:
    estimate = estimate_of(MIXTURE)
    placement, speed = speed_of(estimate, 60, Offload(gpu_layers=0))
    assert placement.devices == []
    assert (speed.gpu_ms, speed.transfer_ms, speed.rests_on, speed.runs) == (0, 0, None, None)
    assert speed.decode_tokens_per_s == pytest.approx(1e3 / speed.host_ms)
    assert speed.slowest_stage_tokens_per_s is None


def test_a_checkpoints_embedding_is_on_the_gpu_but_hardly_read() -> None:
    shape = reference_models()["Llama 3 8B"].shape
    weights = weights_at_level(shape, "awq-4bit-g128")
    estimate = estimate_memory("8B", shape, weights, Serving())
    parts = copy_parts(estimate)
    embedding = 2 * shape.vocab_size * shape.hidden_size
    assert (parts.embedding, parts.embedding_on_gpu) == (0, embedding)
    (found,) = fits(estimate, REGISTRY, ["GeForce RTX 3090"])
    (placed,) = with_speeds([found], estimate, ROOFLINE, REGISTRY)
    assert placed.llama_server_options == []
    assert placed.placement is not None and placed.speed is not None
    assert sum(share.weights_bytes for share in placed.placement.devices) == weights.weights_bytes
    read = weights.weights_bytes - embedding + kv_read(estimate)
    assert placed.speed.gpu_ms == pytest.approx(1e3 * read / BANDWIDTH)


def test_a_gpu_without_a_known_bandwidth_has_no_speed_but_a_place() -> None:
    estimate = estimate_of(MIXTURE)
    unknown = RTX_3090.model_copy(update={"memory_bandwidth_gb_s": None})
    placement = place(copy_parts(estimate), DeviceBudget(60 * GB, 0))
    assert placement is not None
    placements = [(unknown, placement), (RTX_3090, placement)]
    nothing, something = placed_speeds(load_speed_model(), estimate, placements)
    assert nothing is None
    assert something is not None and something.rests_on == "this GPU"
