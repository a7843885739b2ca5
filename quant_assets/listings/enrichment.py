"""Normalized rows -> rows with their card's figures and what fits on it."""

from collections.abc import Sequence

import pandas as pd

from quant_assets.capacity.heuristics.catalog import make_strategy
from quant_assets.capacity.heuristics.quantization_capacity import QuantizationCapacity
from quant_assets.capacity.heuristics.strategy import (
    GpuFacts,
    HeuristicStrategy,
    apply_strategies,
)
from quant_assets.gpus.registry import GpuRegistry
from quant_assets.listings.stages import EnrichedListings, NormalizedListings

CAPACITY_COLUMN = QuantizationCapacity.name


def enrich(
    normalized: NormalizedListings,
    registry: GpuRegistry,
    *,
    bits: Sequence[int] | None = None,
    overhead_gb: float | None = None,
    quantize_metric: bool = True,
    heuristics: Sequence[str] = (),
) -> EnrichedListings:
    """Add memory, bandwidth, power and prices per GPU and per GB to every row.

    `quantize_metric` also adds how many copies of common model sizes fit on one GPU at `bits`, with
    `overhead_gb` of each GPU reserved, as a JSON column and one column per size, and whether the GPU
    is `quantization_capable`. Without `bits` or `overhead_gb`, those of `heuristics.yaml` apply, as
    its model sizes always do. `heuristics` names additional strategies. Raises `InputError` for an
    unknown strategy or an invalid option.
    """
    strategies = chosen_strategies(bits, overhead_gb, quantize_metric, heuristics)
    workspace = normalized.workspace
    cards = workspace.add_frame("cards", card_table(registry, strategies))
    rows = workspace.new_name("enriched")
    workspace.query(
        f"""
        CREATE VIEW {rows} AS
        SELECT offers.* EXCLUDE (extra), cards.* EXCLUDE (canonical_name),
               vram_gb * gpu_count AS total_vram_gb,
               price_per_gpu_usd / vram_gb AS price_per_gb_usd, extra
        FROM {normalized.rows} AS offers JOIN {cards} AS cards USING (canonical_name)
        """  # noqa: S608, own names
    )
    return EnrichedListings(workspace, rows)


def chosen_strategies(
    bits: Sequence[int] | None,
    overhead_gb: float | None,
    quantize_metric: bool,
    heuristics: Sequence[str] = (),
) -> list[HeuristicStrategy]:
    """The selected strategies; raises `InputError` for an unknown or invalid one."""
    chosen: list[HeuristicStrategy] = []
    if quantize_metric:
        capacity = make_strategy(CAPACITY_COLUMN, bits=bits, overhead_gb=overhead_gb)
        chosen = [capacity, make_strategy("quantization_capable")]
    taken = {strategy.name for strategy in chosen}
    return chosen + [make_strategy(name) for name in heuristics if name not in taken]


def card_table(registry: GpuRegistry, strategies: Sequence[HeuristicStrategy]) -> pd.DataFrame:
    """One row per card of the registry, with its figures and the strategies' results."""
    facts = pd.DataFrame([GpuFacts.of(gpu).model_dump() for gpu in registry.all])
    figures = pd.DataFrame(
        {
            "canonical_name": [gpu.canonical_name for gpu in registry.all],
            "gpu_vendor": [gpu.vendor for gpu in registry.all],
            "gpu_family": [gpu.family for gpu in registry.all],
            "form_factor": [gpu.form_factor for gpu in registry.all],
            "release_year": [gpu.release_year for gpu in registry.all],
            "vram_gb": [gpu.vram_gb for gpu in registry.all],
            "memory_bandwidth_gb_s": pd.Series(
                [gpu.memory_bandwidth_gb_s for gpu in registry.all], dtype="Float64"
            ),
            "tdp_w": pd.Series([gpu.tdp_w for gpu in registry.all], dtype="Int64"),
            "mig_instances": [gpu.mig_instances for gpu in registry.all],
        }
    )
    answers = apply_strategies(facts, strategies).drop(columns=list(facts.columns))
    return pd.concat([figures, answers], axis=1)
