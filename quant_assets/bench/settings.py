"""Benchmark settings: counts, lengths, threads and device, and their overrides."""

import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, field_validator

from quant_assets.errors import InputError
from quant_assets.host.devices import Device, available_physical_cores
from quant_assets.record_files import MAX_SEQUENCES, MAX_TOKENS

_Sequences = Annotated[int, Field(ge=1, le=MAX_SEQUENCES)]
_MAX_RUNS = 1_000_000  # the sample of every run is kept


class BenchSettings(BaseModel):
    """Counts and lengths of a benchmark.

    A run is the prefill of `prompt_tokens` tokens and the decoding of `generated_tokens` tokens,
    for every sequence of a batch. `threads` is capped at the physical cores available; null means
    all of them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    batch_sizes: tuple[_Sequences, ...] = Field(default=(1, 4, 8), min_length=1)
    warmups: int = Field(default=3, ge=0, le=_MAX_RUNS)
    runs: int = Field(default=20, ge=1, le=_MAX_RUNS)
    prompt_tokens: int = Field(default=128, ge=1, le=MAX_TOKENS)
    generated_tokens: int = Field(default=32, ge=1, le=MAX_TOKENS)
    threads: PositiveInt | None = None
    device: Device = "auto"

    @field_validator("batch_sizes")
    @classmethod
    def _without_repeats(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(dict.fromkeys(sizes))

    @property
    def effective_threads(self) -> int:
        """Threads that a worker gets: at most the physical cores."""
        cores = available_physical_cores()
        return min(self.threads or cores, cores)


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {
        field: environment[variable]
        for variable, field in (("WARMUPS", "warmups"), ("RUNS", "runs"))
        if environment.get(variable, "").strip()
    }
    sizes = split_list(environment.get("BATCH_SIZES", ""))
    if sizes:
        found["batch_sizes"] = sizes
    return found


def split_list(text: str) -> list[str]:
    """The items of a list separated by commas or spaces."""
    return text.replace(",", " ").split()


def resolve_settings(
    configured: BenchSettings,
    flags: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> BenchSettings:
    """`configured`, overridden by `BATCH_SIZES`, `WARMUPS`, `RUNS`, overridden by flags.

    Flags that are None are ignored. Raises `InputError` for an invalid value.
    """
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    overrides = _from_environment(os.environ if environment is None else environment) | given
    try:
        return BenchSettings.model_validate({**configured.model_dump(), **overrides})
    except ValidationError as error:
        raise InputError(
            "The benchmark settings are invalid.",
            "; ".join(
                f"{'.'.join(map(str, item['loc']))}: {item['msg']} (got {item['input']!r})"
                for item in error.errors()
            )
            + ".",
            "Correct the flag, the configuration, or BATCH_SIZES, WARMUPS, RUNS.",
        ) from error


def resolve_variant_names(
    known: Sequence[str],
    flags: Sequence[str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> list[str]:
    """The variants to run, in the file's order: those of the flags, of `VARIANTS`, or all.

    Raises `InputError` for an unknown name.
    """
    variables = os.environ if environment is None else environment
    wanted = list(flags or []) or split_list(variables.get("VARIANTS", "")) or list(known)
    unknown = sorted(set(wanted) - set(known))
    if unknown:
        raise InputError(
            f"There is no variant {', '.join(unknown)}.",
            f"The variants file has {', '.join(known)}.",
            "Choose among these, or add the variant to the file.",
        )
    return [name for name in known if name in wanted]
