"""The arithmetic against what llama.cpp really allocates, over tiny models of many architectures.

`benchmarks/allocator_agreement.py` runs the full product; here every architecture has a few points.
"""

from pathlib import Path
from typing import NamedTuple

import pytest

from quant_assets.capacity.allocator import Allocation, AllocationJob
from quant_assets.capacity.memory import Serving, compute_buffer_bytes, kv_cache_bytes
from quant_assets.models.inspection import ModelShape, inspect_model
from quant_assets_tests.capacity.allocations import allocations
from quant_assets_tests.capacity.tiny_architectures import ARCHITECTURES, Tiny, write_tiny

TOLERANCE = 0.005
POINTS_EACH = 2
SERVINGS = (
    Serving(context=512),
    Serving(context=2048, batch=3, kv_type_k="Q8_0", kv_type_v="Q8_0"),
    Serving(context=4096, flash_attention=False),
    Serving(context=1024, batch=4, kv_type_k="Q4_0", kv_type_v="Q4_0", micro_batch=64),
    Serving(context=3000, batch=2, kv_type_k="Q8_0", kv_type_v="Q4_0"),
    Serving(context=8192, batch=5),
    Serving(context=1500, kv_type_k="Q8_0", flash_attention=False),
    Serving(context=700, batch=2, kv_type_k="BF16", kv_type_v="F32"),
)


class Compared(NamedTuple):
    """One point: the arithmetic's shape and llama.cpp's allocation, planned and real."""

    name: str
    shape: ModelShape
    serving: Serving
    planned: Allocation
    real: Allocation


def servings_of(model: Tiny, number: int) -> list[Serving]:
    """The points of a model: another part of the list for each architecture."""
    # Latent attention has one type for K and V.
    fitting = [
        serving for serving in SERVINGS if not model.rank or serving.kv_type_k == serving.kv_type_v
    ]
    return [fitting[(number * POINTS_EACH + i) % len(fitting)] for i in range(POINTS_EACH)]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> list[Compared]:
    folder = tmp_path_factory.mktemp("tiny")
    models = [
        (model, servings_of(model, number), write_tiny(model, folder / f"{number}.gguf"))
        for number, model in enumerate(ARCHITECTURES)
    ]
    planned, real = (
        allocations(
            [AllocationJob(model=path, servings=points, mode=mode) for _, points, path in models]
        )
        for mode in ("planned", "real")
    )
    return [
        Compared(model.name, inspect_model(path), *point)
        for (model, points, path), as_planned, as_real in zip(models, planned, real, strict=True)
        for point in zip(points, as_planned, as_real, strict=True)
    ]


def test_there_are_enough_architectures() -> None:
    assert len(ARCHITECTURES) >= 40
    assert len({model.name for model in ARCHITECTURES}) == len(ARCHITECTURES)


def test_a_plan_is_what_llama_cpp_allocates(compared: list[Compared]) -> None:
    assert [point.planned for point in compared] == [point.real for point in compared]


def test_the_arithmetic_agrees_with_the_allocation(compared: list[Compared]) -> None:
    differences = {}
    for name, shape, serving, _, real in compared:
        assert shape.weights_bytes is not None
        total = (
            shape.weights_bytes
            + kv_cache_bytes(shape, serving)
            + compute_buffer_bytes(shape, serving)
        )
        if not real.total_bytes <= total <= real.total_bytes * (1 + TOLERANCE):
            differences[name, serving] = total / real.total_bytes
    assert not differences


def test_cache_and_weights_agree_to_the_byte(compared: list[Compared]) -> None:
    for name, shape, serving, _, real in compared:
        assert kv_cache_bytes(shape, serving) == real.state_bytes, name
        assert shape.weights_bytes == real.weights_bytes, name


def test_a_window_saves_most_of_a_long_cache(tmp_path: Path) -> None:
    sliding = next(model for model in ARCHITECTURES if model.name == "gemma3, two periods")
    serving = Serving(context=32768)
    shape = inspect_model(write_tiny(sliding, tmp_path / "sliding.gguf"))
    whole = inspect_model(write_tiny(sliding._replace(window=None), tmp_path / "whole.gguf"))
    # Of 14 layers the 6th and the 12th attend to everything, the others to 1024 + 512 tokens.
    expected = (2 * 32768 + 12 * 1536) / (14 * 32768)
    saved = kv_cache_bytes(shape, serving) / kv_cache_bytes(whole, serving)
    assert saved == pytest.approx(expected)
