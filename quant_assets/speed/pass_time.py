"""The time of a pass as a sum of physical terms, each with one fitted factor.

Decoding, and prefill with few tokens per pass: the weights stream from memory while every lane
unpacks them, whichever bounds; then the KV cache, and the launches of all layers. Prefill: dense
arithmetic, bounded by throughput or by the board's power; then attention, and launches.

    few tokens:  bounds(weights / bandwidth, arithmetic) + KV / bandwidth + launches
    arithmetic = the faster of unpacking in every lane, per token, and a dense product
    many tokens: bounds(weights / bandwidth, dense product, power) + attention + launches

A factor is a product of a base and of one deviation per key (weight type, architecture, maker, ...);
the fit shrinks deviations towards 1, so that a key with few runs borrows from the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from quant_assets.gpus.registry import Gpu
from quant_assets.speed.workload import Workload

Floats = npt.NDArray[np.float64]
Regime = Literal["few_tokens", "many_tokens"]
REGIMES: Final[tuple[Regime, ...]] = ("few_tokens", "many_tokens")

PassKind = Literal["one_token", "several_tokens", "many_tokens"]
"""Passes whose predictions err alike."""

MOST_FEW_TOKENS: Final = 64
"""Above it, a pass is bounded by dense arithmetic on all but the slowest memory."""

_BLEND: Final = 5.0  # how sharply one bound takes over from another
_MODERN: Final = 2024.67
"""llama.cpp's kernels and CUDA graphs of summer 2024 changed speeds for good."""
_KILO_CYCLES: Final = 1e3


class Prior(NamedTuple):
    """A factor before the fit: its usual value, and spreads of logarithms.

    `spread` is that of the base; `groups` has that of the deviations of each group of keys.
    """

    value: float
    spread: float
    groups: dict[str, float]


FACTORS: Final[dict[Regime, dict[str, Prior]]] = {
    "few_tokens": {
        # Share of the data sheet's bandwidth at which weights are read.
        "weight_bandwidth": Prior(
            0.85,
            0.1,
            {"weight_type": 0.05, "architecture": 0.08, "maker": 0.08, "memory": 0.05,
             "engine": 0.1},
        ),
        # Share of it at which K and V are read.
        "kv_bandwidth": Prior(
            0.7, 0.3, {"backend": 0.3, "attention": 0.7, "maker_attention": 0.5, "architecture": 0.3}
        ),
        # Thousands of cycles per layer between its kernels.
        "launch": Prior(
            200.0,
            1.0,
            {"backend": 0.5, "architecture": 0.3, "chip": 0.2, "family": 0.2, "build": 0.5, "engine": 0.8,
             "layers": 0.4},
        ),
        # Lane cycles to unpack and multiply one weight.
        "unpacking": Prior(
            12.0,
            1.5,
            {"weight_type": 0.3, "maker": 0.8, "architecture": 0.3, "chip": 0.2, "backend": 0.2,
             "family_build": 0.3, "family_maker_build": 0.3, "engine": 0.3, "layers": 0.3},
        ),
        # Share of the dense throughput that a product of few tokens reaches.
        "batched_product": Prior(
            0.15, 0.7, {"backend": 0.5, "architecture": 0.3, "family": 0.3, "engine": 0.3}
        ),
        # The rest of a card: everything takes so much longer.
        "card": Prior(1.0, 1e-3, {"gpu": 0.07}),
    },
    "many_tokens": {
        # Share of the dense throughput.
        "product": Prior(
            0.4,
            0.7,
            {"backend": 0.5, "units": 0.4, "architecture": 0.3, "chip": 0.2, "weight_type": 0.2,
             "family_backend": 0.25, "build": 0.3, "family_maker_build": 0.2, "engine": 0.5,
             "layers": 0.5},
        ),
        # Tokens per pass at which half of that is reached.
        "half_filled": Prior(40.0, 1.0, {"maker": 0.7, "backend": 0.4, "family": 0.3}),
        # 10^12 operations per joule of board power.
        "power": Prior(0.3, 0.1, {"architecture": 0.15, "build": 0.2}),
        # Share of its kernels' throughput that attention reaches.
        "attention": Prior(
            0.2, 0.7, {"attention": 0.7, "backend": 0.5, "maker_attention": 0.4}
        ),
        "launch": Prior(300.0, 0.7, {"backend": 0.5, "engine": 0.5}),
        "weight_bandwidth": Prior(0.8, 0.05, {}),
        "card": Prior(1.0, 1e-3, {"gpu": 0.15}),
    },
}  # fmt: skip

_HALF_FILLED_BATCH: Final = 16.0
_STEP: Final = 1e-4


