"""AWQ engine on gptqmodel: its architecture tables and statistics, with the shared search.

Source: `gptqmodel.looper.awq_processor.AWQProcessor` of gptqmodel 7.6.0. Life cycle: created once per
job; its own loop never runs, and its two inner searches are replaced by `search`.

gptqmodel's own loop makes AWQ barely better than rounding, or worse, when calibration samples differ
in length: it then keeps the inputs of the last sample only, and on a CPU query, key and value (gate
and up) share the memory of these inputs, which is divided by the scales once per module before the
bounds are searched. The loop here passes windows of equal length and gives each module a copy.
"""

import threading
from typing import Any

import torch
from gptqmodel import QuantizeConfig
from gptqmodel.looper.awq_processor import AWQProcessor
from gptqmodel.models.auto import MODEL_MAP
from gptqmodel.quantization import FORMAT, METHOD
from gptqmodel.quantization.awq.quantize.scale import apply_clip

from quant_assets.errors import InputError
from quant_assets.quantize.groupwise.job import GroupwiseSettings
from quant_assets.workers.groupwise.awq.scaling import Scaled
from quant_assets.workers.groupwise.awq.search import TOKENS_AT_ONCE, best_bounds, best_scales
from quant_assets.workers.groupwise.layer_quantizer import installed_versions, linears
from quant_assets.workers.groupwise.streaming import StreamedModel

_LIBRARIES = ("gptqmodel", "transformers", "torch")
_CHUNK_BYTES = 1 << 30


class _Search(AWQProcessor):  # type: ignore[misc]
    """gptqmodel's processor without its loop; sets only the attributes that its search reads."""

    def __init__(self, definition: Any, config: QuantizeConfig, windows_at_once: int) -> None:
        self.qcfg = config
        self.gptq_model = definition
        self.model = definition.model
        self.duo_scaling = True
        self.max_chunk_memory = _CHUNK_BYTES
        self._quant_batch_size = windows_at_once
        self._module_forward_kwargs: dict[str, Any] = {}
        self._rotary_lock = threading.Lock()
        self._rotary_cache: dict[str, Any] = {}
        self._rotary_source_id = None

    def _rounded(self, weight: torch.Tensor) -> torch.Tensor:
        rounded: torch.Tensor = self.pseudo_quantize_tensor(weight)[0]
        return rounded

    def _compute_best_scale(
        self,
        x: torch.Tensor,
        w_mean: torch.Tensor,
        x_mean: torch.Tensor,
        module2inspect: torch.nn.Module,
        linears2scale: list[torch.nn.Linear],
        fp16_output: list[torch.Tensor],
        kwargs: dict[str, Any] | None = None,
    ) -> tuple[torch.Tensor, float]:
        return best_scales(
            x, w_mean, x_mean, module2inspect, linears2scale, torch.cat(fp16_output),
            lambda windows: self._module_forward(windows, module2inspect, kwargs or {}),
            self._rounded,
        )  # fmt: skip

    def _compute_best_clip(
        self, w: torch.Tensor, input_feat: torch.Tensor, **_: Any
    ) -> torch.Tensor:
        return best_bounds(w, input_feat, self.qcfg.group_size, self._rounded)


class GptqmodelEngine:
    """See `AwqEngine`; raises `InputError` for an architecture that gptqmodel does not support."""

    def __init__(self, model: StreamedModel, settings: GroupwiseSettings) -> None:
        architecture = model.config.model_type
        if architecture not in MODEL_MAP:
            raise InputError(
                f"gptqmodel does not support the architecture {architecture}.",
                "AWQ needs a table of the modules that share their inputs.",
                "Use --engine autoawq, or --to gptq.",
            )
        kind = MODEL_MAP[architecture]
        # Its constructor prepares a loop; only the layer descriptions are needed.
        self._definition = object.__new__(kind)
        torch.nn.Module.__init__(self._definition)
        self._definition.model = model.model
        # Use the position embeddings that the model computed; gptqmodel would recompute them without
        # supporting models with several rotary embeddings.
        self._definition.awq_preserve_explicit_position_embeddings = True
        config = QuantizeConfig(
            bits=settings.bits,
            group_size=settings.group_size,
            quant_method=METHOD.AWQ,
            format=FORMAT.GEMM,
            sym=False,
        )
        at_once = max(1, TOKENS_AT_ONCE // settings.sequence_length)
        self._search = _Search(self._definition, config, at_once)

    def library_versions(self) -> dict[str, str]:
        """Versions of the libraries that determine the output's bytes."""
        return installed_versions(_LIBRARIES)

    def scaling_groups(
        self, layer: torch.nn.Module, features: dict[str, torch.Tensor], kwargs: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """See `AwqEngine`."""
        groups: list[dict[str, Any]] = self._definition.awq_get_modules_for_scaling(
            layer, features, kwargs
        )
        for group in groups:
            group.pop("_input_feature_name", None)
            inspected = group.get("module2inspect") or layer
            group["kwargs"] = self._search._sanitize_kwargs(
                group.get("kwargs") or kwargs, inspected
            )
        return groups

    def best_scales(self, layer: torch.nn.Module, group: dict[str, Any]) -> Scaled:
        """See `AwqEngine`."""
        scaled: Scaled = self._search._search_best_scale(layer, **group)
        return scaled

    def clip(self, layer: torch.nn.Module, features: dict[str, torch.Tensor]) -> None:
        """See `AwqEngine`."""
        apply_clip(layer, self._search._search_best_clip(layer, linears(layer), features))
