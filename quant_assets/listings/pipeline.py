"""Listings end to end: files in, enriched and quarantined rows out.

The stages are `read_raw`, `normalize` and `enrich`, which can also be run separately;
`check_conservation` proves that none lost a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quant_assets.capacity.heuristics.quantization_capacity import QuantizationCapacity
from quant_assets.errors import InputError
from quant_assets.gpus.registry import GpuRegistry, load_registry
from quant_assets.listings.enrichment import card_table, chosen_strategies, enrich
from quant_assets.listings.normalization import normalize
from quant_assets.listings.reading.files import read_raw
from quant_assets.listings.stages import (
    EnrichedListings,
    NormalizedListings,
    RawListings,
    check_conservation,
)
from quant_assets.listings.store import ParseCache
from quant_assets.listings.writing import other_columns, require_known_format, write_table


@dataclass(frozen=True)
class PipelineOptions:
    """Columns to add to the rows; bit widths and overhead by default those of `heuristics.yaml`."""

    quantize_metric: bool = False
    bits: tuple[int, ...] | None = None
    overhead_gb: float | None = None
    heuristics: tuple[str, ...] = ()
    force: bool = False
    """Replace columns that already exist in the input."""


@dataclass(frozen=True)
class PipelineResult:
    """All stages of one run and the paths of its outputs."""

    raw: RawListings
    normalized: NormalizedListings
    enriched: EnrichedListings
    counts: dict[str, int]
    output: Path | None = None
    quarantine: Path | None = None
    capacity: QuantizationCapacity | None = None
    """The strategy of the capacity columns, if the offers have them."""


def run_pipeline(
    inputs: Sequence[Path],
    output: Path | None = None,
    options: PipelineOptions | None = None,
    *,
    cache: ParseCache | None = None,
    registry: GpuRegistry | None = None,
) -> PipelineResult:
    """Read, normalize and enrich `inputs`; write `output` and, next to it, the quarantined rows.

    The quarantine file of `out.csv` is `out.quarantine.csv`. Raises `InputError` for unusable inputs
    or outputs, and `CheckFailed` when a row was lost.
    """
    options = options or PipelineOptions()
    registry = registry or load_registry()
    strategies = chosen_strategies(
        options.bits, options.overhead_gb, options.quantize_metric, options.heuristics
    )
    if output is not None:
        require_known_format(output)
        _require_output_outside_inputs(inputs, output)
    raw = read_raw(inputs, cache=cache)
    if not options.force:
        added = [str(column) for column in card_table(registry, strategies).columns]
        _require_new_columns(raw, added)
    normalized = normalize(raw, registry)
    enriched = enrich(
        normalized,
        registry,
        bits=options.bits,
        overhead_gb=options.overhead_gb,
        quantize_metric=options.quantize_metric,
        heuristics=options.heuristics,
    )
    counts = check_conservation(raw, normalized, enriched)
    capacity = next((each for each in strategies if isinstance(each, QuantizationCapacity)), None)
    if output is None:
        return PipelineResult(raw, normalized, enriched, counts, capacity=capacity)
    quarantine = output.with_name(f"{output.stem}.quarantine{output.suffix}")
    write_table(enriched.workspace, enriched.rows, output)
    write_table(normalized.workspace, normalized.quarantined, quarantine)
    return PipelineResult(raw, normalized, enriched, counts, output, quarantine, capacity)


def _require_output_outside_inputs(inputs: Sequence[Path], output: Path) -> None:
    """Raise `InputError` when the output would replace, or be read as, an input."""
    target = output.resolve()
    for path in inputs:
        source = path.resolve()
        if source == target or (source.is_dir() and target.is_relative_to(source)):
            raise InputError(
                f"The output {output} lies in the input {path}.",
                "It would replace an input, or be read as one by the next run.",
                "Write the output to another folder.",
            )


def _require_new_columns(raw: RawListings, added: Sequence[str]) -> None:
    """Raise `InputError` when the input has columns that the enrichment adds."""
    present = other_columns(raw.workspace, raw.rows)
    taken = [column for column in present if column in set(added)]
    if taken:
        raise InputError(
            f"The input already has the column {taken[0]!r}.",
            f"Enrichment adds {', '.join(repr(column) for column in taken[:8])}.",
            "Use --force to replace them, or remove the columns from the input.",
        )