@dataclass(frozen=True)
class Cases:
    """Workloads on their GPUs as columns: `figures` by name, and `keys` by group."""

    figures: dict[str, Floats]
    keys: dict[str, list[str]]

    def __len__(self) -> int:
        return len(self.keys["gpu"])

    def take(self, rows: Sequence[int]) -> "Cases":
        """Some of the rows."""
        chosen = np.asarray(rows, dtype=np.intp)
        return Cases(
            {name: column[chosen] for name, column in self.figures.items()},
            {group: [column[row] for row in rows] for group, column in self.keys.items()},
        )


def regime_of(workload: Workload) -> Regime:
    """Which of the two sums applies."""
    return "few_tokens" if workload.tokens_per_pass <= MOST_FEW_TOKENS else "many_tokens"


def pass_kind(workload: Workload) -> PassKind:
    """By tokens per pass: one, up to `MOST_FEW_TOKENS`, or more."""
    if workload.tokens_per_pass == 1:
        return "one_token"
    return "several_tokens" if regime_of(workload) == "few_tokens" else "many_tokens"


def is_predictable(gpu: Gpu) -> bool:
    """Whether the registry has every figure that the sums need."""
    return None not in (
        gpu.memory_bandwidth_gb_s, gpu.fp32_vector_tflops, gpu.multiprocessors,
    )  # fmt: skip


def rows_of(regime: Regime, gpus: Sequence[Gpu], workloads: Sequence[Workload]) -> list[int]:
    """The places of the pairs (of equally long lists) that the regime's sum can predict."""
    return [
        row
        for row, (gpu, work) in enumerate(zip(gpus, workloads, strict=True))
        if regime_of(work) == regime and is_predictable(gpu)
    ]


