"""The interface of a heuristic, and the vectorized application to a table of offers."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, Literal, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import BaseModel, ConfigDict

from quant_assets.errors import InputError
from quant_assets.gpus.registry import Gpu

ColumnType = Literal["Int64", "Float64", "boolean", "string"]
"""A nullable pandas type: an unknown value is null, never zero."""
Value = int | float | bool | str | None


class GpuFacts(BaseModel):
    """The facts about a GPU that strategies may use; None is unknown. Figures are per board."""

    model_config = ConfigDict(frozen=True)

    canonical_name: str | None = None
    vram_gb: float | None = None
    tdp_w: float | None = None
    mig_instances: int | None = None
    devices: int | None = None
    form_factor: str | None = None

    @classmethod
    def of(cls, gpu: Gpu) -> Self:
        """The facts of a GPU of the registry."""
        return cls.model_validate({name: getattr(gpu, name) for name in cls.model_fields})


class HeuristicStrategy(BaseModel, ABC):
    """One heuristic. Its fields are its options; a subclass sets `name` and `inputs`.

    `inputs` are the fields of `GpuFacts` that determine the result: it is evaluated once per distinct
    combination of them, not once per row.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    inputs: ClassVar[tuple[str, ...]]

    @abstractmethod
    def columns(self) -> Mapping[str, ColumnType]:
        """The columns that `evaluate` fills, in order."""

    @abstractmethod
    def evaluate(self, facts: GpuFacts) -> Mapping[str, Value]:
        """The value of every column for one GPU."""


COLUMN_SEPARATOR: Final = "."


def capacity_columns(name: str, keys: Sequence[str]) -> dict[str, ColumnType]:
    """A JSON column called `name`, and an integer column `name.<key>` per key."""
    return {name: "string", **{f"{name}{COLUMN_SEPARATOR}{key}": "Int64" for key in keys}}


def capacity_values(name: str, capacities: Mapping[str, int | None]) -> dict[str, Value]:
    """The values for `capacity_columns`; the JSON is null too when nothing is known."""
    known = any(count is not None for count in capacities.values())
    return {
        name: json.dumps(capacities) if known else None,
        **{f"{name}{COLUMN_SEPARATOR}{key}": count for key, count in capacities.items()},
    }


def apply_strategies(
    offers: pd.DataFrame, strategies: Sequence[HeuristicStrategy], *, force: bool = False
) -> pd.DataFrame:
    """Return `offers` with the columns of `strategies` added.

    A field of `GpuFacts` without a column in `offers` is unknown. Strategies run
    once per distinct GPU, not once per row. Raises `InputError` when `offers` already has such a
    column, unless `force` replaces it.
    """
    added: dict[str, pd.Series] = {}
    for strategy in strategies:
        columns = strategy.columns()
        taken = [column for column in columns if column in offers.columns]
        if taken and not force:
            raise InputError(
                f"The offers already have the column {taken[0]!r}.",
                f"The strategy {strategy.name!r} would replace {len(taken)} column(s).",
                "Use --force to replace them, or remove the columns from the input.",
            )
        inputs = [name for name in strategy.inputs if name in offers.columns]
        distinct, codes = _distinct(offers, inputs)
        answers = [strategy.evaluate(_facts(row)) for row in distinct]
        for column, kind in columns.items():
            values: pd.Series[Any] = pd.Series(
                [answer[column] for answer in answers], dtype=kind, name=column
            ).take(codes)
            added[column] = values.set_axis(offers.index)
    kept = offers.drop(columns=[column for column in added if column in offers.columns])
    return pd.concat([kept, *added.values()], axis=1)


def _distinct(
    offers: pd.DataFrame, inputs: Sequence[str]
) -> tuple[list[dict[str, object]], npt.NDArray[np.integer[Any]]]:
    """The distinct combinations of `inputs`, and the index into them for each row."""
    if not inputs:
        return [{}], np.zeros(len(offers), dtype=np.int64)
    codes = offers.groupby(list(inputs), dropna=False, sort=False).ngroup()
    first = ~codes.duplicated().to_numpy()
    rows = offers.loc[first, list(inputs)].to_dict("records")
    return [{str(name): value for name, value in row.items()} for row in rows], codes.to_numpy()


def _facts(row: Mapping[str, object]) -> GpuFacts:
    known = {name: value for name, value in row.items() if not pd.isna(value)}  # type: ignore[call-overload]
    return GpuFacts.model_validate(known)
