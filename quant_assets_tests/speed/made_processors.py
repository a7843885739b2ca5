"""Made-up processors whose decoding speeds are known, and a model's variants on them."""

import math
import random
from collections.abc import Sequence
from itertools import product
from typing import Final, NamedTuple

from quant_assets.speed.host_fit import HostCell, HostRun, WeightTraffic

BITS: Final = {
    "F16": 16.0, "Q8_0": 8.5, "Q6_K": 6.5625, "Q5_K": 5.5, "Q4_K": 4.5, "Q4_0": 4.5,
}  # fmt: skip
CACHES: Final = (("F16", "F16"), ("Q8_0", "Q8_0"), ("Q4_0", "Q4_0"), ("Q8_0", "Q4_0"))
BATCHES: Final = (1, 2, 4, 8)
HEAD, INSIDE = 30e6, 1e9
LAYERS, HEADS, HEAD_SIZE, DEPTH = 16, 32, 64, 144


class Processor(NamedTuple):
    """Seconds per layer, byte and multiply-add, and what each type's kernels cost more or less.

    Several rows are multiplied by other kernels than one row; `several` is what they cost per type.
    """

    launch: float
    per_byte: float
    arithmetic: float
    attention: float
    one: dict[str, float]
    several: dict[str, float]
    caches: dict[str, float]

    def tokens_per_s(self, cell: HostCell) -> float:
        """The speed of a cell, without noise."""
        kernels = self.one if cell.batch == 1 else self.several
        seconds = cell.layers * self.launch
        for weights in cell.weights:
            read = weights.read * weights.bits / 8 * self.per_byte
            multiplied = cell.batch * weights.multiplied * self.arithmetic
            seconds += (read + multiplied) * kernels[weights.type_name]
        seconds += self.attention * cell.k_products * self.caches[cell.k_type]
        seconds += self.attention * cell.v_products * self.caches[cell.v_type]
        return cell.batch / seconds


def processor(seed: int) -> Processor:
    """A processor unlike any other seed's, up to ten times faster or slower than the priors'."""
    draw = random.Random(seed)

    def around(middle: float, sd: float) -> float:
        return middle * math.exp(draw.gauss(0, sd))

    machine = around(1.0, 0.7)
    step = around(1.6, 0.2)  # from one row to several
    one = {name: around(1.0, 0.25) for name in BITS}
    return Processor(
        launch=around(1e-5, 0.5) * machine,
        per_byte=around(5e-11, 0.4) * machine,
        arithmetic=around(3e-11, 0.4) * machine,
        attention=around(2e-10, 0.4) * machine,
        one=one,
        several={name: one[name] * around(step, 0.15) for name in BITS},
        caches={"F16": 1.0, "Q8_0": around(1.3, 0.2), "Q4_0": around(2.0, 0.3)},
    )


def made_cell(
    level: str, caches: tuple[str, str], batch: int, depth: float = DEPTH, model: str = "m"
) -> HostCell:
    """A variant of a model of a billion parameters; the head of the smaller levels is in Q6_K."""
    head = "Q6_K" if BITS[level] < BITS["Q6_K"] else level
    products = batch * LAYERS * HEADS * HEAD_SIZE * depth
    parameters = {level: INSIDE}
    parameters[head] = parameters.get(head, 0.0) + HEAD
    return HostCell(
        model=model,
        variant=f"{level}-{caches[0]}-{caches[1]}",
        backend="llamacpp",
        batch=batch,
        prompt_tokens=int(depth),
        generated_tokens=0,
        layers=LAYERS,
        weights=tuple(
            WeightTraffic(name, BITS[name], number, number) for name, number in parameters.items()
        ),
        k_type=caches[0],
        k_products=products,
        v_type=caches[1],
        v_products=products,
    )


def grid() -> list[HostCell]:
    """All levels, caches and batch sizes: 96 cells."""
    return [made_cell(*combination) for combination in product(BITS, CACHES, BATCHES)]


def runs_on(
    made: Processor, cells: Sequence[HostCell], noise: float = 0.0, seed: int = 0
) -> list[HostRun]:
    """The cells' runs, off by `noise` (a standard deviation)."""
    draw = random.Random(seed)
    return [
        HostRun(cell, made.tokens_per_s(cell) * math.exp(draw.gauss(0, noise))) for cell in cells
    ]
