"""Which published runs a prediction can be held against, in which table, and why the others not."""

import re
from dataclasses import dataclass, replace
from typing import Final, Literal

from quant_assets.gpus.registry import Gpu, GpuRegistry
from quant_assets.speed.run_workloads import LLAMA_CPP_ENGINES, RunWorkload, workload_of
from quant_assets.speed.runs import MILD_SUSPECTS, LeftOut, RunFile, SpeedRun, gpu_of_run
from quant_assets.speed.workload import Observation

Table = Literal["dense", "mixtures_of_experts", "several_gpus", "other_engines"]

USABLE_MEASURES: Final = frozenset({"single_test", "workload_mean", "ubatch", "community"})
"""The others time something else: another host, the prompt too, or the output layer once."""
MEASURE_WEIGHTS: Final = {"workload_mean": 0.35, "community": 0.6}
"""In a fit: means over lengths and users' runs are noisier than a tool's stated test, which counts 1."""
_LESS_KNOWN_WEIGHT: Final = 0.5
"""In a fit: of mixtures of experts, whose experts spread less evenly than assumed, and of other
engines."""
_SYSTEM_MEMORY_SHARE: Final = 1.05
"""Sold gigabytes are 2^30 bytes; figures of sizes are rounded."""


@dataclass(frozen=True, slots=True)
class SelectedRun:
    """A run that can be predicted: its GPU, what it did, and the table that it belongs to.

    On several GPUs `gpu` is one of them: a model split by layers runs through one after another.
    """

    run: SpeedRun
    gpu: Gpu
    work: RunWorkload
    table: Table

    @property
    def observation(self) -> Observation:
        """The run as a fit takes it."""
        weight = MEASURE_WEIGHTS.get(self.run.measure, 1.0)
        if self.work.workload.sparse:
            weight *= _LESS_KNOWN_WEIGHT
        if self.work.workload.engine not in LLAMA_CPP_ENGINES:
            weight *= _LESS_KNOWN_WEIGHT
        return Observation(
            self.gpu.canonical_name, self.work.workload, self.run.tokens_per_s, weight
        )

    @property
    def source(self) -> str | None:
        """The address of the source, without the place in it."""
        address = re.split(r"[\s#]", self.run.source_url or "")[0]
        return address or None


@dataclass(frozen=True, slots=True)
class Selection:
    """The runs of files that can be predicted, and those left out with their reason."""

    selected: tuple[SelectedRun, ...]
    left_out: tuple[LeftOut, ...]

    def of(self, table: Table) -> list[SelectedRun]:
        """The runs of one table."""
        return [item for item in self.selected if item.table == table]

    @property
    def fitted(self) -> list[SelectedRun]:
        """The runs that a fit learns from: those on one GPU."""
        return [item for item in self.selected if item.table != "several_gpus"]


def select_runs(file: RunFile, registry: GpuRegistry) -> Selection:
    """Every run of `file` with its GPU and workload, or left out with its reason."""
    selected: list[SelectedRun] = []
    left_out: list[LeftOut] = list(file.left_out)
    gpus = _Gpus(registry)
    for run in file.runs:
        found = _select(run, gpus)
        if isinstance(found, LeftOut):
            left_out.append(found)
        else:
            selected.append(found)
    return Selection(tuple(selected), tuple(left_out))


class _Gpus:
    """Remembers which GPU the rows of a table mean: names repeat, and unknown ones cost a search."""

    def __init__(self, registry: GpuRegistry) -> None:
        self._registry = registry
        self._known: dict[tuple[object, ...], Gpu | LeftOut] = {}

    def of(self, run: SpeedRun) -> Gpu | LeftOut:
        key = (run.gpu, run.gpu_variant, run.gpu_group, run.bandwidth_gb_s)
        if key not in self._known:
            self._known[key] = gpu_of_run(run, self._registry)
        found = self._known[key]
        return replace(found, row_id=run.row_id) if isinstance(found, LeftOut) else found


def _select(run: SpeedRun, gpus: _Gpus) -> SelectedRun | LeftOut:
    if doubts := [tag for tag in run.suspect if tag not in MILD_SUSPECTS]:
        return LeftOut(run.row_id, "suspect", ", ".join(doubts))
    if run.measure not in USABLE_MEASURES:
        return LeftOut(run.row_id, "measure", run.measure)
    gpu = gpus.of(run)
    if isinstance(gpu, LeftOut):
        return gpu
    if gpu.memory_bandwidth_gb_s is None:
        return LeftOut(run.row_id, "gpu_without_figures", f"{gpu.canonical_name}: no bandwidth")
    work = workload_of(run, gpu)
    if isinstance(work, LeftOut):
        return work
    needed = work.file_bytes + work.workload.kv_bytes
    memory = run.gpu_count * gpu.vram_gb * 2**30
    if needed > memory * _SYSTEM_MEMORY_SHARE:
        return LeftOut(
            run.row_id,
            "exceeds_memory",
            f"{needed / 2**30:.1f} GiB on {run.gpu_count} x {gpu.vram_gb:g} GB",
        )
    table = _table(run, work)
    if table == "several_gpus" and _splits_tensors(run, work):
        return LeftOut(run.row_id, "tensor_split", f"{run.gpu_count} GPUs; not predicted")
    return SelectedRun(run, gpu, work, table)


def _table(run: SpeedRun, work: RunWorkload) -> Table:
    if run.gpu_count > 1:
        return "several_gpus"
    if work.workload.engine not in LLAMA_CPP_ENGINES:
        return "other_engines"
    return "mixtures_of_experts" if work.workload.sparse else "dense"


def _splits_tensors(run: SpeedRun, work: RunWorkload) -> bool:
    """As stated, else as the note says; engines other than llama.cpp split tensors by default."""
    if run.split is not None:
        return run.split == "tensor"
    return work.workload.engine not in LLAMA_CPP_ENGINES or "tensor" in (run.note or "").casefold()
