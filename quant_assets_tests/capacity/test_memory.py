"""Memory arithmetic against the allocations that llama.cpp plans for the same shapes."""

import pytest

from quant_assets.capacity.allocator import Allocation, AllocationJob
from quant_assets.capacity.memory import (
    Serving,
    compute_buffer_bytes,
    kv_cache_bytes,
    weights_at_level,
)
from quant_assets.capacity.reference_models import mixture_bits, reference_models
from quant_assets.capacity.update_gguf_mixtures import write_metadata_gguf
from quant_assets.errors import InputError
from quant_assets_tests.capacity.allocations import allocations

LLAMA_3_8B = reference_models()["Llama 3 8B"].shape
LLAMA_2_7B = reference_models()["Llama 2 7B"].shape

CASES = [
    ("SmolLM2 135M", Serving(context=8192)),
    ("Llama 2 7B", Serving(context=2048)),
    ("Llama 2 7B", Serving(context=32768, batch=8)),
    ("Llama 2 7B", Serving(context=8192, flash_attention=False)),
    ("Llama 3 8B", Serving(context=8192, batch=4)),
    ("Llama 3 8B", Serving(context=8192, micro_batch=128)),
    ("Llama 3 8B", Serving(context=8000, batch=4, kv_type_k="Q8_0", kv_type_v="Q4_0")),
    ("Llama 3 70B", Serving(context=32768)),
    ("Llama 3 70B", Serving(context=8192, flash_attention=False)),
]


@pytest.fixture(scope="module")
def planned_by_llama_cpp(tmp_path_factory: pytest.TempPathFactory) -> list[Allocation]:
    folder = tmp_path_factory.mktemp("shapes")
    jobs = []
    for number, (name, serving) in enumerate(CASES):
        path = folder / f"{number}.gguf"
        write_metadata_gguf(reference_models()[name], path)
        jobs.append(AllocationJob(model=path, servings=[serving]))
    return [allocation for (allocation,) in allocations(jobs)]


@pytest.mark.parametrize("index", range(len(CASES)))
def test_llama_cpp_plans_the_same(index: int, planned_by_llama_cpp: list[Allocation]) -> None:
    name, serving = CASES[index]
    shape, planned = reference_models()[name].shape, planned_by_llama_cpp[index]
    assert kv_cache_bytes(shape, serving) == planned.state_bytes
    assert compute_buffer_bytes(shape, serving) == planned.compute_bytes


def test_kv_cache_by_hand() -> None:
    # 32 layers, 8 KV heads of 128, K and V, 2 bytes: 131,072 bytes a token.
    assert kv_cache_bytes(LLAMA_3_8B, Serving(context=8192, batch=4)) == 131_072 * 8192 * 4
    # Without grouped-query attention all 32 heads are kept.
    assert kv_cache_bytes(LLAMA_2_7B, Serving(context=4096)) == 4 * 131_072 * 4096


def test_the_context_is_rounded_up_to_256_cells() -> None:
    assert kv_cache_bytes(LLAMA_3_8B, Serving(context=1)) == kv_cache_bytes(
        LLAMA_3_8B, Serving(context=256)
    )


def test_k_and_v_have_their_own_types() -> None:
    full = kv_cache_bytes(LLAMA_3_8B, Serving(context=4096))
    hybrid = kv_cache_bytes(LLAMA_3_8B, Serving(context=4096, kv_type_k="q8_0", kv_type_v="q4_0"))
    assert hybrid / full == pytest.approx((8.5 + 4.5) / 32)


def test_sliding_layers_keep_their_window_only() -> None:
    sliding = LLAMA_3_8B.model_copy(update={"sliding_window": 1024, "n_sliding_layers": 24})
    serving = Serving(context=32768)
    row = kv_cache_bytes(LLAMA_3_8B, serving) // 32 // 32768
    window_cells = 1024 + 512
    assert kv_cache_bytes(sliding, serving) == row * (8 * 32768 + 24 * window_cells)
    short = Serving(context=512)
    assert kv_cache_bytes(sliding, short) == kv_cache_bytes(LLAMA_3_8B, short)


def test_layers_without_attention_and_latent_attention_only_count_what_they_cache() -> None:
    hybrid = LLAMA_3_8B.model_copy(update={"kv_heads_by_layer": (8, 0, 0, 0) * 8})
    latent = LLAMA_3_8B.model_copy(
        update={"kv_heads_by_layer": (1,) * 32, "head_dim_k": 576, "head_dim_v": 0}
    )
    serving = Serving(context=4096)
    assert kv_cache_bytes(hybrid, serving) * 4 == kv_cache_bytes(LLAMA_3_8B, serving)
    assert kv_cache_bytes(latent, serving) == 32 * 576 * 2 * 4096


def test_shapes_that_leave_something_open_still_have_a_buffer() -> None:
    serving = Serving(context=4096, batch=3)
    dense = compute_buffer_bytes(LLAMA_3_8B, serving)
    unknown_choice = {"n_experts": 8, "n_experts_used": 0}
    without_heads = {"kv_heads_by_layer": (8, 0, 0, 0) * 8}
    shorter_lists = {"kv_heads_by_layer": (8,), "sliding_layers": (True,), "sliding_window": 64}
    latent = {"kv_heads_by_layer": (1,) * 32, "head_dim_k": 576, "head_dim_v": 0}
    for update in (unknown_choice, without_heads, shorter_lists, latent):
        shape = LLAMA_3_8B.model_copy(update=update)
        assert dense / 2 < compute_buffer_bytes(shape, serving) < 2 * dense
        assert kv_cache_bytes(shape, serving) >= 0


@pytest.mark.parametrize(
    "serving",
    [
        Serving(kv_type_k="Q4_K"),
        Serving(kv_type_v="nonsense"),
        Serving(kv_type_v="q8_0", flash_attention=False),
    ],
)
def test_cache_types_that_llama_cpp_refuses(serving: Serving) -> None:
    with pytest.raises(InputError):
        kv_cache_bytes(LLAMA_3_8B, serving)


def test_head_sizes_off_the_block_size_are_refused() -> None:
    odd = LLAMA_3_8B.model_copy(update={"head_dim_k": 80})
    with pytest.raises(InputError, match="80"):
        kv_cache_bytes(odd, Serving(kv_type_k="q8_0"))


def test_weights_of_a_level_and_of_groups() -> None:
    q4 = weights_at_level(LLAMA_3_8B, "q4_k_m")
    assert q4.weights_bytes * 8 / LLAMA_3_8B.n_parameters == pytest.approx(
        mixture_bits("Q4_K_M", "Llama 3 8B"), abs=1e-6
    )
    gptq = weights_at_level(LLAMA_3_8B, "gptq-4bit-g128")
    other = LLAMA_3_8B.n_parameters - LLAMA_3_8B.n_linear_parameters
    linear_bits = (8 * gptq.weights_bytes - 16 * other) / LLAMA_3_8B.n_linear_parameters
    assert linear_bits == pytest.approx(4 + 20 / 128 + 32 / 4096, abs=1e-6)
