"""Shapes from headers: real GGUF and safetensors files, written by the formats' own libraries."""

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import save_file

from quant_assets.capacity.reference_models import reference_models
from quant_assets.capacity.update_gguf_mixtures import write_metadata_gguf
from quant_assets.errors import InputError
from quant_assets.formats.gguf_header import MAX_ARRAY_KEPT, read_gguf_header
from quant_assets.models.graph_traits import GraphTraits, LatentAttention
from quant_assets.models.inspection import TensorRoles, inspect_model
from quant_assets_tests.capacity.tiny_architectures import ARCHITECTURES, write_tiny
from quant_assets_tests.models.small_files import CONFIG, hf_tensors, write_gguf, write_hf


def test_a_folder(tmp_path: Path) -> None:
    shape = inspect_model(write_hf(tmp_path / "model", CONFIG))
    assert (shape.architecture, shape.n_layers, shape.hidden_size) == ("llama", 2, 64)
    assert (shape.n_heads, shape.kv_heads_by_layer) == (4, (2, 2))
    assert (shape.head_dim_k, shape.head_dim_v) == (16, 16)
    assert (shape.vocab_size, shape.context_length) == (100, 512)
    linear = 2 * (64 * 64 + 96 * 64)
    rest = 100 * 64 + 64 + 2 * 64
    assert shape.n_linear_parameters == linear
    assert shape.n_parameters == linear + rest
    assert shape.weights_bytes == 2 * (linear + rest) + 2 * 64  # one norm is F32
    assert shape.weight_types == {"F16": 7, "F32": 1}


def test_a_gguf_file(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf")
    shape = inspect_model(path)
    assert (shape.n_layers, shape.hidden_size, shape.intermediate_size) == (2, 64, 96)
    assert (shape.n_heads, shape.n_kv_heads, shape.head_dim_k) == (4, 2, 16)
    assert shape.vocab_size == 100
    assert shape.n_linear_parameters == 64 * 64 + 96 * 64
    assert shape.n_parameters == 100 * 64 + 64 * 64 + 96 * 64 + 64
    assert shape.weight_types == {"F16": 2, "Q4_0": 1, "F32": 1}


def test_gguf_tensors_agree_with_the_library_that_wrote_them(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf")
    reader = gguf.GGUFReader(path)
    header = read_gguf_header(path)
    assert [tensor.name for tensor in header.tensors] == [t.name for t in reader.tensors]
    for ours, theirs in zip(header.tensors, reader.tensors, strict=True):
        assert ours.type_name == theirs.tensor_type.name
        assert list(ours.shape) == theirs.shape.tolist()
        assert (ours.n_elements, ours.n_bytes) == (theirs.n_elements, theirs.n_bytes)
    assert header.values["llama.embedding_length"] == 64
    assert header.values["tokenizer.ggml.tokens"][3] == "token 3"  # type: ignore[index]


def test_long_vocabularies_are_counted_and_skipped(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", tokens=MAX_ARRAY_KEPT + 1)
    header = read_gguf_header(path)
    assert "tokenizer.ggml.tokens" not in header.values
    assert header.array_lengths["tokenizer.ggml.tokens"] == MAX_ARRAY_KEPT + 1
    assert inspect_model(path).vocab_size == MAX_ARRAY_KEPT + 1
    assert len(header.tensors) == 4


@pytest.mark.parametrize("name", ["SmolLM2 135M", "Llama 3 8B"])
def test_a_published_shape_survives_its_own_file(name: str, tmp_path: Path) -> None:
    model = reference_models()[name]
    write_metadata_gguf(model, tmp_path / "model.gguf")
    read = inspect_model(tmp_path / "model.gguf")
    own = {"weights_bytes", "weight_types", "tensor_roles", "layer_weights"}
    assert read.model_dump(exclude=own) == model.shape.model_dump(exclude=own)


def test_kv_heads_and_windows_by_layer(tmp_path: Path) -> None:
    shape = inspect_model(write_gguf(tmp_path / "a.gguf", kv_heads=[2, 0]))
    assert shape.kv_heads_by_layer == (2, 0)
    for pattern, expected in (([True, False], 1), (2, 1), (None, 0)):
        path = write_gguf(tmp_path / "b.gguf", window=128, pattern=pattern)
        shape = inspect_model(path)
        assert (shape.sliding_window, shape.n_sliding_layers) == (128, expected)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"head_dim": 32}, {"head_dim_k": 32, "head_dim_v": 32}),
        ({"num_key_value_heads": None}, {"kv_heads_by_layer": (4, 4)}),
        (
            {"sliding_window": 128, "layer_types": ["sliding_attention", "full_attention"]},
            {"sliding_window": 128, "n_sliding_layers": 1},
        ),
        ({"sliding_window": 128, "use_sliding_window": False}, {"sliding_window": None}),
        (
            {"layer_types": ["linear_attention", "full_attention"]},
            {"kv_heads_by_layer": (0, 2)},
        ),
        (
            {"kv_lora_rank": 48, "qk_rope_head_dim": 16},
            {"kv_heads_by_layer": (1, 1), "head_dim_k": 64, "head_dim_v": 0},
        ),
        (
            {"num_local_experts": 8, "num_experts_per_tok": 2},
            {"n_experts": 8, "n_experts_used": 2},
        ),
        ({"text_config": {"hidden_size": 128, "num_hidden_layers": 3}}, {"n_layers": 3}),
    ],
    ids=lambda value: " ".join(value),
)
def test_configurations(changes: dict[str, Any], expected: dict[str, Any], tmp_path: Path) -> None:
    shape = inspect_model(write_hf(tmp_path / "model", {**CONFIG, **changes}))
    assert {name: getattr(shape, name) for name in expected} == expected


