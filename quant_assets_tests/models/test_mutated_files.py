"""Mutated model files: each raises a readable error, or the values read match the file."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given

from quant_assets.errors import InputError, QuantAssetsError
from quant_assets.formats.gguf_header import read_gguf_header
from quant_assets.formats.safetensors_header import read_safetensors_header, weight_files
from quant_assets.models.inspection import ModelShape, inspect_model
from quant_assets.models.integrity import check_gguf, check_hf_folder
from quant_assets.models.stored_quantization import detect_quantization
from quant_assets.workers.gguf.imatrix_file import MatrixInputs, read_imatrix, write_imatrix
from quant_assets_tests.models.small_files import CONFIG, hf_tensors, write_gguf, write_hf
from quant_assets_tests.mutation import bounded, fuzz_settings, mutated

pytestmark = pytest.mark.fuzz

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def answers(read: Callable[[], None]) -> None:
    """Run `read` within the bounds; a complete error of the project is a valid outcome."""
    with bounded():
        try:
            read()
        except QuantAssetsError as error:
            assert error.what and error.why and error.next_step  # noqa: PT017
            str(error).encode()  # what a terminal or a log can be given


def check_shape(shape: ModelShape) -> None:
    assert shape.n_parameters > 0 and shape.weights_bytes is not None
    assert shape.n_linear_parameters <= shape.n_parameters
    assert shape.context_length is None or shape.context_length > 0
    json.dumps(shape.model_dump(mode="json"), allow_nan=False).encode()


def gguf_headers(tmp_path: Path) -> list[bytes]:
    """Two GGUF files, truncated to the part that is read; the checks see the sizes of the whole files."""
    variants: list[dict[str, object]] = [
        {"tokens": 8},
        {"tokens": 3, "kv_heads": [2, 0], "window": 128, "pattern": [True, False]},
    ]
    return [write_gguf(tmp_path / "seed.gguf", **extra).read_bytes() for extra in variants]


@pytest.fixture(scope="module")
def ggufs(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    return gguf_headers(tmp_path_factory.mktemp("ggufs"))


def test_gguf_files(ggufs: list[bytes], tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    # Edits in 16 KB of weights would prove nothing; they go into the header, and into the size.
    heads = [data[: read_header_end(data)] for data in ggufs]
    data_bytes = len(ggufs[0]) - len(heads[0])

    @fuzz_settings()
    @given(mutated(heads))
    def check(data: bytes) -> None:
        path.write_bytes(data + bytes(data_bytes))

        def read() -> None:
            header = read_gguf_header(path)
            for tensor in header.tensors:
                end = header.data_start + tensor.offset + tensor.n_bytes
                assert tensor.n_bytes > 0 and end <= path.stat().st_size
            check_gguf(path)
            detect_quantization(path)
            check_shape(inspect_model(path))

        answers(read)

    check()


def read_header_end(data: bytes) -> int:
    """Where the header of one of `ggufs` ends: after the name, shape, type and offset of its last."""
    name = b"blk.0.attn_norm.weight"
    return data.rindex(name) + len(name) + 4 + 8 + 4 + 8


def test_gguf_files_are_refused_when_cut_anywhere(ggufs: list[bytes], tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    data = ggufs[0]
    path.write_bytes(data)
    header = read_gguf_header(path)
    end = header.data_start + header.tensors[-1].offset + header.tensors[-1].n_bytes
    for size in {*range(header.data_start, end, 97), end - 1}:
        path.write_bytes(data[:size])
        with pytest.raises(InputError, match="cut off"):
            inspect_model(path)
    path.write_bytes(data[:end])
    assert inspect_model(path).n_layers == 2


def test_safetensors_files(tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "model", CONFIG)
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")

    @fuzz_settings()
    @given(mutated([whole[:end]]))
    def check(head: bytes) -> None:
        path.write_bytes(head + whole[end:])

        def read() -> None:
            header = read_safetensors_header(path)
            ends = [header.data_start + tensor.end for tensor in header.tensors.values()]
            assert max(ends, default=header.data_start) == path.stat().st_size
            check_hf_folder(folder)
            check_shape(inspect_model(folder))

        answers(read)

    check()


@pytest.mark.parametrize("wrong_length", [False, True])
def test_safetensors_headers_of_any_json(tmp_path: Path, wrong_length: bool) -> None:
    """The length before the header follows its edits, so that they reach the JSON reader."""
    path = tmp_path / "model.safetensors"
    whole = (write_hf(tmp_path / "model", CONFIG) / "model.safetensors").read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")

    @fuzz_settings(500)
    @given(mutated([whole[8:end]]))
    def check(text: bytes) -> None:
        length = len(text) + (3 if wrong_length else 0)
        path.write_bytes(struct.pack("<Q", length) + text + whole[end:])

        def read() -> None:
            header = read_safetensors_header(path)
            assert header.data_start + header.data_bytes == path.stat().st_size

        answers(read)

    check()


def test_configurations(tmp_path: Path) -> None:
    quantized = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    sliding = {"sliding_window": 128, "layer_types": ["sliding_attention", "full_attention"]}
    originals = [
        json.dumps({**CONFIG, "architectures": ["LlamaForCausalLM"], **extra}).encode()
        for extra in ({}, sliding, {"quantization_config": quantized}, {"text_config": CONFIG})
    ]
    folder = write_hf(tmp_path / "model", CONFIG)

    @fuzz_settings()
    @given(mutated(originals))
    def check(data: bytes) -> None:
        (folder / "config.json").write_bytes(data)

        def read() -> None:
            detect_quantization(folder)
            check_shape(inspect_model(folder))
            check_hf_folder(folder)

        answers(read)

    check()


def test_indexes(tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "model", {**CONFIG, "architectures": ["LlamaForCausalLM"]})
    for name in SHARDS:
        (folder / "model.safetensors").rename(folder / name) if name == SHARDS[0] else (
            folder / name
        ).write_bytes(struct.pack("<Q", 2) + b"{}")
    outside = tmp_path / "x.safetensors"
    outside.write_bytes((folder / SHARDS[0]).read_bytes())
    weight_map = dict.fromkeys(hf_tensors(), SHARDS[0])
    original = json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}).encode()

    @fuzz_settings()
    @given(mutated([original]))
    def check(data: bytes) -> None:
        (folder / "model.safetensors.index.json").write_bytes(data)

        def read() -> None:
            assert {path.parent for path in weight_files(folder)} == {folder}
            check_hf_folder(folder)
            check_shape(inspect_model(folder))

        answers(read)

    check()


def test_importance_matrices(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.gguf"
    inputs = {
        "blk.0.ffn_up.weight": MatrixInputs(np.ones((1, 64)), np.array([5])),
        "blk.0.ffn_up_exps.weight": MatrixInputs(np.ones((2, 32)), np.array([5, 0])),
    }
    write_imatrix(path, inputs, dataset="text", n_chunks=3, chunk_tokens=128)
    whole = path.read_bytes()

    @fuzz_settings()
    @given(mutated([whole]))
    def check(data: bytes) -> None:
        path.write_bytes(data)

        def read() -> None:
            matrix = read_imatrix(path)
            for tensor in read_gguf_header(path).tensors:
                values = matrix.values(tensor.name.removesuffix(".in_sum2"))
                if tensor.name.endswith(".in_sum2"):
                    assert values is not None and values.size == tensor.n_elements
                    assert np.isfinite(values).all() and (values >= 0).all()

        answers(read)

    check()
