"""AWQ engine on AutoAWQ: its architecture tables and statistics, with the shared search.

Source: `awq.quantize.quantizer.AwqQuantizer` of AutoAWQ 0.2.9. Life cycle: created once per job; its
own model loading and layer loop never run, and its two inner searches are replaced by `search`.
"""

from typing import Any

import awq.quantize.quantizer as autoawq_quantizer
import torch
from awq.models.auto import AWQ_CAUSAL_LM_MODEL_MAP
from awq.models.base import AwqConfig
from awq.quantize.quantizer import AwqQuantizer
from awq.quantize.scale import apply_clip

from quant_assets.errors import InputError
from quant_assets.quantize.groupwise.job import GroupwiseSettings
from quant_assets.workers.groupwise.awq.scaling import Scaled
from quant_assets.workers.groupwise.awq.search import TOKENS_AT_ONCE, best_bounds, best_scales
from quant_assets.workers.groupwise.layer_quantizer import installed_versions, linears
from quant_assets.workers.groupwise.streaming import StreamedModel

_LIBRARIES = ("autoawq", "transformers", "torch")

# AutoAWQ runs the garbage collector several times per matrix, which takes longer than the search.
autoawq_quantizer.clear_memory = lambda *_: None


class _Search(AwqQuantizer):  # type: ignore[misc]
    def init_quant(
        self, n_samples: int = 0, max_seq_len: int = 0
    ) -> tuple[list[torch.nn.Module], dict[str, Any], None]:
        """Load nothing: the layer loop is not AutoAWQ's."""
        del n_samples, max_seq_len
        return [], {}, None

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
        fp16_output: torch.Tensor,
        kwargs: dict[str, Any] | None = None,
    ) -> torch.Tensor:
        return best_scales(
            x, w_mean, x_mean, module2inspect, linears2scale, fp16_output,
            lambda windows: self._module_forward(windows, module2inspect, kwargs or {}),
            self._rounded,
        )[0]  # fmt: skip

    def _compute_best_clip(
        self, w: torch.Tensor, input_feat: torch.Tensor, **_: Any
    ) -> torch.Tensor:
        return best_bounds(w, input_feat, self.group_size, self._rounded)


class AutoAwqEngine:
    """See `AwqEngine`.

    Raises `InputError` for an architecture that AutoAWQ does not support.
    """

    def __init__(self, model: StreamedModel, settings: GroupwiseSettings) -> None:
        architecture = model.config.model_type
        if architecture not in AWQ_CAUSAL_LM_MODEL_MAP:
            raise InputError(
                f"AutoAWQ does not support the architecture {architecture}.",
                f"It supports {', '.join(sorted(AWQ_CAUSAL_LM_MODEL_MAP))}.",
                "Use --engine gptqmodel, or --to gptq.",
            )
        self._model = AWQ_CAUSAL_LM_MODEL_MAP[architecture](
            model.model,
            architecture,
            is_quantized=False,
            config=model.config,
            quant_config=AwqConfig(),
            processor=None,
        )
        self._search = _Search(
            self._model,
            model.model,
            None,
            settings.bits,
            settings.group_size,
            zero_point=True,
            version="gemm",
            calib_data=None,
            split="",
            text_column="",
            duo_scaling=True,
            n_parallel_calib_samples=max(1, TOKENS_AT_ONCE // settings.sequence_length),
        )

    def library_versions(self) -> dict[str, str]:
        """Versions of the libraries that determine the output's bytes."""
        return installed_versions(_LIBRARIES)

    def scaling_groups(
        self, layer: torch.nn.Module, features: dict[str, torch.Tensor], kwargs: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """See `AwqEngine`."""
        groups: list[dict[str, Any]] = self._model.get_layers_for_scaling(layer, features, kwargs)
        return groups

    def best_scales(self, layer: torch.nn.Module, group: dict[str, Any]) -> Scaled:
        """See `AwqEngine`."""
        scaled: Scaled = self._search._search_best_scale(layer, **group)
        return scaled

    def clip(self, layer: torch.nn.Module, features: dict[str, torch.Tensor]) -> None:
        """See `AwqEngine`."""
        apply_clip(layer, self._search._search_best_clip(layer, linears(layer), features))
