"""The two ways of getting tensor types from llama.cpp agree."""

from pathlib import Path

import pytest

from quant_assets.errors import InputError
from quant_assets.formats.gguf_levels import GGUF_LEVELS, parse_level
from quant_assets.workers.gguf import plan, type_policy
from quant_assets.workers.gguf.ggml import GgufMetadata, type_name
from quant_assets.workers.gguf.imatrix_file import read_imatrix
from quant_assets_tests.models.tiny_models import ARCHITECTURES


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_library_and_dry_run_agree(bf16_files: dict[str, Path], architecture: str) -> None:
    metadata = GgufMetadata(bf16_files[architecture])
    tensors = sorted(metadata.tensors(), key=lambda tensor: tensor.name)
    for level in GGUF_LEVELS:
        from_library = type_policy.types_from_library(metadata, tensors, level)
        from_log = type_policy.types_from_dry_run(metadata, tensors, level, has_imatrix=False)
        assert from_library == from_log, level
    metadata.close()


def test_a_build_without_the_symbols_falls_back(
    bf16_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = GgufMetadata(bf16_files["llama"])
    level = parse_level("Q4_K_M")
    with_symbols = plan.make_plan(metadata, level, None)
    monkeypatch.setitem(type_policy._SYMBOLS, "compute", "no_such_symbol")
    without = plan.make_plan(metadata, level, None)
    assert (with_symbols.type_policy, without.type_policy) == ("library", "dry_run")
    assert without.tensors == with_symbols.tensors
    assert without.header == with_symbols.header
    assert without.file_bytes == with_symbols.file_bytes


def test_importances_change_the_types_of_some_levels(
    bf16_files: dict[str, Path], imatrices: dict[str, Path]
) -> None:
    metadata = GgufMetadata(bf16_files["llama"])
    level = parse_level("Q4_0")
    matrix = read_imatrix(imatrices["llama"])
    types = {
        tensor.name: type_name(tensor.target_type)
        for tensor in plan.make_plan(metadata, level, matrix).tensors
    }
    assert types["blk.0.ffn_down.weight"] == "Q4_1"
    assert types["blk.1.ffn_down.weight"] == "Q4_0"


def test_levels_need_importances_exactly_where_llama_cpp_does(
    bf16_files: dict[str, Path],
) -> None:
    metadata = GgufMetadata(bf16_files["llama"])
    refused = set()
    for level in GGUF_LEVELS:
        try:
            plan.make_plan(metadata, level, None)
        except InputError:
            refused.add(level.name)
    assert refused == {level.name for level in GGUF_LEVELS if level.needs_imatrix}
