"""The memory arithmetic against what llama.cpp really allocates: `make bench-memory`.

Every tiny architecture of the tests is loaded and every buffer allocated, at every combination of
contexts, batches, cache types and flash attention. The table gives the smallest and the largest ratio
of the arithmetic's total to the allocated one; below 1, or above 1 by more than the tolerance, the
script fails. A second table does the same for what the allocator plans without weights.
"""

import argparse
import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Final, NamedTuple

from arguments import positive_list
from rich.console import Console
from rich.table import Table

from quant_assets.capacity.allocator import Allocation, AllocationJob
from quant_assets.capacity.memory import Serving, compute_buffer_bytes, kv_cache_bytes
from quant_assets.errors import InputError
from quant_assets.models.inspection import ModelShape, inspect_model
from quant_assets_tests.capacity.allocations import allocations
from quant_assets_tests.capacity.tiny_architectures import ARCHITECTURES, write_tiny

TOLERANCE: Final = 0.005
CACHE_TYPES: Final = (
    ("F16", "F16"), ("Q8_0", "Q8_0"), ("Q4_0", "Q4_0"), ("Q8_0", "Q4_0"), ("Q8_0", "F16"),
)  # fmt: skip


class Agreement(NamedTuple):
    """One architecture: points, and the extreme ratios of two answers to the real allocation."""

    name: str
    points: int
    largest_bytes: int
    arithmetic: tuple[float, float]
    planned: tuple[float, float]

    @property
    def holds(self) -> bool:
        """Whether no total lies below the allocation or above the tolerance."""
        extremes = (*self.arithmetic, *self.planned)
        return min(extremes) >= 1 and max(extremes) <= 1 + TOLERANCE


def servings(
    contexts: Sequence[int], batches: Sequence[int], micro: Sequence[int]
) -> list[Serving]:
    """The product of all points."""
    return [
        Serving(
            context=context,
            batch=batch,
            kv_type_k=kv_type_k,
            kv_type_v=kv_type_v,
            flash_attention=flash_attention,
            micro_batch=micro_batch,
        )
        for context, batch, (kv_type_k, kv_type_v), flash_attention, micro_batch in product(
            contexts, batches, CACHE_TYPES, (True, False), micro
        )
    ]


def arithmetic_bytes(shape: ModelShape, serving: Serving) -> int | None:
    """The arithmetic's total; None for a point that llama.cpp refuses."""
    assert shape.weights_bytes is not None
    try:
        cache = kv_cache_bytes(shape, serving)
    except InputError:
        return None
    return shape.weights_bytes + cache + compute_buffer_bytes(shape, serving)


def measure(points: Sequence[Serving], folder: Path) -> list[Agreement]:
    """Load every architecture and compare it at every point that it allows."""
    found = []
    for number, model in enumerate(ARCHITECTURES):
        path = write_tiny(model, folder / f"{number}.gguf")
        shape = inspect_model(path)
        totals = {serving: arithmetic_bytes(shape, serving) for serving in points}
        allowed = {serving: total for serving, total in totals.items() if total is not None}
        real, planned = allocations(
            [
                AllocationJob(model=path, servings=list(allowed), mode="real"),
                AllocationJob(model=path, servings=list(allowed)),
            ]
        )
        path.unlink()
        found.append(
            Agreement(
                name=model.name,
                points=len(allowed),
                largest_bytes=max(allocation.total_bytes for allocation in real),
                arithmetic=_extremes(list(allowed.values()), real),
                planned=_extremes([allocation.total_bytes for allocation in planned], real),
            )
        )
    return found


def _extremes(totals: Sequence[int], real: Sequence[Allocation]) -> tuple[float, float]:
    ratios = [
        total / allocation.total_bytes for total, allocation in zip(totals, real, strict=True)
    ]
    return min(ratios), max(ratios)


def table(found: Sequence[Agreement]) -> Table:
    """The agreement of every architecture, and of all together."""
    result = Table(title="Total over llama.cpp's allocation", title_justify="left")
    result.add_column("architecture", no_wrap=True)
    for column in ("points", "largest MB", "arithmetic", "allocator's plan", "holds"):
        result.add_column(column, justify="right", no_wrap=True)
    everything = Agreement(
        name="all",
        points=sum(row.points for row in found),
        largest_bytes=max(row.largest_bytes for row in found),
        arithmetic=(
            min(row.arithmetic[0] for row in found),
            max(row.arithmetic[1] for row in found),
        ),
        planned=(min(row.planned[0] for row in found), max(row.planned[1] for row in found)),
    )
    for row in (*found, everything):
        if row is everything:
            result.add_section()
        result.add_row(
            row.name,
            str(row.points),
            f"{row.largest_bytes / 1e6:.1f}",
            f"{row.arithmetic[0]:.4f} to {row.arithmetic[1]:.4f}",
            f"{row.planned[0]:.4f} to {row.planned[1]:.4f}",
            "yes" if row.holds else "NO",
        )
    return result


def main() -> None:
    """Measure, print, and fail where the arithmetic does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contexts", type=positive_list, default=(256, 2048, 8192))
    parser.add_argument("--batches", type=positive_list, default=(1, 3, 8))
    parser.add_argument("--micro-batches", type=positive_list, default=(512, 128))
    arguments = parser.parse_args()
    points = servings(arguments.contexts, arguments.batches, arguments.micro_batches)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(points, Path(folder))
    Console(width=120).print(table(found))
    if not all(row.holds for row in found):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
