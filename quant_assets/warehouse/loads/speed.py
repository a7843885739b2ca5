"""The table of the speed model's predictions, adapted to the runs that were measured here."""

from collections.abc import Sequence
from operator import attrgetter
from typing import Final

import duckdb
import pandas as pd

from quant_assets.gpus.registry import Gpu, GpuRegistry
from quant_assets.speed.model import BACKEND_OF_VENDOR, SpeedModel
from quant_assets.speed.needs import ServingNeeds
from quant_assets.speed.own_runs import own_runs
from quant_assets.warehouse.loads.artifacts import loaded_grid_needs
from quant_assets.warehouse.loads.tables import replace_frames

_FIGURES: Final = ("tokens_per_s", "tokens_per_s_low", "tokens_per_s_high", "rests_on", "runs")
_COLUMNS: Final = [
    "gpu", "model", "variant", "context_tokens", "batch_size",
    *(f"{phase}_{figure}" for phase in ("decode", "prefill") for figure in _FIGURES),
]  # fmt: skip
_figures: Final = attrgetter("tokens_per_s", "low", "high", "rests_on", "runs")
_UNKNOWN: Final = (None,) * len(_FIGURES)
_POINTS_AT_ONCE: Final = 64
"""Points of the serving grid that are predicted for all GPUs together; it bounds the memory."""


def load_speed_predictions(
    connection: duckdb.DuckDBPyConnection, registry: GpuRegistry, model: SpeedModel
) -> int:
    """Load `raw.speed_predictions` for every GPU and point of the grid; return its row count.

    The points are those of `raw.serving_needs`; own runs take precedence on their GPU. A GPU of
    which the registry lacks a figure that decoding depends on has no rows.
    """
    own = [run.observation for run in own_runs(connection, registry)]
    adapted = model.adapted(own, registry)
    points = loaded_grid_needs(connection)
    chunks = (
        points[start : start + _POINTS_AT_ONCE] for start in range(0, len(points), _POINTS_AT_ONCE)
    )
    frames = (_predictions(adapted, registry.all, chunk) for chunk in chunks)
    return replace_frames(connection, "speed_predictions", frames)


def _predictions(
    model: SpeedModel, gpus: Sequence[Gpu], points: Sequence[ServingNeeds]
) -> pd.DataFrame:
    backends = {BACKEND_OF_VENDOR[gpu.vendor] for gpu in gpus}
    decode = {backend: [need.decode_workload(backend) for need in points] for backend in backends}
    prefill = {backend: [need.prefill_workload(backend) for need in points] for backend in backends}
    repeated = [gpu for gpu in gpus for _ in points]
    decoding, prefilling = (
        model.predict(
            repeated, [work for gpu in gpus for work in workloads[BACKEND_OF_VENDOR[gpu.vendor]]]
        )
        for workloads in (decode, prefill)
    )
    pairs = zip(repeated, [*points] * len(gpus), decoding, prefilling, strict=True)
    rows = [
        (
            gpu.canonical_name, need.model, need.variant, need.context_tokens, need.batch_size,
            *_figures(decoded), *(_figures(prefilled) if prefilled else _UNKNOWN),
        )
        for gpu, need, decoded, prefilled in pairs
        if decoded is not None
    ]  # fmt: skip
    # Without a stated type, a column whose first values are all missing would get another one.
    return pd.DataFrame(rows, columns=_COLUMNS).astype({"prefill_rests_on": "string"})
