"""Memory, traffic and operations of a served copy, against arithmetic by hand."""

from pathlib import Path

import pytest

from quant_assets.bench.variants import Variant
from quant_assets.errors import InputError
from quant_assets.models.inspection import ModelShape, TensorRoles
from quant_assets.settings import PROJECT_ROOT
from quant_assets.speed.needs import (
    ServingGrid,
    StoredWeights,
    grid_needs,
    load_grid,
    run_needs,
    touched_linear_parameters,
)

HEAD = 1000 * 64
LINEAR = 100_000
SHAPE = ModelShape(
    architecture="llama",
    n_layers=2,
    hidden_size=64,
    intermediate_size=128,
    n_heads=4,
    kv_heads_by_layer=(2, 2),
    head_dim_k=16,
    head_dim_v=16,
    vocab_size=1000,
    context_length=1000,
    n_parameters=LINEAR + 2 * HEAD,
    n_linear_parameters=LINEAR,
)
F16 = Variant(name="f16", format="gguf", level="F16")
WEIGHTS = StoredWeights("artifact", 2 * SHAPE.n_parameters)
KV_TOKEN = 2 * 2 * 2 * 16 * 2  # layers x (K, V) x heads x head size x bytes


def test_a_decoding_step_reads_what_the_batch_shares_once_and_each_cache():
    (need,) = run_needs("m", SHAPE, F16, WEIGHTS, [(100, 20, 3)])
    # The input embedding is looked up, not read; on average half of the tokens are generated.
    assert need.decode_bytes == 2 * (LINEAR + HEAD) + 3 * 110 * KV_TOKEN
    attention = 2 * 2 * 4 * (16 + 16) * 110
    assert need.decode_flops == 3 * (2 * (LINEAR + HEAD) + attention)
    assert need.prefill_flops == 3 * (100 * (2 * LINEAR + 2 * 2 * 4 * (16 + 16) * 50) + 2 * HEAD)
    assert need.kv_cache_bytes == 3 * 256 * KV_TOKEN  # 120 tokens, in cells of 256
    assert need.weights_bytes == 2 * SHAPE.n_parameters


def test_a_quantized_cache_is_read_in_its_own_size():
    wide = SHAPE.model_copy(update={"head_dim_k": 32, "head_dim_v": 32})
    hybrid = F16.model_copy(update={"cache_type_k": "q8_0", "cache_type_v": "q4_0"})
    (plain,) = run_needs("m", wide, F16, WEIGHTS, [(100, 0, 1)])
    (small,) = run_needs("m", wide, hybrid, WEIGHTS, [(100, 0, 1)])
    # Blocks of 32: F16 64 bytes, Q8_0 34, Q4_0 18; 2 layers x 2 heads.
    assert plain.decode_bytes - small.decode_bytes == 100 * 2 * 2 * (2 * 64 - 34 - 18)


def test_a_sliding_window_limits_what_is_read():
    sliding = SHAPE.model_copy(update={"sliding_window": 40, "n_sliding_layers": 1})
    (full,) = run_needs("m", SHAPE, F16, WEIGHTS, [(100, 0, 1)])
    (less,) = run_needs("m", sliding, F16, WEIGHTS, [(100, 0, 1)])
    assert full.decode_bytes - less.decode_bytes == (100 - 40) * KV_TOKEN // 2


def test_a_batch_touches_the_expected_share_of_experts():
    mixture = SHAPE.model_copy(
        update={"n_experts": 8, "n_experts_used": 2, "n_linear_parameters": 1_000_000}
    )
    attention = 2 * 64 * (2 * 4 * 16 + 2 * 32)
    experts = 1_000_000 - attention
    assert touched_linear_parameters(mixture, 1) == pytest.approx(attention + experts / 4)
    assert touched_linear_parameters(mixture, 2) == pytest.approx(
        attention + experts * (1 - (3 / 4) ** 2)
    )
    assert touched_linear_parameters(SHAPE, 1) == LINEAR


def test_files_say_what_a_pass_reads():
    roles = TensorRoles(
        main_type="Q5_0", lookup_bytes=64_000, expert_bytes=600_000, expert_parameters=900_000
    )
    mixture = SHAPE.model_copy(
        update={
            "n_experts": 8, "n_experts_used": 2, "n_linear_parameters": 1_000_000,
            "tensor_roles": roles,
        }
    )  # fmt: skip
    weights = StoredWeights("artifact", 1_000_000)
    q4 = Variant(name="q4", format="gguf", level="Q4_K_M")
    (need,) = run_needs("m", mixture, q4, weights, [(100, 20, 2)])
    step, prefill = need.decode_workload("CUDA"), need.prefill_workload("HIP")
    unused = (3 / 4) ** 2
    assert step.weight_bytes == pytest.approx(1_000_000 - 64_000 - 600_000 * unused, abs=1)
    assert prefill.weight_bytes == pytest.approx(1_000_000 - 64_000, abs=1)
    # One token multiplies the shared matrices, a quarter of the experts and, decoding, the head.
    assert prefill.parameters == 100_000 + 900_000 / 4
    assert step.parameters == prefill.parameters + HEAD
    assert (step.weight_type, step.sparse, step.layers) == ("Q5_0", True, 2)
    assert (step.tokens, step.tokens_per_pass, step.batch) == (2, 2, 2)
    assert (prefill.tokens, prefill.tokens_per_pass) == (200, 200)
    assert step.kv_bytes == 2 * 110 * KV_TOKEN and prefill.kv_bytes == 0
    assert step.attention_flops == 2 * 2 * 2 * 4 * 32 * 110
    assert prefill.attention_flops == 200 * 2 * 2 * 4 * 32 * 50
    assert (step.backend, prefill.backend, step.engine) == ("CUDA", "HIP", "llama.cpp")


def test_a_prefill_passes_micro_batches_and_transformers_whole_prompts():
    gptq = Variant(name="gptq", format="gptq", level="4bit-g64")
    (ours,) = run_needs("m", SHAPE, F16, WEIGHTS, [(800, 20, 2)])
    (theirs,) = run_needs("m", SHAPE, gptq, WEIGHTS, [(800, 20, 2)])
    assert (ours.weight_type, ours.prefill_pass_tokens) == ("F16", 512)
    assert (theirs.weight_type, theirs.prefill_pass_tokens) == ("gptq-4bit", 1600)
    assert theirs.prefill_workload("CUDA").engine == "transformers"


def test_the_grid_is_capped_at_the_models_context_length():
    grid = ServingGrid(contexts=(512, 2048, 4096), batches=(4, 1))
    points = [
        (need.context_tokens, need.batch_size)
        for need in grid_needs("m", SHAPE, F16, WEIGHTS, grid)
    ]
    assert points == [(512, 1), (512, 4), (1000, 1), (1000, 4)]


def test_the_shipped_grid_is_valid_and_an_invalid_one_is_named(tmp_path: Path):
    assert 8192 in load_grid(PROJECT_ROOT / "data" / "serving_grid.yaml").contexts
    wrong = tmp_path / "grid.yaml"
    wrong.write_text("contexts: [many]\nbatches: [1]\n")
    with pytest.raises(InputError, match="grid"):
        load_grid(wrong)
