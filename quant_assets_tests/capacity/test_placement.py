"""Which GPUs hold a copy: whole copies, copies split over several devices, parts in host memory."""

import re
from math import ceil, floor
from pathlib import Path
from random import Random

import pytest

from quant_assets.capacity.device_memory import DeviceBudget, device_budget, placement_settings
from quant_assets.capacity.estimates import estimate_of_model, fits
from quant_assets.capacity.heuristics.catalog import make_strategy
from quant_assets.capacity.heuristics.strategy import GpuFacts
from quant_assets.capacity.memory import (
    MemoryEstimate,
    Serving,
    Weights,
    estimate_memory,
    layer_cache_bytes,
    weights_at_level,
)
from quant_assets.capacity.placement import (
    CopyParts,
    LayerNeeds,
    Offload,
    Placement,
    copies_held,
    copy_parts,
    fit,
    llama_server_options,
    place,
    smallest_offload,
)
from quant_assets.capacity.reference_models import reference_models
from quant_assets.errors import InputError
from quant_assets.formats.gguf_header import read_gguf_header
from quant_assets.gpus.registry import load_registry
from quant_assets.models.inspection import ModelShape, inspect_model
from quant_assets.settings import Settings
from quant_assets_tests.capacity.tiny_architectures import ARCHITECTURES, Tiny, write_tiny

REGISTRY = load_registry()
LLAMA_3_8B = reference_models()["Llama 3 8B"].shape
GB = 10**9


def estimate_of(name: str, level: str, serving: Serving) -> MemoryEstimate:
    shape = reference_models()[name].shape
    return estimate_memory(name, shape, weights_at_level(shape, level), serving)


def gpu_bytes(estimate: MemoryEstimate) -> int:
    """All of a copy except the input embedding, which llama.cpp keeps in host memory."""
    return estimate.total_bytes - copy_parts(estimate).embedding


def test_copies_on_a_card_by_hand() -> None:
    estimate = estimate_of("Llama 3 8B", "Q4_K_M", Serving(context=8192))
    needed_gb = gpu_bytes(estimate) / 1e9 + 1.0
    l4 = fit(estimate, REGISTRY.get("L4"))
    assert l4.copies == floor(l4.usable_gb + 1.0) // needed_gb == 3
    assert (l4.cards_for_one_copy, l4.gpus_per_copy) == (1, 1)
    # Four devices of 16 GB hold two copies each; the board is not one device of 64 GB.
    assert fit(estimate, REGISTRY.get("A16")).copies == 4 * int(16 * 2**30 / 1e9 / needed_gb) == 8
    assert fit(estimate, REGISTRY.get("T400 4GB")).copies == 0
    assert fit(estimate, REGISTRY.get("T400 4GB"), cards=2).copies == 1
    assert fit(estimate, REGISTRY.get("T400 4GB"), cards=5).copies == 2


def test_a_board_of_two_gpus_holds_a_copy_that_spans_them() -> None:
    estimate = estimate_of("Llama 2 13B", "Q8_0", Serving(context=4096))
    k80 = fit(estimate, REGISTRY.get("Tesla K80"))
    assert (k80.copies, k80.gpus_per_copy, k80.cards_for_one_copy) == (1, 2, 1)


def test_a_model_larger_than_a_card_needs_several() -> None:
    estimate = estimate_of("Llama 3 70B", "F16", Serving(context=4096))
    answer = fit(estimate, REGISTRY.get("A100 SXM4 80GB"))
    assert (answer.copies, answer.cards_for_one_copy) == (0, 2)
    assert fit(estimate, REGISTRY.get("A100 SXM4 80GB"), cards=5).copies == 2


def test_the_reserve_can_take_a_whole_card() -> None:
    estimate = estimate_of("Llama 3 8B", "Q2_K", Serving(context=256))
    answer = fit(estimate, REGISTRY.get("T400 2GB"), reserve_gb=2.2)
    assert (answer.copies, answer.cards_for_one_copy, answer.usable_gb) == (0, None, 0)