def test_gemma_3_as_it_was_published(tmp_path: Path) -> None:
    # Its text_config leaves heads, vocabulary and the pattern of the windows to transformers.
    text = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "model_type": "gemma3_text",
        "num_hidden_layers": 14,
        "sliding_window": 1024,
    }
    config = {"model_type": "gemma3", "text_config": text}
    shape = inspect_model(write_hf(tmp_path / "model", config))
    assert (shape.n_heads, shape.n_kv_heads, shape.head_dim_k) == (8, 4, 256)
    assert shape.vocab_size == 262_208
    assert (shape.sliding_window, shape.n_sliding_layers) == (1024, 12)
    full = [layer for layer in range(14) if not shape.layer_slides(layer)]
    assert full == [5, 11]
    text["num_kv_shared_layers"] = 4
    shared = inspect_model(write_hf(tmp_path / "shared", config))
    assert shared.kv_heads_by_layer == (4,) * 10 + (0,) * 4


def test_layers_without_a_window_may_have_their_own_heads(tmp_path: Path) -> None:
    config = {
        **CONFIG,
        "model_type": "gemma4_text",
        "head_dim": 16,
        "sliding_window": 512,
        "layer_types": ["sliding_attention", "full_attention"],
        "attention_k_eq_v": True,
        "num_global_key_value_heads": 1,
    }
    shape = inspect_model(write_hf(tmp_path / "model", config))
    assert shape.kv_heads_by_layer == (2, 1)
    assert [shape.head_dims(layer) for layer in range(2)] == [(16, 16), (512, 512)]


def test_traits_of_the_layers(tmp_path: Path) -> None:
    by_name = {model.name: model for model in ARCHITECTURES}
    traits = {
        name: inspect_model(write_tiny(by_name[name], tmp_path / "model.gguf")).graph
        for name in ("llama", "qwen3", "gemma3", "phi3", "olmo2", "cohere2", "deepseek2")
    }
    assert traits["llama"] == GraphTraits()
    assert traits["qwen3"] == GraphTraits(query_key_norms="heads")
    assert traits["gemma3"] == GraphTraits(query_key_norms="heads", post_norms=True)
    assert traits["phi3"] == GraphTraits(fused_qkv=True, feed_forward="fused", residual_first=True)
    assert traits["olmo2"].post_norms_only
    assert traits["olmo2"].query_key_norms == "flat"
    assert traits["cohere2"].parallel_blocks
    assert traits["deepseek2"].dense_layers == {0}
    assert traits["deepseek2"].latent == LatentAttention(
        query_rank=96, rank=128, plain_dim=64, rope_dim=32, value_dim=64
    )


def test_a_header_alone_has_a_shape_if_its_data_may_be_missing(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "whole.gguf")
    header = tmp_path / "header.gguf"
    header.write_bytes(whole.read_bytes()[: read_gguf_header(whole).data_start])
    assert inspect_model(header, require_data=False) == inspect_model(whole)
    with pytest.raises(InputError, match="cut off"):
        inspect_model(header)


