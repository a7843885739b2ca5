"""Validates the speed model in the graph: every own run is predicted from the others."""

from collections.abc import Iterator, Sequence
from typing import Final

import duckdb

from quant_assets.gpus.registry import GpuRegistry
from quant_assets.speed.checking import OWN_LIMITS, PredictedRun, SpeedCheck, check_predictions
from quant_assets.speed.model import SpeedModel
from quant_assets.speed.own_runs import OwnRun, own_runs

_MAX_FOLDS: Final = 20
"""With more records than this, several are predicted at once from the rest."""


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
        predictions = model.adapted(others).predict(
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
