"""The engine's files equal llama.cpp's, byte for byte."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant_assets.formats.gguf_levels import GGUF_LEVELS, GgufLevel, parse_level
from quant_assets_tests.models.tiny_models import ARCHITECTURES, make_model
from quant_assets_tests.workers.gguf.child_scripts import FAST_LEVELS, IQ_LEVELS, run_scripts, tasks


def assert_same_files(reference: Path, ours: Path, names: list[str]) -> None:
    """Compare whole files: metadata, types, data, padding; name the tensors that differ."""
    from gguf import GGUFReader

    for name in names:
        if (reference / name).read_bytes() == (ours / name).read_bytes():
            continue
        theirs = {tensor.name: tensor for tensor in GGUFReader(reference / name).tensors}
        different = [
            tensor.name
            for tensor in GGUFReader(ours / name).tensors
            if tensor.tensor_type != theirs[tensor.name].tensor_type
            or not np.array_equal(tensor.data, theirs[tensor.name].data)
        ]
        pytest.fail(f"{name} differs, in the tensors {different or 'none: only in metadata'}")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_without_importances(
    both_ways: tuple[Path, Path, list[dict[str, Any]]], architecture: str
) -> None:
    reference, ours, _ = both_ways
    names = [f"{architecture}-{level}.gguf" for level in FAST_LEVELS]
    assert len(names) == 17
    assert_same_files(reference, ours, names)


def test_results_describe_the_files(
    both_ways: tuple[Path, Path, list[dict[str, Any]]],
) -> None:
    from gguf import GGUFReader

    _, ours, results = both_ways
    (result,) = (entry for entry in results if entry["output"].endswith("llama_tied-Q4_K_M.gguf"))
    file = ours / "llama_tied-Q4_K_M.gguf"
    tensors = GGUFReader(file).tensors
    types = [tensor.tensor_type.name for tensor in tensors]
    n_parameters = sum(int(tensor.n_elements) for tensor in tensors)
    assert result["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert result["bytes"] == result["bytes_written"] + _padding(tensors) == file.stat().st_size
    assert result["tensor_types"] == {name: types.count(name) for name in set(types)}
    assert "Q5_0" in types  # rows of 288 numbers cannot be Q4_K
    assert result["n_parameters"] == n_parameters
    assert result["bits_per_weight"] == pytest.approx(
        8 * sum(int(tensor.n_bytes) for tensor in tensors) / n_parameters
    )
    assert result["type_policy"] == "library"
    assert result["intermediate"] == "BF16"
    assert result["resumed_from_layer"] is None


def _padding(tensors: Any) -> int:
    return sum(-int(tensor.n_bytes) % 32 for tensor in tensors)


# ggml's IQ kernels are slow. In these two models every level is tested on rows not divisible by 256
# and on rows of experts; the others share the levels: some per model, at least three models per level.
ALL_IQ_LEVELS = ("llama_tied", "mixtral")


def levels_with_importances(architecture: str) -> list[GgufLevel]:
    if architecture in ALL_IQ_LEVELS:
        return list(GGUF_LEVELS)
    others = [name for name in ARCHITECTURES if name not in ALL_IQ_LEVELS]
    shared = IQ_LEVELS[others.index(architecture) :: len(others)]
    return [level for level in GGUF_LEVELS if level not in IQ_LEVELS or level in shared]


@pytest.mark.slow
def test_with_importances(
    models: dict[str, Path],
    bf16_files: dict[str, Path],
    imatrices: dict[str, Path],
    tmp_path: Path,
) -> None:
    reference, ours = tmp_path / "reference", tmp_path / "ours"
    levels = {name: levels_with_importances(name) for name in ARCHITECTURES}

    def jobs(sources: dict[str, Path], folder: Path) -> list[dict[str, Any]]:
        return [
            task
            for name in ARCHITECTURES
            for task in tasks({name: sources[name]}, levels[name], folder, imatrices)
        ]

    # The reference starts from the converted files, which saves their conversion.
    both = {"two_step.py": jobs(bf16_files, reference), "one_pass.py": jobs(models, ours)}
    run_scripts(both, tmp_path)
    assert_same_files(reference, ours, [Path(job["output"]).name for job in both["one_pass.py"]])
    for level in GGUF_LEVELS:
        assert sum(level in chosen for chosen in levels.values()) >= 3, level


@pytest.mark.slow
def test_iq_levels_without_importances(
    models: dict[str, Path], bf16_files: dict[str, Path], tmp_path: Path
) -> None:
    reference, ours = tmp_path / "reference", tmp_path / "ours"
    levels = [level for level in IQ_LEVELS if not level.needs_imatrix]
    run_scripts(
        {
            "two_step.py": tasks(bf16_files, levels, reference, {}),
            "one_pass.py": tasks(models, levels, ours, {}),
        },
        tmp_path,
    )
    names = [f"{name}-{level}.gguf" for name in ARCHITECTURES for level in levels]
    assert_same_files(reference, ours, names)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_other_float_types_and_shards(tmp_path: Path, tokenizer: bytes, dtype: str) -> None:
    model = make_model(tmp_path / "m", "llama", tokenizer, dtype=dtype, max_shard_size="3MB")
    assert len(list(model.glob("*.safetensors"))) > 1
    levels = [parse_level("Q4_K_M"), parse_level("F16")]
    printed = run_scripts(
        {
            "two_step.py": tasks({"m": model}, levels, tmp_path / "reference", {}),
            "one_pass.py": tasks({"m": model}, levels, tmp_path / "ours", {}),
        },
        tmp_path,
    )
    assert f'"intermediate":"{"F16" if dtype == "float16" else "F32"}"' in printed["one_pass.py"]
    assert_same_files(tmp_path / "reference", tmp_path / "ours", ["m-Q4_K_M.gguf", "m-F16.gguf"])


def test_from_a_gguf_file(
    bf16_files: dict[str, Path],
    both_ways: tuple[Path, Path, list[dict[str, Any]]],
    tmp_path: Path,
) -> None:
    sources = {name: bf16_files[name] for name in ("llama", "mixtral")}
    levels = [parse_level("Q4_K_M"), parse_level("Q8_0")]
    run_scripts({"one_pass.py": tasks(sources, levels, tmp_path / "ours", {})}, tmp_path)
    names = [f"{name}-{level}.gguf" for name in sources for level in levels]
    assert_same_files(both_ways[0], tmp_path / "ours", names)