def test_packed_weights_count_as_the_weights_they_store(tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "model", {**CONFIG, "quantization_config": {"bits": 4}})
    prefix = "model.layers.0.self_attn.q_proj."
    packed = {
        prefix + "qweight": np.zeros((64 * 4 // 32, 64), np.int32),
        prefix + "qzeros": np.zeros((1, 64 * 4 // 32), np.int32),
        prefix + "scales": np.zeros((1, 64), np.float16),
        prefix + "g_idx": np.zeros(64, np.int32),
    }
    save_file(packed, folder / "model.safetensors")
    shape = inspect_model(folder)
    assert shape.n_parameters == shape.n_linear_parameters == 64 * 64
    assert shape.weights_bytes == 4 * (8 * 64 + 8 + 64) + 2 * 64


def test_roles_in_a_folder_of_a_mixture(tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "model", {**CONFIG, "num_experts": 2, "num_experts_per_tok": 1})
    assert inspect_model(folder).tensor_roles == TensorRoles(
        main_type="F16", lookup_bytes=0, expert_bytes=0, expert_parameters=0
    )  # without a head of its own, the embedding is the head
    layer = "model.layers.0.mlp."
    tensors = {
        **hf_tensors(),
        "lm_head.weight": np.zeros((100, 64), np.float16),
        **{f"{layer}experts.{n}.up_proj.weight": np.zeros((96, 64), np.float16) for n in (0, 1)},
        f"{layer}shared_experts.up_proj.weight": np.zeros((96, 64), np.float16),
        f"{layer}gate.weight": np.zeros((2, 64), np.float16),
    }
    save_file(tensors, folder / "model.safetensors")
    assert inspect_model(folder).tensor_roles == TensorRoles(
        main_type="F16",
        lookup_bytes=2 * 100 * 64,
        expert_bytes=2 * 2 * 96 * 64,
        expert_parameters=2 * 96 * 64,
    )


def test_roles_in_a_gguf_file_of_a_mixture(tmp_path: Path) -> None:
    packed = np.zeros((4, 96, 64 // 32 * 18), np.uint8)  # four experts in Q4_0
    shared = np.ones((96, 64), np.float16)
    path = write_gguf(
        tmp_path / "model.gguf",
        more={
            "output.weight": np.ones((100, 64), np.float16),
            "per_layer_token_embd.weight": np.ones((100, 32), np.float16),
            "blk.1.ffn_up_exps.weight": packed,
            "blk.1.ffn_up_shexp.weight": shared,
            "blk.1.ffn_gate_inp.weight": np.ones((4, 64), np.float32),
        },
    )
    assert inspect_model(path).tensor_roles == TensorRoles(
        main_type="Q4_0",
        lookup_bytes=2 * 100 * (64 + 32),
        expert_bytes=packed.nbytes,
        expert_parameters=4 * 96 * 64,
    )


def test_an_index_decides_which_files_count(tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "model", CONFIG)
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    shutil.copy(folder / "part.safetensors", folder / "consolidated.safetensors")
    names = dict.fromkeys(hf_tensors(), "part.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    assert inspect_model(folder).weight_types == {"F16": 7, "F32": 1}
    index.write_text(json.dumps({"weight_map": {**names, "x": "part-2.safetensors"}}))
    with pytest.raises(InputError, match=r"part-2\.safetensors"):
        inspect_model(folder)


@pytest.mark.parametrize("key", ["num_hidden_layers", "hidden_size", "vocab_size"])
def test_a_missing_field_is_named(key: str, tmp_path: Path) -> None:
    config = {name: value for name, value in CONFIG.items() if name != key}
    with pytest.raises(InputError, match=key):
        inspect_model(write_hf(tmp_path / "model", config))


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"num_hidden_layers": -1}', b"\xff\xfe", b'"text"']
)
def test_damaged_configurations(content: bytes, tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "model", CONFIG)
    (folder / "config.json").write_bytes(content)
    with pytest.raises(InputError):
        inspect_model(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 8,
        struct.pack("<Q", 2**40) + b"{}",
        struct.pack("<Q", 5) + b"{}",
        struct.pack("<Q", 14) + b'{"a": {"x":1}}',
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 48) + b'{"a": {"dtype": "F99", "shape": [1], "pad": 0}}  ',
    ],
)
def test_damaged_safetensors(content: bytes, tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "model", CONFIG)
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"model\.safetensors|impossible shape"):
        inspect_model(folder)


def test_a_gguf_cut_off_anywhere_in_its_header_is_an_error(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf")
    whole = path.read_bytes()
    header_end = whole.index(b"blk.0.attn_norm.weight")
    cut = tmp_path / "cut.gguf"
    for size in range(0, header_end, 7):
        cut.write_bytes(whole[:size])
        with pytest.raises(InputError):
            inspect_model(cut)


def test_a_gguf_with_any_header_byte_overwritten_is_read_or_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf")
    whole = bytearray(path.read_bytes())
    damaged = tmp_path / "damaged.gguf"
    for position in range(0, 600, 3):
        copy = whole.copy()
        copy[position] ^= 0xFF
        damaged.write_bytes(copy)
        try:
            assert inspect_model(damaged).n_parameters > 0
        except InputError as error:
            assert str(damaged) in error.what  # noqa: PT017, either outcome is right


def test_files_without_a_language_model(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        inspect_model(tmp_path / "absent.gguf")
    with pytest.raises(InputError, match=r"config\.json"):
        inspect_model(tmp_path)
    text = tmp_path / "model.gguf"
    text.write_text("hello, this is no model")
    with pytest.raises(InputError, match="not a GGUF"):
        inspect_model(text)


def test_one_part_of_a_split_model_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "part.gguf", "llama")
    writer.add_uint16("split.count", 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with pytest.raises(InputError, match="3 parts"):
        inspect_model(tmp_path / "part.gguf")
