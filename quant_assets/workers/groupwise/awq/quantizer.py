"""AWQ of one layer: an engine scales and clips the weights, then they are rounded and packed.

Paper: Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration",
arXiv:2306.00978. The recipe, for every group of linear modules with the same input:

1. Search per-channel scales that minimize the output error after rounding (`search.best_scales`).
2. Multiply the weights by them, and fold their inverse into the preceding operation (`scaling`).
3. Search clipping bounds per weight group (`search.best_bounds`), clip, and round to nearest.

Life cycle: one `AwqQuantizer` per job; the loop calls `quantize` once per layer. It records the inputs
of all linear modules in one pass, which also yields the next layer's inputs: those are computed by
the unquantized weights, so the quantization of a layer does not depend on earlier ones.
"""

import functools
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from transformers.integrations.awq import AWQ_SCALES_MAPPINGS

from quant_assets.errors import QuantAssetsError
from quant_assets.quantize.groupwise.job import GroupwiseSettings
from quant_assets.workers.checkpoint.packing import pack_awq
from quant_assets.workers.groupwise.awq.scaling import (
    Scaled,
    apply_scales,
    change_since_now,
    is_norm,
    norms_before,
    use_actual_norm,
)
from quant_assets.workers.groupwise.layer_quantizer import before_running, linears
from quant_assets.workers.groupwise.rounding import zero_point_integers
from quant_assets.workers.groupwise.streaming import LayerCall, StreamedModel


class AwqEngine(Protocol):
    """A library's architecture tables and statistics for the search of scales and bounds."""

    def library_versions(self) -> dict[str, str]:
        """Versions of the libraries that determine the output's bytes."""

    def scaling_groups(
        self, layer: torch.nn.Module, features: dict[str, torch.Tensor], kwargs: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """Groups of linear modules with a shared input (`layers`) and its producer (`prev_op`).

        `features` holds the inputs of every linear module, windows x tokens x channels.
        """

    def best_scales(self, layer: torch.nn.Module, group: dict[str, Any]) -> Scaled:
        """Search the scales of one group without applying them. Raises what the library raises."""

    def clip(self, layer: torch.nn.Module, features: dict[str, torch.Tensor]) -> None:
        """Search clipping bounds for the scaled weights and clip these in place."""


class AwqQuantizer:
    """Quantizes layers of one model; see `LayerQuantizer`.

    `warn` is called once per message about matrices whose inputs cannot be scaled.
    """

    def __init__(
        self,
        model: StreamedModel,
        settings: GroupwiseSettings,
        engine: AwqEngine,
        warn: Callable[[str], None],
    ) -> None:
        self._model = model
        self._settings = settings
        self._engine = engine
        self._warn = functools.cache(warn)  # layers repeat their messages

    def library_versions(self) -> dict[str, str]:
        """Versions of the libraries that determine the output's bytes."""
        return self._engine.library_versions()

    def quantization_config(self) -> dict[str, Any]:
        """The configuration as AutoAWQ writes it for transformers and vLLM."""
        return {
            "quant_method": "awq",
            "bits": self._settings.bits,
            "group_size": self._settings.group_size,
            "zero_point": True,
            "version": "gemm",
            "modules_to_not_convert": None,
        }

    def quantize(
        self, layer: torch.nn.Module, states: torch.Tensor, call: LayerCall
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Quantize one layer; the outputs are computed with the unquantized weights."""
        modules = linears(layer)
        features, outputs = self._features(layer, modules, states, call)
        self._scale(layer, features, states[:1], call)
        self._engine.clip(layer, features)
        layer.to(self._model.device)
        tensors = _activation_scales(layer, self._model.config.model_type)
        for name, module in modules.items():
            tensors |= self._packed(name, module)
        for name, tensor in layer.state_dict().items():
            if name.removesuffix(".weight") not in modules:
                tensors[name] = tensor.detach()
        return tensors, outputs

    def _scale(
        self,
        layer: torch.nn.Module,
        features: dict[str, torch.Tensor],
        window: torch.Tensor,
        call: LayerCall,
    ) -> None:
        """Search scales; apply those that leave the layer's outputs on one window unchanged."""

        def run() -> torch.Tensor:
            layer.to(self._model.device)
            return torch.cat(list(self._model.run_layer(layer, window, call)))

        norms = norms_before(layer, run)
        groups = self._engine.scaling_groups(layer, features, dict(call.kwargs))
        found = []
        for group in groups:
            use_actual_norm(group, norms)
            if is_norm(group["prev_op"]) or isinstance(group["prev_op"], torch.nn.Linear):
                found += self._searched(layer, group)
        change = change_since_now(run, window)
        for scaled in found:
            if not apply_scales(layer, scaled, features, change):
                self._skip_scaling(scaled[1], "the scales would change the layer's outputs")

    def _searched(self, layer: torch.nn.Module, group: dict[str, Any]) -> list[Scaled]:
        """The scales of a group; none if the engine cannot run it."""
        try:
            return [self._engine.best_scales(layer, group)]
        except (QuantAssetsError, MemoryError, torch.OutOfMemoryError):
            raise
        except (
            Exception
        ) as error:  # the architecture's code may raise anything when called differently
            names = {id(module): name for name, module in layer.named_modules()}
            self._skip_scaling(
                [names[id(linear)] for linear in group["layers"]],
                f"the engine cannot run these modules ({type(error).__name__})",
            )
            return []

    def _skip_scaling(self, names: Sequence[str], why: str) -> None:
        self._warn(
            f"The inputs of {', '.join(names)} are not scaled: {why}, because the engine describes "
            f"{self._model.config.model_type} incorrectly. Their weights are only clipped and rounded."
        )

    def _features(
        self,
        layer: torch.nn.Module,
        modules: dict[str, torch.nn.Linear],
        states: torch.Tensor,
        call: LayerCall,
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """The inputs of every module over all windows, and the layer's outputs."""
        seen: dict[str, list[torch.Tensor]] = defaultdict(list)

        def record(name: str, module_input: torch.Tensor) -> None:
            seen[name].append(module_input.cpu())

        with before_running(modules, record):
            outputs = torch.cat(list(self._model.run_layer(layer, states, call)))
        # `cat` copies, so modules with a shared input do not share memory: each module's features
        # are divided by its scales in place. Popping frees the parts as soon as they are joined.
        return {name: torch.cat(seen.pop(name)) for name in list(seen)}, outputs

    def _packed(self, name: str, module: torch.nn.Linear) -> dict[str, torch.Tensor]:
        scales, zeros, integers = zero_point_integers(
            module.weight.data.float(), self._settings.bits, self._settings.group_size
        )
        qweight, qzeros = pack_awq(integers, zeros)
        tensors = {
            f"{name}.qweight": qweight,
            f"{name}.qzeros": qzeros,
            f"{name}.scales": scales.t().contiguous(),
        }
        if module.bias is not None:
            tensors[f"{name}.bias"] = module.bias.detach()
        return tensors


def _activation_scales(layer: torch.nn.Module, architecture: str) -> dict[str, torch.Tensor]:
    """Activation scales that loaders of this architecture expect and divide by.

    They are ones, so loaders that ignore them compute the same.
    """
    known = AWQ_SCALES_MAPPINGS.get(architecture)
    if known is None:
        return {}
    return {
        f"{name}.{known['act']}.scales": torch.ones(before.out_features)
        for name, module in layer.named_modules()
        if (before := getattr(module, known["layer_before_act"], None)) is not None
    }
