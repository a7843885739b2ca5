"""Tiny models, and both ways of quantizing them, once per session."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant_assets.formats.gguf_levels import parse_level
from quant_assets.quantize.gguf.job import QuantizeGgufJob
from quant_assets.workers.gguf.imatrix_file import MatrixInputs, write_imatrix
from quant_assets_tests.models.tiny_models import (
    ARCHITECTURES,
    calibration_text,
    make_model,
    tokenizer_model,
)
from quant_assets_tests.workers.gguf.child_scripts import FAST_LEVELS, run_scripts, tasks


@pytest.fixture(scope="session")
def tokenizer() -> bytes:
    return tokenizer_model()


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory, tokenizer: bytes) -> dict[str, Path]:
    """A tiny checkpoint per architecture."""
    folder = tmp_path_factory.mktemp("models")
    return {name: make_model(folder / name, name, tokenizer) for name in ARCHITECTURES}


@pytest.fixture(scope="session")
def both_ways(
    models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, list[dict[str, Any]]]:
    """Every model at the levels of `child_scripts.FAST_LEVELS`: (reference, ours, results)."""
    folder = tmp_path_factory.mktemp("both")
    printed = run_scripts(
        {
            "two_step.py": tasks(models, FAST_LEVELS, folder / "reference", {}),
            "one_pass.py": tasks(models, FAST_LEVELS, folder / "ours", {}),
        },
        folder,
    )
    results = [json.loads(line) for line in printed["one_pass.py"].splitlines()]
    return folder / "reference", folder / "ours", results


@pytest.fixture(scope="session")
def bf16_files(both_ways: tuple[Path, Path, list[dict[str, Any]]]) -> dict[str, Path]:
    """Each model as a BF16 GGUF, as llama.cpp's converter writes it."""
    return {name: both_ways[0] / "converted" / f"{name}.gguf" for name in ARCHITECTURES}


@pytest.fixture(scope="session")
def imatrices(
    bf16_files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A random importance matrix per model; one expert has no inputs."""
    from gguf import GGUFReader

    folder = tmp_path_factory.mktemp("imatrices")
    generator = np.random.default_rng(3)
    paths = {}
    for name, file in bf16_files.items():
        inputs = {}
        for tensor in GGUFReader(file).tensors:
            row, _, experts = ([int(extent) for extent in tensor.shape] + [1, 1])[:3]
            if tensor.name.startswith("blk.") and len(tensor.shape) > 1:
                counts = np.full(experts, 640, dtype=np.int64)
                if experts > 1:
                    counts[-1] = 0
                inputs[tensor.name] = MatrixInputs(
                    sums=generator.gamma(0.5, 100.0, (experts, row)) * (counts[:, None] > 0),
                    counts=counts,
                )
        paths[name] = folder / f"{name}.imatrix.gguf"
        write_imatrix(paths[name], inputs, dataset="random", n_chunks=5, chunk_tokens=128)
    return paths


@pytest.fixture(scope="session")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("calibration") / "text.txt"
    path.write_text(calibration_text()[:20_000], encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def larger_bf16(tmp_path_factory: pytest.TempPathFactory, tokenizer: bytes) -> Path:
    """A BF16 GGUF with 30 M parameters in 10 blocks: large enough to interrupt."""
    folder = tmp_path_factory.mktemp("larger")
    model = make_model(
        folder / "larger", "llama", tokenizer, hidden_size=512, head_dim=128,
        intermediate_size=1024, num_hidden_layers=10,
    )  # fmt: skip
    jobs = tasks({"larger": model}, [parse_level("BF16")], folder, {})
    run_scripts({"one_pass.py": jobs}, folder)
    return Path(jobs[0]["output"])


@pytest.fixture
def job(larger_bf16: Path, tmp_path: Path) -> Iterator[QuantizeGgufJob]:
    """A job on the larger model, without validating the output."""
    return QuantizeGgufJob(
        source=larger_bf16,
        source_kind="gguf",
        source_identity="the larger model",
        level="Q4_K_M",
        output=tmp_path / "larger-Q4_K_M.gguf",
        threads=1,
        validate_output=False,
    )
