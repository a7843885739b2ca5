"""GPTQ of one layer: gptqmodel's solver, fed by this project's layer loop.

Paper: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", arXiv:2210.17323. The recipe, for every linear module:

1. Accumulate the Hessian of the layer's squared error, H = 2 X X^T, over the calibration inputs X.
2. Round the columns of the weights one after the other to the grid of their group.
3. Compensate each column's error in the columns still to come, weighted by the inverse of H.

Life cycle: one `GptqQuantizer` per job; the loop calls `quantize` once per layer. In a layer, modules
are solved in execution order: those with the same input (query, key and value; gate and up) share a
Hessian, and later ones see the outputs of quantized earlier ones (`true_sequential`). Solvers and
Hessians are freed with their group. Steps 2 and 3 are gptqmodel's `GPTQ.quantize`.
"""

from typing import Any

import torch
from gptqmodel import QuantizeConfig
from gptqmodel.quantization.gptq import GPTQ
from gptqmodel.quantization.quantizer import Quantizer

from quant_assets.quantize.groupwise.job import GroupwiseSettings
from quant_assets.workers.checkpoint.packing import pack_gptq
from quant_assets.workers.groupwise.layer_quantizer import (
    before_running,
    installed_versions,
    linears,
)
from quant_assets.workers.groupwise.streaming import LayerCall, StreamedModel

_LIBRARIES = ("gptqmodel", "transformers", "torch")


class _StorableQuantizer(Quantizer):  # type: ignore[misc]
    """Keeps zero points at 1 or above.

    The format stores zero points minus one. gptqmodel lets a 0 wrap around and borrow from the
    neighbouring bits; here the scale is recomputed for a zero point of 1.
    """

    scale: torch.Tensor
    zero: torch.Tensor

    def find_params(self, x: torch.Tensor, weight: bool = False) -> None:
        super().find_params(x, weight=weight)
        if self.qcfg.sym:
            return
        flat = x.flatten(1)
        shape = self.scale.shape
        highest = flat.max(dim=1)[0].clamp(min=0).reshape(shape)
        wraps = self.zero < 1
        self.scale = torch.where(wraps, highest / (self.maxq - 1), self.scale)
        self.zero = torch.where(wraps, torch.ones_like(self.zero), self.zero)


class _Solver(GPTQ):  # type: ignore[misc]
    def create_quantizer(self, name: str) -> Quantizer:
        return _StorableQuantizer(qcfg=self.qcfg, name=name)


class _StopForward(Exception):
    """Stops the forward pass of a layer: the module of interest was reached."""


class GptqQuantizer:
    """Quantizes layers of one model; see `LayerQuantizer`."""

    def __init__(self, model: StreamedModel, settings: GroupwiseSettings) -> None:
        self._model = model
        self._settings = settings
        self._config = QuantizeConfig(
            bits=settings.bits,
            group_size=settings.group_size,
            desc_act=settings.desc_act,
            sym=settings.sym,
            # Group-aware reordering: sorts whole groups by activation, free at inference; needs groups.
            act_group_aware=not settings.desc_act and settings.group_size > 0,
            fallback=None,
        )

    def library_versions(self) -> dict[str, str]:
        """Versions of the libraries that determine the output's bytes."""
        return installed_versions(_LIBRARIES)

    def quantization_config(self) -> dict[str, Any]:
        """As gptqmodel and transformers write it."""
        settings = self._settings
        return {
            "quant_method": "gptq",
            "bits": settings.bits,
            "group_size": settings.group_size,
            "desc_act": settings.desc_act,
            "sym": settings.sym,
            "lm_head": False,
            "checkpoint_format": "gptq",
            "pack_dtype": "int32",
            "true_sequential": True,
            # gptqmodel loads zero points only from producers that it knows to store them correctly.
            "meta": {"quantizer": [f"gptqmodel:{self.library_versions()['gptqmodel']}"]},
        }

    def quantize(
        self, layer: torch.nn.Module, states: torch.Tensor, call: LayerCall
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Quantize one layer; the outputs are computed with the quantized weights."""
        modules = linears(layer)
        packed: dict[str, torch.Tensor] = {}
        for names in self._groups(layer, modules, states, call):
            for name, solver in self._with_hessians(names, layer, modules, states, call).items():
                packed |= self._packed(name, modules[name], solver)
        rest = {
            name: parameter.detach()
            for name, parameter in layer.named_parameters()
            if name.removesuffix(".weight") not in modules
        }
        outputs = torch.cat(list(self._model.run_layer(layer, states, call)))
        return {**packed, **rest}, outputs

    def _groups(
        self,
        layer: torch.nn.Module,
        modules: dict[str, torch.nn.Linear],
        states: torch.Tensor,
        call: LayerCall,
    ) -> list[list[str]]:
        """Module names in execution order, grouped by shared input."""
        groups: list[list[str]] = []
        inputs: list[torch.Tensor] = []

        def record(name: str, module_input: torch.Tensor) -> None:
            if inputs and inputs[-1] is module_input:
                groups[-1].append(name)
            else:
                groups.append([name])
                inputs.append(module_input)

        with before_running(modules, record):
            list(self._model.run_layer(layer, states[:1], call))
        return groups

    def _with_hessians(
        self,
        names: list[str],
        layer: torch.nn.Module,
        modules: dict[str, torch.nn.Linear],
        states: torch.Tensor,
        call: LayerCall,
    ) -> dict[str, GPTQ]:
        """A solver for each module of a group, holding the Hessian of their shared input."""
        solvers = {name: _Solver(modules[name], self._config) for name in names}
        for solver in solvers.values():
            solver.fallback = None
            solver.quantizer.configure(perchannel=True)
        leader = solvers[names[0]]

        def measure(_: str, module_input: torch.Tensor) -> None:
            leader.add_batch(module_input, module_input)
            raise _StopForward

        with before_running({names[0]: modules[names[0]]}, measure):
            for window in states.split(1):
                try:
                    list(self._model.run_layer(layer, window, call))
                except _StopForward:
                    continue
        for solver in solvers.values():
            solver.adopt_hessian_from(leader)
        return solvers

    def _packed(self, name: str, module: torch.nn.Linear, solver: GPTQ) -> dict[str, torch.Tensor]:
        """Quantize the module's weights in place; returns its packed tensors."""
        _, scale, zero, group_index, *_ = result = solver.quantize()
        weight = result[0]
        solver.free()
        # From here on, compute with the 16-bit scales that inference will use.
        scale = scale.to(torch.float16).float()
        zero = zero.round()
        index = group_index.long()
        integers = torch.round(weight.float() / scale[:, index]) + zero[:, index]
        integers = integers.clamp(0, 2**self._settings.bits - 1)
        module.weight.data = (scale[:, index] * (integers - zero[:, index])).to(module.weight.dtype)
        qweight, qzeros = pack_gptq(integers, zero, self._settings.bits)
        tensors = {
            f"{name}.qweight": qweight,
            f"{name}.qzeros": qzeros,
            f"{name}.scales": scale.t().contiguous(),
            f"{name}.g_idx": group_index.to(torch.int32),
        }
        if module.bias is not None:
            tensors[f"{name}.bias"] = module.bias.detach()
        return tensors