def test_memory_is_what_the_driver_reports() -> None:
    # The driver keeps some of a 24 GB L4 and of a 16 GB T4 to itself.
    estimate = estimate_of("Llama 3 8B", "Q4_K_M", Serving())
    assert fit(estimate, REGISTRY.get("L4")).usable_gb * 1e9 == 23_034 * 2**20 - GB
    assert fit(estimate, REGISTRY.get("T4")).usable_gb * 1e9 == 15_843_721_216 - GB


@pytest.mark.parametrize("offload", [Offload(gpu_layers=3), None])
def test_a_gpu_without_memory_of_its_own_offloads_nothing(offload: Offload | None) -> None:
    estimate = estimate_of("Llama 3 8B", "Q4_K_M", Serving())
    for name in ("M2 Ultra 64GB", "GB10"):
        with pytest.raises(InputError, match="cannot lie partly in host memory"):
            fit(estimate, REGISTRY.get(name), offload=offload)
    listed = {found.gpu for found in fits(estimate, REGISTRY, offload=Offload(gpu_layers=3))}
    assert "L4" in listed and not listed & {"M2 Ultra 64GB", "GB10"}


def test_memory_shared_with_the_system_is_used_in_part() -> None:
    def usable_gb(name: str) -> float:
        return device_budget(REGISTRY.get(name)).usable_bytes / 2**30

    assert usable_gb("M1 16GB") == pytest.approx(16 * 2 / 3)
    assert usable_gb("M4 32GB") == pytest.approx(32 * 2 / 3)
    assert usable_gb("M3 Max 36GB") == pytest.approx(36 * 3 / 4)
    assert usable_gb("M2 Ultra 192GB") == pytest.approx(192 * 3 / 4)
    assert usable_gb("GB10") == pytest.approx(128 * 0.85, rel=0.1)
    assert usable_gb("MI300A") == pytest.approx(128 * 0.75)
    # A superchip whose GPU has memory of its own keeps the reserve alone.
    assert device_budget(REGISTRY.get("GH200 96GB")).reserve_bytes == GB
    assert device_budget(REGISTRY.get("GB10")).reserve_bytes == 0


# One reserve, one answer.

SERVINGS = [(2048, 1), (8192, 4), (32768, 8)]


@pytest.mark.parametrize("level", ["Q4_K_M", "F16", "gptq-4bit-g128"])
@pytest.mark.parametrize(("context", "batch"), SERVINGS)
def test_capacity_and_estimate_agree_on_every_gpu(level: str, context: int, batch: int) -> None:
    strategy = make_strategy("detailed_capacity", levels=[level], context=context, batch=batch)
    serving = Serving(context=context, batch=batch)
    estimates = {
        model.capacity_class: estimate_of(model.name, level, serving)
        for model in reference_models().values()
        if model.capacity_class
    }
    for gpu in REGISTRY.all:
        capacity = strategy.evaluate(GpuFacts.of(gpu))
        for size, estimate in estimates.items():
            assert capacity[f"detailed_capacity.{size}"] == fit(estimate, gpu).copies, gpu


def test_there_is_one_reserve() -> None:
    assert make_strategy("detailed_capacity").model_dump()["reserve_gb"] is None
    assert device_budget(REGISTRY.get("L4")).reserve_bytes == placement_settings().reserve_gb * 1e9


@pytest.mark.parametrize(
    "content",
    [
        "reserve_gb: 1",
        "[1]",
        "reserve_gb: {",
        "{reserve_gb: -1}",
    ],
)
def test_invalid_settings_name_their_file(content: str, tmp_path: Path) -> None:
    file = tmp_path / "placement.yaml"
    file.write_text(content)
    with pytest.raises(InputError, match=r"placement\.yaml"):
        placement_settings(file)
    with pytest.raises(InputError, match="absent"):
        placement_settings(tmp_path / "absent.yaml")


# Splits over devices, by hand.


def parts(*layers: tuple[float, float, float], output: float = 0, compute: float = 0) -> CopyParts:
    """Layers of (dense, experts, kv) GB."""
    return CopyParts(
        layers=tuple(LayerNeeds(*(round(size * GB) for size in layer)) for layer in layers),
        output=round(output * GB),
        embedding=GB // 2,
        compute=round(compute * GB),
    )


