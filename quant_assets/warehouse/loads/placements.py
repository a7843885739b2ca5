"""The table of placements: how each GPU of the registry holds a copy at each point of the grid."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import duckdb
import pandas as pd

from quant_assets.artifacts.store import ArtifactStore
from quant_assets.bench.variants import Variant
from quant_assets.capacity.device_memory import DeviceBudget, device_budget
from quant_assets.capacity.memory import MemoryEstimate, Serving, Weights
from quant_assets.capacity.placement import CopyParts, copies_held, copy_parts, place
from quant_assets.gpus.registry import Gpu, GpuRegistry
from quant_assets.models.inspection import ModelShape
from quant_assets.speed.needs import ServingNeeds
from quant_assets.speed.placed_speed import transfer_seconds
from quant_assets.warehouse.loads.artifacts import loaded_grid_needs, shape_reader
from quant_assets.warehouse.loads.tables import replace_frames

_COLUMNS: Final = [
    "gpu", "model", "variant", "context_tokens", "batch_size", "gpus_per_card",
    "gpu_memory_bytes", "gpus_per_copy", "copies_per_gpu", "fullest_gpu_bytes", "transfer_s",
]  # fmt: skip


class PlacedCopy(NamedTuple):
    """A copy at one point of the serving grid, by parts; `hidden_size` decides what passes between GPUs."""

    needs: ServingNeeds
    parts: CopyParts
    hidden_size: int


class _Held(NamedTuple):
    """How devices of one budget hold a copy; the columns of the table."""

    gpu_memory_bytes: int
    gpus_per_copy: int | None
    copies_per_gpu: int
    fullest_gpu_bytes: int | None
    transfer_s: float | None


def load_placements(
    connection: duckdb.DuckDBPyConnection,
    store: ArtifactStore,
    variants: Mapping[str, Variant],
    registry: GpuRegistry,
) -> int:
    """Load `raw.placements` for every GPU and point of the grid; return its row count.

    The points are those of `raw.serving_needs`; the bytes of the layers come from the headers of the
    artifacts that they name.
    """
    shape_of = shape_reader(store)
    copies = []
    for needs in loaded_grid_needs(connection):
        manifest = store.find(needs.artifact_id)
        shape = shape_of(manifest) if manifest else None
        if shape is not None and needs.variant in variants:
            parts = copy_parts(needs_estimate(needs, shape, variants[needs.variant]))
            copies.append(PlacedCopy(needs, parts, shape.hidden_size))
    frames = (placement_rows(copy, registry.all) for copy in copies)
    return replace_frames(connection, "placements", frames)


def placement_rows(copy: PlacedCopy, gpus: Sequence[Gpu]) -> pd.DataFrame:
    """The rows of one copy, one per GPU."""
    budgets = {gpu.canonical_name: device_budget(gpu) for gpu in gpus}
    held = {budget: _held(copy, budget) for budget in _distinct(budgets.values())}
    needs = copy.needs
    rows = [
        (
            gpu.canonical_name, needs.model, needs.variant, needs.context_tokens, needs.batch_size,
            gpu.devices, *held[budgets[gpu.canonical_name]],
        )
        for gpu in gpus
    ]  # fmt: skip
    types = {"gpus_per_copy": "Int64", "fullest_gpu_bytes": "Int64", "transfer_s": "Float64"}
    return pd.DataFrame(rows, columns=_COLUMNS).astype(types)


def _distinct(budgets: Iterable[DeviceBudget]) -> Iterable[DeviceBudget]:
    return dict.fromkeys(budgets)


def _held(copy: PlacedCopy, budget: DeviceBudget) -> _Held:
    placement = place(copy.parts, budget)
    if placement is None:
        return _Held(budget.capacity_bytes, None, 0, None, None)
    spanned = len(placement.devices)
    return _Held(
        gpu_memory_bytes=budget.capacity_bytes,
        gpus_per_copy=spanned,
        copies_per_gpu=copies_held(copy.parts, budget, devices=1),
        fullest_gpu_bytes=max(share.total_bytes for share in placement.devices),
        transfer_s=transfer_seconds(copy.hidden_size, copy.needs.batch_size, spanned - 1),
    )


def needs_estimate(needs: ServingNeeds, shape: ModelShape, variant: Variant) -> MemoryEstimate:
    """The estimate whose figures are those of `needs`."""
    kv_type_k, kv_type_v = variant.cache_type_k.upper(), variant.cache_type_v.upper()
    return MemoryEstimate(
        model=needs.model,
        level=variant.level,
        basis="an artifact",
        n_parameters=shape.n_parameters,
        context=needs.context_tokens,
        batch=needs.batch_size,
        kv_type_k=kv_type_k,
        kv_type_v=kv_type_v,
        weights_bytes=needs.weights_bytes,
        kv_cache_bytes=needs.kv_cache_bytes,
        compute_bytes=needs.compute_bytes,
        shape=shape,
        serving=Serving(
            context=needs.context_tokens,
            batch=needs.batch_size,
            kv_type_k=kv_type_k,
            kv_type_v=kv_type_v,
        ),
        weights=Weights(
            level=variant.level,
            weights_bytes=needs.weights_bytes,
            basis="an artifact",
            weight_type=needs.weight_type,
            checkpoint=variant.format != "gguf",
        ),
    )
