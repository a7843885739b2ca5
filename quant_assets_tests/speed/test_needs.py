"""Memory, traffic and operations of a served copy, against arithmetic by hand."""

from pathlib import Path

import pytest

from quant_assets.bench.variants import Variant
from quant_assets.errors import InputError
from quant_assets.models.inspection import ModelShape
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