def budget(capacity_gb: float, reserve_gb: float = 0) -> DeviceBudget:
    return DeviceBudget(round(capacity_gb * GB), round(reserve_gb * GB))


def held(placement: Placement | None) -> list[tuple[int | None, int, bool, float]]:
    assert placement is not None
    return [
        (share.first_layer, share.n_layers, share.holds_output, share.total_bytes / GB)
        for share in placement.devices
    ]


def test_equal_layers_are_split_evenly_with_the_output_on_the_last() -> None:
    # 8 layers of 1.25 GB and an output of 1.25 GB: 11.25 GB over devices of 8 - 1 GB.
    model = parts(*[(1, 0, 0.25)] * 8, output=1.25, compute=0.5)
    assert held(place(model, budget(8, reserve_gb=1))) == [
        (0, 5, False, 6.75),
        (5, 3, True, 5.5),
    ]


def test_large_layers_are_balanced_by_bytes_and_not_by_number() -> None:
    # Dense layers first, as in DeepSeek: 3 x 1 GB, then 4 x 4 GB.
    model = parts(*[(1, 0, 0)] * 3, *[(1, 3, 0)] * 4)
    assert held(place(model, budget(11))) == [(0, 5, False, 11), (5, 2, True, 8)]
    # 10.5 GB hold no third layer of 4 GB: three devices.
    assert held(place(model, budget(10.5))) == [
        (0, 4, False, 7),
        (4, 2, False, 8),
        (6, 1, True, 4),
    ]


def test_one_layer_that_exceeds_a_device_fits_nowhere() -> None:
    model = parts((1, 0, 0), (6, 0, 0))
    assert place(model, budget(5.9)) is None
    assert copies_held(model, budget(5.9), devices=100) == 0
    assert held(place(model, budget(6))) == [(0, 1, False, 1), (1, 1, True, 6)]


def test_every_copy_keeps_the_reserve() -> None:
    model = parts((4, 0, 0.5), output=0.25, compute=0.25)
    assert copies_held(model, budget(24, reserve_gb=1), devices=1) == 4
    assert copies_held(model, budget(24, reserve_gb=0), devices=2) == 8
    assert copies_held(model, budget(5.9, reserve_gb=1), devices=5) == 2


@pytest.mark.parametrize("seed", range(40))
def test_splits_conserve_fit_and_are_minimal(seed: int) -> None:
    random = Random(seed)
    layers = [
        (random.uniform(0.1, 1), random.choice([0, random.uniform(0, 4)]), random.uniform(0, 0.5))
        for _ in range(random.randint(1, 90))
    ]
    model = parts(*layers, output=random.uniform(0, 2), compute=random.uniform(0, 0.5))
    room = budget(random.uniform(6, 40), reserve_gb=random.uniform(0, 1))
    offload = Offload(
        gpu_layers=random.choice([None, random.randint(1, len(layers) + 1)]),
        cpu_moe_layers=random.choice([0, random.randint(0, len(layers))])
        if any(experts for _, experts, _ in layers)
        else 0,
    )
    placement = place(model, room, offload)
    if placement is None:
        items = [sum(layer) for layer in model.layers] + [model.output]
        assert max(items) + model.compute > room.usable_bytes
        return
    places = [*placement.devices, placement.host]
    weights = sum(layer.dense + layer.experts for layer in model.layers)
    assert sum(share.weights_bytes for share in places) == weights + model.output + model.embedding
    assert sum(share.kv_cache_bytes for share in places) == sum(layer.kv for layer in model.layers)
    assert sum(share.n_layers for share in places) == len(layers)
    assert sum(share.holds_output for share in places) == 1
    assert all(share.total_bytes <= room.usable_bytes for share in placement.devices)
    starts = [share.first_layer for share in placement.devices if share.n_layers]
    assert starts == sorted(starts, key=lambda start: start or 0)
    # Filling each device before the next needs the fewest; no fewer can hold all.
    fewest, used = 1, 0
    for share in _items(model, offload):
        if used + share > room.usable_bytes - model.compute:
            fewest, used = fewest + 1, 0
        used += share
    assert len(placement.devices) == fewest


