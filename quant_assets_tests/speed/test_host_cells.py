"""The work of a decoding step, against arithmetic by hand."""

from pathlib import Path

import pytest

from quant_assets.bench.variants import Variant
from quant_assets.formats.gguf_header import HeaderTensor
from quant_assets.models.inspection import ModelShape
from quant_assets.speed.host_cells import (
    HostArtifact,
    StepLengths,
    host_cell,
    open_host_artifact,
)

SHAPE = ModelShape(
    architecture="llama",
    n_layers=2,
    hidden_size=64,
    intermediate_size=128,
    n_heads=4,
    kv_heads_by_layer=(2, 2),
    head_dim_k=16,
    head_dim_v=8,
    vocab_size=1000,
    context_length=1000,
    n_parameters=200_000,
    n_linear_parameters=100_000,
)
HYBRID = Variant(name="h", format="gguf", level="Q8_0", cache_type_k="q8_0", cache_type_v="q4_0")


def matrix(name: str, type_name: str, *shape: int) -> HeaderTensor:
    return HeaderTensor(name, shape, type_name, 0, 0)


def test_a_real_file_is_read_by_type_without_its_input_embedding_twice(smollm2: Path):
    artifact = open_host_artifact("m", smollm2)
    cell = host_cell(artifact, Variant(name="v", format="gguf", level="Q4_1"), StepLengths(2, 8, 4))
    # 30 layers of SmolLM2: 9 heads of 64, 3 KV heads, 576 wide, 1536 inside; the head is tied.
    inside = 30 * (2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536)
    assert sum(weights.read for weights in cell.weights) == inside + 49152 * 576
    assert all(weights.read == weights.multiplied for weights in cell.weights)
    assert {weights.type_name for weights in cell.weights} >= {"Q4_1"}
    assert cell.layers == 30 and cell.batch == 2
    assert cell.k_products == cell.v_products == 2 * 30 * 9 * 64 * (8 + 2)


def test_caches_and_heads_of_k_and_v_are_kept_apart():
    artifact = HostArtifact("m", SHAPE, (matrix("blk.0.a", "Q8_0", 64, 64),))
    cell = host_cell(artifact, HYBRID, StepLengths(3, 100, 20))
    assert (cell.k_type, cell.v_type) == ("Q8_0", "Q4_0")
    assert cell.k_products == 3 * 2 * 4 * 16 * 110
    assert cell.v_products == 3 * 2 * 4 * 8 * 110


def test_a_window_limits_what_a_layer_attends_to():
    sliding = SHAPE.model_copy(update={"sliding_window": 40, "n_sliding_layers": 1})
    cell = host_cell(HostArtifact("m", sliding, ()), HYBRID, StepLengths(1, 100, 0))
    assert cell.k_products == 4 * 16 * (100 + 40)


def test_experts_are_read_by_the_step_and_multiplied_by_the_token():
    shape = SHAPE.model_copy(update={"n_experts": 8, "n_experts_used": 2})
    matrices = (
        matrix("blk.0.ffn_up_exps.weight", "Q4_K", 256, 16, 8),
        matrix("blk.0.attn_q.weight", "Q4_K", 256, 4),
        matrix("output.weight", "Q6_K", 256, 10),
        matrix("token_embd.weight", "Q6_K", 256, 10),
    )
    artifact = HostArtifact("m", shape, tuple(m for m in matrices if m.name != "token_embd.weight"))
    four, six = host_cell(artifact, HYBRID, StepLengths(2, 1, 1)).weights
    experts, attention = 256 * 16 * 8, 256 * 4
    assert (four.type_name, four.bits) == ("Q4_K", 4.5)
    assert four.multiplied == attention + experts / 4
    assert four.read == pytest.approx(attention + experts * (1 - 0.75**2))
    assert six.read == six.multiplied == 2560


def test_a_checkpoint_has_its_matrices_quantized_and_its_head_not():
    variant = Variant(name="g", format="gptq", level="4bit-g64")
    cell = host_cell(HostArtifact("m", SHAPE, ()), variant, StepLengths(1, 10, 10))
    linear, head = cell.weights
    assert (linear.type_name, linear.read) == ("gptq-4bit-g64", 100_000)
    assert 4 < linear.bits < 5
    assert (head.type_name, head.read) == ("F16", 1000 * 64)
    assert cell.backend == "torch"
