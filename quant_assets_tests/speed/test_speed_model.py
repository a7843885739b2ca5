"""The speed model: what a fit recovers, what it borrows, and how own runs correct it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from quant_assets.errors import InputError
from quant_assets.gpus.registry import GpuRegistry, load_registry
from quant_assets.speed.fitting import cross_validated, fit_speed_model
from quant_assets.speed.model import (
    BACKEND_OF_VENDOR,
    SpeedModel,
    load_speed_model,
)
from quant_assets.speed.pass_time import is_predictable
from quant_assets.speed.workload import Observation, Workload

CARDS = (
    "GeForce RTX 3060 12GB", "GeForce RTX 3080 10GB", "GeForce RTX 3090", "RTX A4000", "RTX A5000",
    "GeForce RTX 4060", "GeForce RTX 4070", "GeForce RTX 4090", "RTX 4000 Ada",
    "Radeon RX 7900 XTX", "Radeon RX 7900 XT", "M2 Ultra 192GB",
)  # fmt: skip
MODELS = {"1B": (1.2e9, 16), "8B": (8.0e9, 32), "14B": (14.7e9, 48)}
LEVELS = {"Q4_K": 4.8, "Q8_0": 8.5, "F16": 16.0}


@pytest.fixture(scope="module")
def registry() -> GpuRegistry:
    return load_registry()


def decoding(
    model: str = "8B", level: str = "Q4_K", batch: int = 1, backend: str = "CUDA"
) -> Workload:
    parameters, layers = MODELS[model]
    return Workload(
        phase="decode",
        engine="llama.cpp",
        backend=backend,  # type: ignore[arg-type]
        weight_type=level,
        weight_bytes=parameters * LEVELS[level] / 8,
        parameters=parameters,
        layers=layers,
        batch=batch,
        tokens=batch,
        tokens_per_pass=batch,
        kv_bytes=batch * 1e8,
        attention_flops=batch * 1e8,
    )


def prefill(model: str = "8B", level: str = "Q4_K", backend: str = "CUDA") -> Workload:
    work = decoding(model, level, backend=backend)
    return replace(
        work, phase="prefill", tokens=1024, tokens_per_pass=512, kv_bytes=0.0, attention_flops=1e11
    )


def true_seconds(registry: GpuRegistry, name: str, work: Workload) -> float:
    """A world of its own: other efficiencies than the priors', and no blend of bounds."""
    gpu = registry.by_name[name]
    assert gpu.memory_bandwidth_gb_s and gpu.fp32_vector_tflops
    share = {"Q4_K": 0.7, "Q8_0": 0.8, "F16": 0.85}[work.weight_type]
    launch = {"NVIDIA": 40e-6, "AMD": 70e-6, "Apple": 55e-6}[gpu.vendor]
    weights = work.weight_bytes / (gpu.memory_bandwidth_gb_s * 1e9 * share)
    if work.phase == "decode":
        kv = work.kv_bytes / (gpu.memory_bandwidth_gb_s * 1e9 * 0.6)
        return weights + kv + launch * work.layers
    dense = 2 * work.parameters * work.tokens / (gpu.fp32_vector_tflops * 1e12 * 0.8)
    return dense + 2 * launch * work.layers


def world(registry: GpuRegistry, cards: Sequence[str], noise: float) -> list[Observation]:
    random = np.random.default_rng(7)
    found = []
    for card in cards:
        backend = BACKEND_OF_VENDOR[registry.by_name[card].vendor]
        for model in MODELS:
            for level in LEVELS:
                for work in (
                    decoding(model, level, backend=backend),
                    prefill(model, level, backend=backend),
                ):
                    seconds = true_seconds(registry, card, work) * np.exp(random.normal(0, noise))
                    found.append(Observation(card, work, work.tokens / seconds))
    return found


@pytest.fixture(scope="module")
def observations(registry: GpuRegistry) -> list[Observation]:
    return world(registry, CARDS, noise=0.03)


@pytest.fixture(scope="module")
def fitted(observations: list[Observation], registry: GpuRegistry) -> SpeedModel:
    return fit_speed_model(observations, registry, sources=["a table"])


def test_cards_that_a_fit_has_not_seen_decode_as_fast_as_predicted(
    observations: list[Observation], registry: GpuRegistry
) -> None:
    predictions = cross_validated(observations, registry)
    pairs = [
        (run, found)
        for run, found in zip(observations, predictions, strict=True)
        if found is not None and run.workload.phase == "decode"
    ]
    assert len(pairs) == len(observations) / 2
    errors = [abs(found.tokens_per_s / run.tokens_per_s - 1) for run, found in pairs]
    constant = [
        abs(
            0.6
            * (registry.by_name[run.gpu].memory_bandwidth_gb_s or 0)
            * 1e9
            / (run.workload.weight_bytes + run.workload.kv_bytes)
            / run.tokens_per_s
            - 1
        )
        for run, _ in pairs
    ]
    assert np.median(errors) < 0.1
    assert np.median(errors) < np.median(constant) / 2
    inside = [found.low <= run.tokens_per_s <= found.high for run, found in pairs]
    assert np.mean(inside) >= 0.8