def _items(model: CopyParts, offload: Offload) -> list[int]:
    """Bytes of the layers on GPUs, in order, and of the output."""
    gpu_layers = len(model.layers) + 1 if offload.gpu_layers is None else offload.gpu_layers
    sizes = [
        layer.dense + layer.kv + (layer.experts if index >= offload.cpu_moe_layers else 0)
        for index, layer in enumerate(model.layers)
    ]
    return [*sizes, model.output][-gpu_layers:]


# Host memory.

MIXTURE = parts(*[(0.5, 4, 0.25)] * 8, output=0.5, compute=0.25)


def test_experts_and_layers_left_in_host_memory_by_hand() -> None:
    placement = place(MIXTURE, budget(40), Offload(cpu_moe_layers=3))
    assert placement is not None
    # 8 x 0.75 GB, the experts of 5 layers, output and compute buffer.
    assert held(placement) == [(0, 8, True, 6 + 20 + 0.5 + 0.25)]
    assert placement.host.weights_bytes == 12 * GB + MIXTURE.embedding
    assert placement.host.kv_cache_bytes == 0
    assert llama_server_options(placement) == ["--n-gpu-layers", "9", "--n-cpu-moe", "3"]
    # The last 4 of 9: three layers and the output. Of the first six, the experts of the sixth are out.
    placement = place(MIXTURE, budget(40), Offload(gpu_layers=4, cpu_moe_layers=6))
    assert placement is not None
    assert held(placement) == [(5, 3, True, 3 * 0.75 + 2 * 4 + 0.5 + 0.25)]
    assert placement.host.weights_bytes == 5 * 4.5 * GB + 4 * GB + MIXTURE.embedding
    assert placement.host.kv_cache_bytes == 5 * 0.25 * GB


def test_nothing_on_gpus_and_everything() -> None:
    nothing = place(MIXTURE, budget(1), Offload(gpu_layers=0))
    assert nothing is not None
    assert (nothing.devices, nothing.host.holds_output, nothing.host.n_layers) == ([], True, 8)
    only_output = place(MIXTURE, budget(1), Offload(gpu_layers=1))
    assert held(only_output) == [(None, 0, True, 0.75)]
    assert place(MIXTURE, budget(99), Offload(gpu_layers=9)) == place(MIXTURE, budget(99))


def test_the_smallest_offload_leaves_experts_first_and_then_layers() -> None:
    def found(capacity_gb: float, devices: int = 1) -> tuple[int | None, int]:
        offload = smallest_offload(MIXTURE, budget(capacity_gb), devices)
        return offload.gpu_layers, offload.cpu_moe_layers

    # All: 8 x 4.75 + 0.5 + 0.25 = 38.75 GB; each layer's experts are 4 GB.
    assert found(38.75) == (None, 0)
    assert found(38.74) == (None, 1)
    assert found(6.75) == (None, 8)
    assert found(6.74) == (8, 8)
    assert found(0.8) == (1, 8)
    assert found(0.7) == (0, 0)
    # Two devices of 20 GB hold four layers each.
    assert found(20, devices=2) == (None, 0)
    dense = parts(*[(1, 0, 0.5)] * 4, output=1)
    assert smallest_offload(dense, budget(4.2), devices=1) == Offload(gpu_layers=3)


@pytest.mark.parametrize(
    ("offload", "message"),
    [
        (Offload(gpu_layers=34), "34 layers cannot"),
        (Offload(cpu_moe_layers=1), "no experts"),
    ],
)
def test_impossible_offloads_of_a_dense_model(offload: Offload, message: str) -> None:
    estimate = estimate_of("Llama 3 8B", "Q4_K_M", Serving())
    with pytest.raises(InputError, match=message):
        fit(estimate, REGISTRY.get("L4"), offload=offload)


def test_more_experts_than_layers_are_refused() -> None:
    with pytest.raises(InputError, match="8 layers"):
        place(MIXTURE, budget(40), Offload(cpu_moe_layers=9))