def cases(gpus: Sequence[Gpu], workloads: Sequence[Workload]) -> Cases:
    """The columns of equally many GPUs (see `is_predictable`) and workloads."""
    by_gpu = {gpu.canonical_name: (_gpu_figures(gpu), _gpu_keys(gpu)) for gpu in set(gpus)}
    chips = [by_gpu[gpu.canonical_name] for gpu in gpus]
    figures = {
        name: np.array([figures[name] for figures, _ in chips], dtype=np.float64)
        for name in ("bandwidth", "lane_rate", "dense_rate", "attention_rate", "clock", "watts")
    }
    passes = [-(-work.tokens // work.tokens_per_pass) for work in workloads]
    for name, column in {
        "weights": [work.weight_bytes for work in workloads],
        "parameters": [work.parameters for work in workloads],
        "layers": [work.layers for work in workloads],
        "kv": [work.kv_bytes for work in workloads],
        "attention": [work.attention_flops for work in workloads],
        "tokens": [work.tokens for work in workloads],
        "passes": passes,
    }.items():
        figures[name] = np.array(column, dtype=np.float64)
    # Pairs are many and their kinds few: each workload's keys are made once for a maker.
    made: dict[tuple[int, str], dict[str, str]] = {}
    of_works: list[dict[str, str]] = []
    for (_, chip), work in zip(chips, workloads, strict=True):
        place = (id(work), chip["maker"])
        if place not in made:
            made[place] = _workload_keys(work, chip)
        of_works.append(made[place])
    keys = {
        group: [found[group] for found in source]
        for source in ([keys for _, keys in chips], of_works)
        for group in (source[0] if source else {})
    }
    return Cases(figures, keys)


def seconds(regime: Regime, figures: dict[str, Floats], factors: dict[str, Floats]) -> Floats:
    """The time of the whole step or prefill."""
    f, x = figures, factors
    per_pass = f["tokens"] / f["passes"]
    weights = f["weights"] / (f["bandwidth"] * x["weight_bandwidth"])
    launches = f["layers"] * x["launch"] * _KILO_CYCLES / f["clock"]
    if regime == "few_tokens":
        work = f["parameters"] * per_pass
        unpacking = work * x["unpacking"] / f["lane_rate"]
        rate = f["dense_rate"] * x["batched_product"]
        product = 2 * f["parameters"] * (per_pass + _HALF_FILLED_BATCH) / rate
        arithmetic = np.where(per_pass > 1, _faster(unpacking, product), unpacking)
        kv = f["kv"] / (f["bandwidth"] * x["kv_bandwidth"])
        step: Floats = (_bounds(weights, arithmetic) + launches) * f["passes"] + kv
        return step * x["card"]
    filled = per_pass / (per_pass + x["half_filled"])
    operations = 2 * f["parameters"] * per_pass / filled
    product = operations / (f["dense_rate"] * x["product"])
    power = operations / (f["watts"] * 1e12 * x["power"])
    attention = f["attention"] / (f["attention_rate"] * x["attention"])
    bound = _bounds(_bounds(product, power), weights)
    whole: Floats = (bound + launches) * f["passes"] + attention
    return whole * x["card"]


def log_seconds(regime: Regime, columns: Cases, logs: dict[str, Floats]) -> Floats:
    """The logarithm of the time, from the logarithms of the factors."""
    factors = {factor: np.exp(values) for factor, values in logs.items()}
    logarithm: Floats = np.log(seconds(regime, columns.figures, factors))
    return logarithm


def slopes(regime: Regime, columns: Cases, logs: dict[str, Floats]) -> dict[str, Floats]:
    """How strongly the time depends on each factor: d log(seconds) / d log(factor)."""
    base = log_seconds(regime, columns, logs)
    return {
        factor: (log_seconds(regime, columns, {**logs, factor: values + _STEP}) - base) / _STEP
        for factor, values in logs.items()
    }


def _bounds(first: Floats, second: Floats) -> Floats:
    """The longer of two times; where they are close, both count."""
    longest = np.maximum(first, second)
    ratio = np.minimum(first, second) / longest
    longer: Floats = longest * (1 + ratio**_BLEND) ** (1 / _BLEND)
    return longer


def _faster(first: Floats, second: Floats) -> Floats:
    return 1 / _bounds(1 / first, 1 / second)


def _gpu_figures(gpu: Gpu) -> dict[str, float]:
    """Rates of one device: bytes/s, lane cycles/s, operations/s, cycles/s, watts."""
    assert gpu.memory_bandwidth_gb_s and gpu.fp32_vector_tflops and gpu.multiprocessors
    vector = gpu.fp32_vector_tflops * 1e12 / gpu.devices
    units = gpu.multiprocessors / gpu.devices
    clock = vector / (2 * units * gpu.fp32_lanes)
    matrix = gpu.fp16_dense_tflops
    dense = matrix * 1e12 / gpu.devices * _accumulation(gpu) if matrix else vector
    return {
        "bandwidth": gpu.memory_bandwidth_gb_s * 1e9 / gpu.devices,
        "lane_rate": units * clock * _issue_lanes(gpu),
        "dense_rate": dense,
        # llama.cpp's attention kernels use matrix units on NVIDIA's GPUs.
        "attention_rate": dense if gpu.vendor == "NVIDIA" else vector,
        "clock": clock,
        "watts": gpu.tdp_w / gpu.devices if gpu.tdp_w else 1e6,
    }


def _issue_lanes(gpu: Gpu) -> int:
    """Lanes that a multiprocessor's schedulers can start per clock, of whatever type.

    NVIDIA: four schedulers of 32 lanes; two in compute capability 6.0.
    """
    if gpu.vendor == "AMD" or gpu.compute_capability == "6.0":
        return 64
    return 128


def _accumulation(gpu: Gpu) -> float:
    """llama.cpp's FP16 products accumulate in FP16, at twice the registry's rate on GeForce."""
    return 2.0 if gpu.family.startswith("GeForce RTX") and _has_matrix_units(gpu) else 1.0


def _has_matrix_units(gpu: Gpu) -> bool:
    dense, vector = gpu.fp16_dense_tflops, gpu.fp32_vector_tflops
    return bool(dense and vector and dense > 2.1 * vector) or gpu.family.startswith("GeForce RTX")


def _gpu_keys(gpu: Gpu) -> dict[str, str]:
    matrix = _has_matrix_units(gpu)
    return {
        "gpu": gpu.canonical_name,
        "maker": gpu.vendor,
        "architecture": gpu.architecture,
        "chip": f"{gpu.architecture} {gpu.compute_capability or ''}{'' if matrix else ' vector'}",
        "units": f"{gpu.vendor} {'matrix' if matrix else 'vector'}",
        "memory": "HBM" if gpu.memory_type.startswith("HBM") else
                  "GDDR" if gpu.memory_type.startswith("GDDR") else "unified",
    }  # fmt: skip


_FAMILIES: Final = {"F16": "float", "F32": "float", "BF16": "bfloat"}


def _workload_keys(work: Workload, chip: dict[str, str]) -> dict[str, str]:
    kind = work.weight_type
    family = _FAMILIES.get(kind) or (
        "K" if kind.endswith("_K") else "IQ" if kind.startswith("IQ") else
        "block" if kind.startswith("Q") else "other"
    )  # fmt: skip
    modern = work.engine_year is None or work.engine_year >= _MODERN
    build = "modern" if modern else "before September 2024"
    attention = f"{'flash' if work.flash_attention else 'plain'} {build}"
    backend = f"{chip['maker']} {work.backend}"
    return {
        "weight_type": kind,
        "family": family,
        "build": build,
        "family_build": f"{family} {build}",
        "family_backend": f"{family} {backend}",
        "family_maker_build": f"{family} {chip['maker']} {build}",
        "attention": attention,
        "maker_attention": f"{chip['maker']} {attention}",
        "backend": backend,
        "engine": work.engine,
        "layers": "recurrent" if work.recurrent else "sparse" if work.sparse else "attention",
    }