def test_predictions_say_what_they_rest_on(fitted: SpeedModel, registry: GpuRegistry) -> None:
    def rests_on(name: str) -> str:
        gpu = registry.by_name[name]
        work = decoding(backend=BACKEND_OF_VENDOR[gpu.vendor])
        (found,) = fitted.predict([gpu], [work])
        assert found is not None
        return found.rests_on

    assert rests_on("GeForce RTX 3090") == "this GPU"
    assert rests_on("RTX A6000") == "its architecture"
    assert rests_on("H100 SXM5 80GB") == "its maker"
    assert rests_on("Arc A770 16GB") == "all GPUs"


def test_a_fit_survives_its_file(fitted: SpeedModel, registry: GpuRegistry, tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    fitted.save(path)
    again = load_speed_model(path)
    assert again.sources == ("a table",)
    gpus, works = [registry.by_name["RTX A6000"]] * 2, [decoding(), prefill()]
    assert again.predict(gpus, works) == fitted.predict(gpus, works)


def test_a_damaged_model_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    path.write_text("regimes: [1, 2", encoding="utf-8")
    with pytest.raises(InputError, match=r"model\.yaml"):
        load_speed_model(path)
    path.write_text("runs: 3", encoding="utf-8")
    with pytest.raises(InputError, match=r"model\.yaml"):
        load_speed_model(path)


def test_too_few_runs_and_unknown_cards_are_refused(
    observations: list[Observation], registry: GpuRegistry
) -> None:
    with pytest.raises(InputError, match="cannot be fitted"):
        fit_speed_model(observations[:20], registry)
    stranger = replace(observations[0], gpu="GeForce RTX 9999")
    with pytest.raises(InputError, match="GPUs that the registry does not have"):
        fit_speed_model([*observations, stranger], registry)


def test_own_runs_take_precedence_and_shrink_the_interval(registry: GpuRegistry) -> None:
    model = load_speed_model()
    gpu = registry.by_name["GeForce RTX 3060 12GB"]
    works = [decoding("8B"), decoding("1B"), decoding("8B", "Q8_0")]
    before = model.predict([gpu] * 3, works)
    assert before[0] is not None
    slow = before[0].tokens_per_s * 0.7
    after = model.adapted([Observation(gpu.canonical_name, works[0], slow)]).predict(
        [gpu] * 3, works
    )
    for old, new in zip(before, after, strict=True):
        assert old is not None and new is not None
        assert new.tokens_per_s < old.tokens_per_s
        assert new.high / new.low < old.high / old.low
        assert new.rests_on == "this GPU"
    assert after[0] is not None
    assert after[0].tokens_per_s == pytest.approx(slow, rel=0.05)


def test_own_runs_say_nothing_about_other_gpus_backends_and_phases(registry: GpuRegistry) -> None:
    model = load_speed_model()
    ours, other = registry.by_name["GeForce RTX 3060 12GB"], registry.by_name["GeForce RTX 3090"]
    adapted = model.adapted([Observation(ours.canonical_name, decoding(), 10.0)])
    gpus, works = [other, ours, ours], [decoding(), decoding(backend="Vulkan"), prefill()]
    assert adapted.predict(gpus, works) == model.predict(gpus, works)


def test_the_model_that_ships_answers_for_every_gpu_within_physics(registry: GpuRegistry) -> None:
    model = load_speed_model()
    gpus = [gpu for gpu in registry.all if is_predictable(gpu)]
    assert len(gpus) > 0.95 * len(registry.all)
    for work_of in (decoding, prefill):
        works = [work_of("8B", backend=BACKEND_OF_VENDOR[gpu.vendor]) for gpu in gpus]
        larger = [work_of("14B", backend=BACKEND_OF_VENDOR[gpu.vendor]) for gpu in gpus]
        for gpu, work, small, large in zip(
            gpus, works, model.predict(gpus, works), model.predict(gpus, larger), strict=True
        ):
            assert small is not None and large is not None and gpu.memory_bandwidth_gb_s
            assert 0 < small.low < small.tokens_per_s < small.high < float("inf")
            assert large.tokens_per_s < small.tokens_per_s
            if work.phase == "decode":
                bandwidth = gpu.memory_bandwidth_gb_s / gpu.devices * 1e9
                assert small.tokens_per_s * work.weight_bytes < bandwidth


def test_more_sequences_share_the_weights(registry: GpuRegistry) -> None:
    model = load_speed_model()
    gpu = registry.by_name["GeForce RTX 4090"]
    batches = (1, 2, 4, 8, 32, 64)
    found = model.predict([gpu] * 6, [decoding(batch=batch) for batch in batches])
    speeds = [item.tokens_per_s for item in found if item is not None]
    assert speeds == sorted(speeds)
    each = [speed / batch for speed, batch in zip(speeds, batches, strict=True)]
    assert each == sorted(each, reverse=True)
