"""One layer by AWQ: an engine scales and clips the weights, then they are rounded and packed.

The inputs of every layer are those of the unquantized model, so layers depend on each other only
through them.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any, Protocol

import torch

from quant_assets.quantize.groupwise import GroupwiseSettings
from quant_assets.workers.groupwise.loop import linears
from quant_assets.workers.groupwise.packing import pack_awq
from quant_assets.workers.groupwise.rounding import zero_point_integers
from quant_assets.workers.groupwise.streaming import LayerCall, StreamedModel


class AwqEngine(Protocol):
    """A search for scales and clipping bounds."""

    def library_versions(self) -> dict[str, str]:
        """Versions of what decides the bytes."""

    def search(
        self, layer: torch.nn.Module, features: dict[str, torch.Tensor], kwargs: dict[str, Any]
    ) -> None:
        """Scale and clip the layer's weights in place; `features` may be changed.

        `features` holds the inputs of every linear module, windows x tokens x channels.
        """


class AwqQuantizer:
    """Quantizes layers of one model; see `LayerQuantizer`."""

    def __init__(
        self, model: StreamedModel, settings: GroupwiseSettings, engine: AwqEngine
    ) -> None:
        self._model = model
        self._settings = settings
        self._engine = engine

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
        self._engine.search(layer, features, dict(call.kwargs))
        layer.to(self._model.device)
        tensors: dict[str, torch.Tensor] = {}
        for name, module in modules.items():
            tensors |= self._packed(name, module)
        for name, tensor in layer.state_dict().items():
            if name.removesuffix(".weight") not in modules:
                tensors[name] = tensor.detach()
        return tensors, outputs

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
