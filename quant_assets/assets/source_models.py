"""Source models: the floating-point weights that all artifacts of a model are made from."""

import dagster as dg

from quant_assets.assets.conventions import DEVICE_POOL, OWNERS, source_model_key
from quant_assets.models.config import ModelConfig
from quant_assets.models.inspection import inspect_model
from quant_assets.quantize.configured_intent import configured_intent
from quant_assets.quantize.conversion.plain_weights import source_manifest
from quant_assets.resources.failures import clear_failures
from quant_assets.resources.stores import DataRoot


def build_source_model(model: ModelConfig) -> dg.AssetsDefinition:
    """The asset that fetches or dequantizes a model into a local folder or file."""

    @dg.asset(
        key=source_model_key(model),
        group_name=model.slug,
        owners=OWNERS,
        kinds={"huggingface"},
        pool=DEVICE_POOL,
        description=f"The floating-point weights that the artifacts of {model.name} are made from.",
        metadata={"source": model.source},
    )
    def source_model(
        context: dg.AssetExecutionContext, data_root: DataRoot
    ) -> dg.MaterializeResult[None]:
        with clear_failures():
            source = data_root.source(context, model)
            shape = inspect_model(source.path)
            quantization = _quantization(model, data_root) if model.quantization else {}
        manifest = source_manifest(source.path) if source.kind == "hf" else None
        return dg.MaterializeResult(
            metadata={
                "path": dg.MetadataValue.path(source.path),
                "kind": source.kind,
                "provenance": source.provenance,
                "weights come from": manifest.weights_file_type if manifest else "the original",
                "identity": source.identity,
                "architecture": shape.architecture,
                "parameters": shape.n_parameters,
                "layers": shape.n_layers,
                "context length": shape.context_length or "unknown",
                **quantization,
            },
            data_version=dg.DataVersion(source.identity),
        )

    return source_model


def _quantization(model: ModelConfig, data_root: DataRoot) -> dict[str, dg.JsonMetadataValue]:
    """What each backend needs to serve the model as its entry in the model list intends."""
    config, location = configured_intent(model, data_root.settings)
    every = config.for_every_backend(model=location.path, name=location.name)
    return {
        "quantization": dg.MetadataValue.json(
            {answer.backend: answer.model_dump(mode="json") for answer in every.answers}
        )
    }
