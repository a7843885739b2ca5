"""Measured speeds from a CSV file, and the GPU of the registry that each row means.

`docs/speed_runs.md` describes the format. A row that cannot be used is left out with its reason.
"""

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)

from quant_assets.errors import InputError
from quant_assets.gpus.registry import Gpu, GpuRegistry, name_key
from quant_assets.speed.workload import GpuBackend, Phase

REQUIRED_COLUMNS: Final = ("gpu", "engine", "model", "level", "test", "tokens_per_s")
MAX_FILE_BYTES: Final = 256 * 2**20
"""About a million rows; a larger file is hardly a table of runs."""
MILD_SUSPECTS: Final = frozenset({"variant_not_stated", "gpu_inferred"})
"""Doubts that leave a row in use; every other one leaves it out."""
BANDWIDTH_TOLERANCE: Final = 0.02

_BACKENDS: Final[Mapping[str, GpuBackend]] = {
    "cuda": "CUDA",
    "hip": "HIP",
    "rocm": "HIP",
    "vulkan": "Vulkan",
    "sycl": "SYCL",
    "metal": "Metal",
    "mps": "Metal",
}
_TESTS: Final = {"tg": "decode", "generation": "decode", "pp": "prefill", "prompt": "prefill"}
_UNKNOWN: Final = {"", "unknown", "none", "n/a", "nan", "-"}
_YES: Final = {"yes", "true", "1", "on"}
_NO: Final = {"no", "false", "0", "off"}
_MEMORY: Final = re.compile(r"\b(\d+(?:\.\d+)?)\s*G(?:i?B)?\b", re.IGNORECASE)
_REMARK: Final = re.compile(r"\([^()]*\)|\d+-core(?: GPU)?", re.IGNORECASE)
_OTHER_CARD: Final = re.compile(r"laptop|mobile|max-?q|\bmodified\b|\bmodded\b", re.IGNORECASE)

Measure = Literal[
    "single_test",
    "workload_mean",
    "ubatch",
    "ubatch_1",
    "community",
    "weak_host",
    "incl_prefill",
]


def _answer(value: object) -> object:
    text = str(value).strip().casefold()
    if text in _UNKNOWN:
        return None
    return True if text in _YES else False if text in _NO else value


def _backend(value: object) -> object:
    text = str(value).strip().casefold()
    return None if text in _UNKNOWN else _BACKENDS.get(text, value)


def _test(value: object) -> object:
    text = str(value).strip().casefold()
    return _TESTS.get(text, text)


def _tags(value: object) -> object:
    return tuple(tag for tag in re.split(r"[;,\s]+", str(value)) if tag)


_Count = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
_Positive = Annotated[PositiveFloat, Field(le=1e9, allow_inf_nan=False)]


class SpeedRun(BaseModel):
    """One measured speed: the row of a table.

    `tokens_per_s` is the throughput of all `batch` sequences together. `depth_tokens` are in the KV
    cache when the test begins, `mean_depth_tokens` on its average. A pass of the model takes
    `tokens_per_pass` tokens. `size_gib` is the whole file's. Columns that are not fields here are
    ignored.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", str_strip_whitespace=True)

    row_id: str
    gpu: str = Field(min_length=2, max_length=200)
    gpu_count: Annotated[PositiveInt, Field(le=4096)] = 1
    gpu_variant: str | None = None
    gpu_group: str | None = None
    bandwidth_gb_s: _Positive | None = None
    engine: str = Field(min_length=2, max_length=200)
    engine_build_or_date: str | None = None
    gpu_backend: Annotated[GpuBackend | None, BeforeValidator(_backend)] = None
    flash_attention: Annotated[bool | None, BeforeValidator(_answer)] = None
    model: str = Field(min_length=2, max_length=300)
    level: str = Field(min_length=2, max_length=100)
    test: Annotated[Phase, BeforeValidator(_test)]
    tokens_per_s: _Positive
    prompt_tokens: _Count | None = None
    depth_tokens: _Count | None = None
    generated_tokens: _Count | None = None
    mean_depth_tokens: _Count | None = None
    batch: Annotated[PositiveInt, Field(le=1_000_000)] = 1
    ubatch: Annotated[PositiveInt, Field(le=100_000_000)] | None = None
    tokens_per_pass: Annotated[PositiveInt, Field(le=100_000_000)] | None = None
    kv_type: str | None = None
    split: Literal["layer", "tensor"] | None = None
    size_gib: _Positive | None = None
    size_source: str | None = None
    params_b: Annotated[_Positive | None, Field(le=1e6)] = None
    params_source: str | None = None
    active_params_b: Annotated[_Positive | None, Field(le=1e6)] = None
    model_kind: Literal["dense", "moe_or_sparse"] | None = None
    measure: Measure = "single_test"
    suspect: Annotated[tuple[str, ...], BeforeValidator(_tags)] = ()
    source_url: str | None = None
    source_date: str | None = None
    note: str | None = Field(default=None, validation_alias=AliasChoices("note", "notes"))


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A row that is not used: a reason that rows share, and the detail of this one."""

    row_id: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class RunFile:
    """The rows of one or more files: the valid ones, and those that are not."""

    runs: tuple[SpeedRun, ...]
    left_out: tuple[LeftOut, ...]


