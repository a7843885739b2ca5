"""The `quantization:` of a model in the model list, with the weights that it applies to."""

from quant_assets.errors import InputError
from quant_assets.models.config import ModelConfig
from quant_assets.models.quantization_intent import HUB_PREFIX, CalibrationConfig
from quant_assets.models.source import SourceLocation, configured_path, locate_source
from quant_assets.quantize.conversion.float_source import locate_float_source
from quant_assets.serving.backend import require_training_split
from quant_assets.serving.intent import UnifiedQuantizationConfig
from quant_assets.settings import Settings


def configured_intent(
    model: ModelConfig, settings: Settings
) -> tuple[UnifiedQuantizationConfig, SourceLocation]:
    """A model's intent and where the weights for it are; nothing is fetched.

    `auto` reads the source as it is; every other method starts from floating-point weights. Raises
    `InputError` for a model without `quantization`.
    """
    if model.quantization is None:
        raise InputError(
            f"The model {model.name} states no quantization.",
            f"Its entry in {settings.models_yaml} has no field `quantization`.",
            "Add, for example, `quantization: {method: int4}` to the entry.",
        )
    config = UnifiedQuantizationConfig.of(model.quantization)
    if config.method == "auto":
        return config, locate_source(model.source, settings)
    return config, locate_float_source(model.source, model.name, settings)


def configured_calibration(model: ModelConfig) -> CalibrationConfig:
    """The calibration that a model's entry states; without one, every default.

    Raises `InputError` for a split that is not read.
    """
    calibration = model.quantization.calibration if model.quantization else None
    if calibration is None:
        return CalibrationConfig()
    require_training_split(f"The graph's assets of {model.name}", calibration)
    return calibration


def configured_dataset(model: ModelConfig, settings: Settings) -> str | None:
    """The calibration text of a model's entry, as `calibration_text` reads it; None for the default.

    Raises `InputError` for a file outside the data root and the model roots.
    """
    dataset = configured_calibration(model).dataset
    if dataset is None or dataset.startswith(HUB_PREFIX):
        return dataset
    return str(configured_path(dataset, settings))
