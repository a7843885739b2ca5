"""The bytes of a model's parts, from headers, at other levels and for mere shapes."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from quant_assets.models.inspection import LayerWeights, inspect_model
from quant_assets.models.weight_parts import WeightParts, spread, stored_parts, typical_parts
from quant_assets_tests.models.small_files import CONFIG, hf_tensors, write_gguf, write_hf

HALF = np.float16


def test_layers_experts_embedding_and_output_of_a_gguf_file(tmp_path: Path) -> None:
    packed = np.zeros((4, 96, 64 // 32 * 18), np.uint8)  # four experts in Q4_0
    path = write_gguf(
        tmp_path / "model.gguf",
        more={
            "output.weight": np.ones((100, 64), HALF),
            "blk.1.ffn_up_exps.weight": packed,
            "blk.1.ffn_up_shexp.weight": np.ones((96, 64), HALF),
        },
    )
    plain = stored_parts(inspect_model(write_gguf(tmp_path / "plain.gguf")))
    shape = inspect_model(path)
    parts = stored_parts(shape)
    assert plain is not None and parts is not None
    assert parts.total == shape.weights_bytes
    assert parts.embedding == 2 * 100 * 64
    assert parts.layers[0] == plain.layers[0]
    assert parts.layers[1].experts == packed.nbytes
    assert parts.layers[1].dense == plain.layers[1].dense + 2 * 96 * 64
    # Without a head of its own the embedding is the head, which a GPU holds.
    assert plain.embedding == 0
    assert plain.output >= 2 * 100 * 64


def test_layers_of_another_modality_are_not_layers(tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "model", CONFIG)
    before = stored_parts(inspect_model(folder))
    tensors = {
        **hf_tensors(),
        "model.visual.blocks.0.attn.weight": np.zeros((64, 64), HALF),
        "vision_tower.encoder.layers.1.attn.weight": np.zeros((64, 64), HALF),
    }
    save_file(tensors, folder / "model.safetensors")
    after = stored_parts(inspect_model(folder))
    assert before is not None and after is not None
    assert after.layers == before.layers
    assert after.output == before.output + 2 * 2 * 64 * 64


def test_layers_beyond_the_models_own_count_with_its_last(tmp_path: Path) -> None:
    config = {**CONFIG, "num_hidden_layers": 1}
    folder = write_hf(tmp_path / "model", config)
    shape = inspect_model(folder)
    parts = stored_parts(shape)
    assert parts is not None
    assert len(parts.layers) == 1 and parts.total == shape.weights_bytes
    assert parts.layers[0].dense == sum(layer.dense for layer in shape.layer_weights)
    (folder / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": 3}))
    longer = stored_parts(inspect_model(folder))
    assert longer is not None and longer.layers[2] == LayerWeights(0)


def test_parts_at_another_size_keep_their_proportions() -> None:
    parts = WeightParts((LayerWeights(100, 300), LayerWeights(200)), embedding=40, output=60)
    half = parts.rescaled(350)
    assert half == WeightParts((LayerWeights(50, 150), LayerWeights(100)), embedding=20, output=30)
    fixed = parts.rescaled(350, output=90)
    assert (fixed.output, fixed.total) == (90, 350)
    assert fixed.layers[0].experts == pytest.approx(260 * 300 / 640, abs=1)
    assert parts.rescaled(0).total == 0


def test_spreading_conserves_every_byte() -> None:
    assert spread(10, [1, 1, 1]) == [3, 4, 3]
    assert spread(7, [0, 0]) == [4, 3]
    assert sum(spread(10**15 + 1, [0.1] * 97)) == 10**15 + 1


def test_typical_parts_of_a_shape_without_files(tmp_path: Path) -> None:
    shape = inspect_model(write_hf(tmp_path / "model", CONFIG))
    bare = shape.model_copy(update={"tensor_roles": None, "layer_weights": ()})
    assert stored_parts(bare) is None
    parts = typical_parts(bare)
    assert parts.total == shape.n_parameters
    assert parts.embedding == 0  # tied
    sparse = {"n_experts": 8, "n_experts_used": 2, "n_linear_parameters": 100_000}
    attention = 64 * 2 * (4 * 16 + 2 * 16)  # of each of the two layers
    assert typical_parts(bare.model_copy(update=sparse)).layers == (
        (LayerWeights(attention, 50_000 - attention),) * 2
    )