def read_runs(paths: Sequence[Path]) -> RunFile:
    """The rows of all CSV files.

    A row without `row_id` is named after its file and line. Raises `InputError` for a file that
    cannot be read, is too large, or lacks a required column.
    """
    runs: list[SpeedRun] = []
    left_out: list[LeftOut] = []
    for path in paths:
        for item in _rows(path):
            if isinstance(item, LeftOut):
                left_out.append(item)
            else:
                runs.append(item)
    return RunFile(tuple(runs), tuple(left_out))


def _rows(path: Path) -> Iterator[SpeedRun | LeftOut]:
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise _unusable(path, f"It has {size:,} bytes; at most {MAX_FILE_BYTES:,} are read.")
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = {(name or "").strip() for name in reader.fieldnames or ()}
            if missing := [name for name in REQUIRED_COLUMNS if name not in columns]:
                raise _unusable(path, f"It has no column {', '.join(missing)}.")
            for row in reader:
                yield _run(row, f"{path.name}:{reader.line_num}")
    except OSError as error:
        raise _unusable(path, f"{error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise _unusable(path, "It is not UTF-8 text.") from error
    except csv.Error as error:
        raise _unusable(path, f"{error}.") from error


def _run(row: Mapping[str | None, Any], place: str) -> SpeedRun | LeftOut:
    fields = {
        name.strip(): value.strip()
        for name, value in row.items()
        if name and isinstance(value, str) and value.strip()
    }
    row_id = fields.setdefault("row_id", place)
    try:
        return SpeedRun.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        column = str(first["loc"][0])
        return LeftOut(row_id, "invalid_row", f"{column}: {first['msg']}")


def _unusable(path: Path, why: str) -> InputError:
    return InputError(
        f"The runs in {path} cannot be read.",
        why,
        f"Give a CSV file with the columns {', '.join(REQUIRED_COLUMNS)} (docs/speed_runs.md).",
    )


def gpu_of_run(run: SpeedRun, registry: GpuRegistry) -> Gpu | LeftOut:
    """The GPU of the registry that `run` means.

    A name of several cards (memory sizes, form factors) stands for the one with the memory that it
    states, else for the one with most memory if all have the same bandwidth and FP32 throughput,
    else for those with the row's `bandwidth_gb_s`. A laptop's or modified card is never the desktop card of that name.
    """
    if run.gpu_variant and (gpu := registry.find(f"{run.gpu} {run.gpu_variant}")) is not None:
        return gpu
    if (gpu := registry.find(run.gpu)) is not None:
        return gpu
    candidates = _candidates(run, registry)
    if not candidates:
        nearest = ", ".join(registry.nearest(run.gpu, limit=1))
        return LeftOut(run.row_id, "unknown_gpu", f"{run.gpu}; nearest is {nearest}")
    if _alike(candidates):
        return candidates[0]
    if run.bandwidth_gb_s is not None:
        stated = run.bandwidth_gb_s
        same = [
            gpu
            for gpu in candidates
            if gpu.memory_bandwidth_gb_s is not None
            and abs(gpu.memory_bandwidth_gb_s / stated - 1) <= BANDWIDTH_TOLERANCE
        ]
        if same and _alike(same):
            return same[0]
    names = ", ".join(gpu.canonical_name for gpu in candidates)
    return LeftOut(run.row_id, "ambiguous_gpu", f"{run.gpu}: one of {names}")


def _candidates(run: SpeedRun, registry: GpuRegistry) -> Sequence[Gpu]:
    names = [run.gpu, _MEMORY.sub(" ", run.gpu)]
    if run.gpu_variant:
        names = [*(f"{name} {run.gpu_variant}" for name in names), *names]
    if not _OTHER_CARD.search(run.gpu):
        names += [_REMARK.sub(" ", name) for name in names]
        names += [run.gpu_group] if run.gpu_group else []
    for name in names:
        if variants := registry.families_by_key.get(name_key(name)):
            memory = _MEMORY.search(run.gpu)
            stated = [gpu for gpu in variants if memory and gpu.vram_gb == float(memory[1])]
            return sorted(stated or variants, key=lambda gpu: -gpu.vram_gb)
    return ()


def _alike(gpus: Sequence[Gpu]) -> bool:
    return len({(gpu.memory_bandwidth_gb_s, gpu.fp32_vector_tflops) for gpu in gpus}) == 1
