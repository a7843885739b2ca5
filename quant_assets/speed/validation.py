"""Validates the speed model in the graph, on the runs measured here and on published ones."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import duckdb

from quant_assets.gpus.registry import GpuRegistry
from quant_assets.speed.checking import (
    OWN_LIMITS,
    PUBLISHED_LIMITS,
    PredictedRun,
    SpeedCheck,
    check_predictions,
)
from quant_assets.speed.model import SpeedModel
from quant_assets.speed.own_runs import OwnRun, own_runs
from quant_assets.speed.run_check import check_runs
from quant_assets.speed.runs import read_runs
from quant_assets.speed.selection import select_runs

SHIPPED_LIMITS: Final = PUBLISHED_LIMITS.model_copy(
    update={"decode_p90": 0.25, "coverage": (0.85, 1.0), "decode_width": 2.2}
)
"""For the shipped model on the shipped table, whose runs it has mostly seen: a guard against a fit, a
registry or a table that no longer belong together. How true the model is for other GPUs, only
cross-validation tells."""
_MAX_FOLDS: Final = 20
"""With more records than this, several are predicted at once from the rest."""


class SpeedValidation(NamedTuple):
    """How true predicted speeds are for own runs, and for published ones (None without a table)."""

    own_runs: SpeedCheck
    published_runs: SpeedCheck | None

    @property
    def problems(self) -> list[str]:
        """The limits that are exceeded, with the runs that exceed them."""
        checks = {"own runs": self.own_runs, "published runs": self.published_runs}
        return [
            f"{name}, {problem}"
            for name, check in checks.items()
            if check is not None
            for problem in check.problems
        ]


def validate_speed_model(
    connection: duckdb.DuckDBPyConnection,
    registry: GpuRegistry,
    model: SpeedModel,
    published: Path,
) -> SpeedValidation:
    """Hold `model` against the own runs in the warehouse and the table `published`, if it exists.

    Of the table, the runs of dense models with llama.cpp on one GPU have limits. Raises `InputError`
    for a damaged table.
    """
    published_runs = None
    if published.exists():
        selection = select_runs(read_runs([published]), registry)
        published_runs = check_runs(selection, model, SHIPPED_LIMITS).dense
    return SpeedValidation(check_own_runs(connection, registry, model), published_runs)


def check_own_runs(
    connection: duckdb.DuckDBPyConnection, registry: GpuRegistry, model: SpeedModel
) -> SpeedCheck:
    """How true the model is for the runs measured here, each predicted after adapting to the others."""
    return check_predictions(
        _predicted(own_runs(connection, registry), registry, model), OWN_LIMITS
    )


def _predicted(
    runs: Sequence[OwnRun], registry: GpuRegistry, model: SpeedModel
) -> Iterator[PredictedRun]:
    records = list(dict.fromkeys(run.record_id for run in runs))
    for fold in range(min(_MAX_FOLDS, len(records))):
        left_out = set(records[fold::_MAX_FOLDS])
        held = [run for run in runs if run.record_id in left_out]
        others = [run.observation for run in runs if run.record_id not in left_out]
        predictions = model.adapted(others, registry).predict(
            [registry.by_name[run.observation.gpu] for run in held],
            [run.observation.workload for run in held],
        )
        for run, prediction in zip(held, predictions, strict=True):
            yield PredictedRun(
                row_id=run.record_id,
                gpu=run.observation.gpu,
                workload=run.observation.workload,
                measured=run.observation.tokens_per_s,
                prediction=prediction,
                depth_tokens=run.depth_tokens,
            )
