"""One layer by AWQ: an engine scales and clips the weights, then they are rounded and packed.

The inputs of every layer are those of the unquantized model, so layers depend on each other only
through them.
"""

import functools
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from transformers.integrations.awq import AWQ_SCALES_MAPPINGS

from quant_assets.errors import QuantAssetsError
from quant_assets.quantize.groupwise.job import GroupwiseSettings
from quant_assets.workers.groupwise.awq.scaling import (
    Scaled,
    apply_scales,
    change_since_now,
    is_norm,
    norms_before,
    use_norm_before,
)
from quant_assets.workers.groupwise.loop import linears
from quant_assets.workers.groupwise.packing import pack_awq
from quant_assets.workers.groupwise.rounding import zero_point_integers
from quant_assets.workers.groupwise.streaming import LayerCall, StreamedModel


class AwqEngine(Protocol):
    """A search for scales and clipping bounds."""

    def library_versions(self) -> dict[str, str]:
        """Versions of what decides the bytes."""

    def scaling_groups(
        self, layer: torch.nn.Module, features: dict[str, torch.Tensor], kwargs: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """Linear modules with one input (`layers`), and what produces it (`prev_op`).

        `features` holds the inputs of every linear module, windows x tokens x channels.
        """

    def best_scales(self, layer: torch.nn.Module, group: dict[str, Any]) -> Scaled:
        """Search the scales of one group; nothing is changed. Raises what the library does."""

    def clip(self, layer: torch.nn.Module, features: dict[str, torch.Tensor]) -> None:
        """Search clipping bounds for the scaled weights, and clip them in place."""


class AwqQuantizer:
    """Quantizes layers of one model; see `LayerQuantizer`.

    `warn` is told of matrices whose inputs cannot be scaled, once.
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
        self._warn = functools.cache(warn)  # every layer may have the same to say

    def library_versions(self) -> dict[str, str]:
        """Versions of what decides the bytes."""
        return self._engine.library_versions()

    def quantization_config(self) -> dict[str, Any]:
        """As AutoAWQ writes it for transformers and vLLM."""
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
        """Quantize one layer; its outputs are those of the unquantized weights."""
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
        """Search scales and apply those that leave the layer what it is, as one window shows."""

        def run() -> torch.Tensor:
            layer.to(self._model.device)
            return torch.cat(list(self._model.run_layer(layer, window, call)))

        norms = norms_before(layer, run)
        groups = self._engine.scaling_groups(layer, features, dict(call.kwargs))
        found = []
        for group in groups:
            use_norm_before(group, norms)
            if is_norm(group["prev_op"]) or isinstance(group["prev_op"], torch.nn.Linear):
                found += self._searched(layer, group)
        change = change_since_now(run, window)
        for scaled in found:
            if not apply_scales(layer, scaled, features, change):
                self._leave_out(scaled[1], "they would change what the layer computes")

    def _searched(self, layer: torch.nn.Module, group: dict[str, Any]) -> list[Scaled]:
        """The scales of a group, if the engine can run it."""
        try:
            return [self._engine.best_scales(layer, group)]
        except (QuantAssetsError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever the architecture's code raises when called otherwise
            names = {id(module): name for name, module in layer.named_modules()}
            self._leave_out(
                [names[id(linear)] for linear in group["layers"]],
                f"the engine cannot run them ({type(error).__name__})",
            )
            return []

    def _leave_out(self, names: Sequence[str], why: str) -> None:
        self._warn(
            f"The inputs of {', '.join(names)} are not scaled: {why}, as the engine does not describe "
            f"{self._model.config.model_type} right. Their weights are clipped and rounded alone."
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

        def hook_of(name: str) -> Callable[..., None]:
            def hook(_: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
                seen[name].append(args[0].cpu())

            return hook

        handles = [
            module.register_forward_pre_hook(hook_of(name)) for name, module in modules.items()
        ]
        outputs = torch.cat(list(self._model.run_layer(layer, states, call)))
        for handle in handles:
            handle.remove()
        # `cat` copies, so that modules with one input do not share memory: the engines divide
        # each module's features by its scales, in place.
        return {name: torch.cat(parts) for name, parts in seen.items()}, outputs

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
    """Scales of the activations that readers of this architecture divide by them.

    They are ones, so that readers who know nothing of them compute the same.
    """
    known = AWQ_SCALES_MAPPINGS.get(architecture)
    if known is None:
        return {}
    return {
        f"{name}.{known['act']}.scales": torch.ones(before.out_features)
        for name, module in layer.named_modules()
        if (before := getattr(module, known["layer_before_act"], None)) is not None
    }