def test_the_options_give_each_device_its_layers() -> None:
    placement = place(MIXTURE, budget(20))
    assert placement is not None
    options = llama_server_options(placement)
    split = [int(count) for count in options[options.index("--tensor-split") + 1].split(",")]
    # llama.cpp gives layer i to the first device whose cumulative share exceeds i / 9.
    ends = [sum(split[: index + 1]) / sum(split) for index in range(len(split))]
    device_of = [next(d for d, end in enumerate(ends) if end > i / 9) for i in range(9)]
    expected = [
        device
        for device, share in enumerate(placement.devices)
        for _ in range(share.n_layers + share.holds_output)
    ]
    assert device_of == expected


# Files.


@pytest.mark.parametrize("tiny", ARCHITECTURES, ids=lambda tiny: tiny.name)
def test_parts_of_every_architecture_are_those_of_its_tensors(tiny: Tiny, tmp_path: Path) -> None:
    path = write_tiny(tiny, tmp_path / "tiny.gguf")
    # Every tensor is padded to 32 bytes, in the file and in memory.
    tensors = {
        tensor.name: ceil(tensor.n_bytes / 32) * 32 for tensor in read_gguf_header(path).tensors
    }
    shape = inspect_model(path)
    estimate = estimate_memory(tiny.name, shape, _as_stored(shape), Serving(context=512))
    parts = copy_parts(estimate)

    def held_by(pattern: str) -> int:
        return sum(size for name, size in tensors.items() if re.search(pattern, name))

    for layer, needs in enumerate(parts.layers):
        # The pattern of llama.cpp's --n-cpu-moe.
        experts = held_by(rf"^blk\.{layer}\.ffn_(up|down|gate|gate_up)_(ch|)exps")
        assert needs.experts == experts
        assert needs.dense + needs.experts == held_by(rf"^blk\.{layer}\.")
        assert needs.kv == layer_cache_bytes(shape, Serving(context=512), layer)
    assert parts.embedding == (held_by(r"^token_embd\.") if "output.weight" in tensors else 0)
    assert sum(needs.dense + needs.experts for needs in parts.layers) + (
        parts.embedding + parts.output
    ) == sum(tensors.values())


def test_a_mixture_in_a_file_leaves_the_experts_of_its_first_layers_in_host_memory(
    tmp_path: Path,
) -> None:
    mixture = next(tiny for tiny in ARCHITECTURES if tiny.architecture == "deepseek2")
    path = write_tiny(mixture, tmp_path / "tiny.gguf")
    sizes = {tensor.name: tensor.n_bytes for tensor in read_gguf_header(path).tensors}
    shape = inspect_model(path)
    estimate = estimate_memory("tiny", shape, _as_stored(shape), Serving(context=512))
    (found,) = fits(estimate, REGISTRY, ["L4"], offload=Offload(cpu_moe_layers=2))
    assert found.placement is not None
    # The first layer is dense, so that only the second one's experts stay behind.
    kept = sum(size for name, size in sizes.items() if re.match(r"blk\.1\.ffn_\w+_exps", name))
    assert 0 < kept == found.placement.host.expert_bytes
    assert found.placement.host.weights_bytes == kept + sizes["token_embd.weight"]
    assert found.placement.devices[0].weights_bytes == sum(sizes.values()) - (
        kept + sizes["token_embd.weight"]
    )


def test_a_planned_level_is_split_as_its_tensors_are_typed(tmp_path: Path) -> None:
    tiny = Tiny("llama", "llama", layers=12, hidden=256, vocabulary=2000)
    path = write_tiny(tiny, tmp_path / "tiny.gguf")
    estimate = estimate_of_model(
        str(path), "Q4_K_M", Serving(context=512), Settings(home=tmp_path / "home")
    )
    parts = copy_parts(estimate)
    # Q4_K_M stores the output head in Q6_K, and the embedding in Q4_K.
    assert parts.embedding == pytest.approx(2000 * 256 * 4.5 / 8, rel=0.01)
    assert parts.output == pytest.approx(2000 * 256 * 6.5625 / 8, rel=0.01)
    # The first and the last layers have some of their matrices in Q6_K.
    assert parts.layers[0].dense > parts.layers[4].dense


def _as_stored(shape: ModelShape) -> Weights:
    assert shape.weights_bytes is not None
    return Weights(level="F16", weights_bytes=shape.weights_bytes, basis="", weight_type="F16")
