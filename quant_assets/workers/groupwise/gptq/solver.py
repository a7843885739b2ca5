"""One layer by GPTQ: gptqmodel's solver, fed by this project's layer loop.

The modules of a layer are quantized in the order in which they run; those that read the same input
(query, key and value; gate and up) share one Hessian, and later ones see what the quantized
earlier ones produce, as in gptqmodel's own loop.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from gptqmodel import QuantizeConfig
from gptqmodel.quantization.gptq import GPTQ
from gptqmodel.quantization.quantizer import Quantizer

from quant_assets.quantize.groupwise.job import GroupwiseSettings
from quant_assets.workers.groupwise.loop import installed_versions, linears
from quant_assets.workers.groupwise.packing import pack_gptq
from quant_assets.workers.groupwise.streaming import LayerCall, StreamedModel

_LIBRARIES = ("gptqmodel", "transformers", "torch")


class _StorableQuantizer(Quantizer):  # type: ignore[misc]
    """Zero points from 1 on.

    The format stores a zero point less one. gptqmodel lets a 0 wrap around and borrow from its
    neighbour's bits; here the range is laid out anew with the zero point at 1.
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


class _Enough(Exception):
    """The modules of interest have run; the rest of the layer need not."""


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
            # Sorts whole groups by their activations; costs nothing at run time, needs groups.
            act_group_aware=not settings.desc_act and settings.group_size > 0,
            fallback=None,
        )

    def library_versions(self) -> dict[str, str]:
        """Versions of what decides the bytes."""
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
            # gptqmodel loads zero points only of producers that it knows to store them right.
            "meta": {"quantizer": [f"gptqmodel:{self.library_versions()['gptqmodel']}"]},
        }

    def quantize(
        self, layer: torch.nn.Module, states: torch.Tensor, call: LayerCall
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Quantize one layer; its outputs are those of the quantized weights."""
        modules = linears(layer)
        packed: dict[str, torch.Tensor] = {}
        for names in self._groups(layer, modules, states, call):
            for name, solver in self._measured(names, layer, modules, states, call).items():
                packed |= self._solved(name, modules[name], solver)
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
        """The names of modules in the order they run, those with one input together."""
        groups: list[list[str]] = []
        inputs: list[torch.Tensor] = []

        def record(name: str, module_input: torch.Tensor) -> None:
            if inputs and inputs[-1] is module_input:
                groups[-1].append(name)
            else:
                groups.append([name])
                inputs.append(module_input)

        with _hooked(modules, record):
            list(self._model.run_layer(layer, states[:1], call))
        return groups

    def _measured(
        self,
        names: list[str],
        layer: torch.nn.Module,
        modules: dict[str, torch.nn.Linear],
        states: torch.Tensor,
        call: LayerCall,
    ) -> dict[str, GPTQ]:
        """A solver for each module of a group, with the Hessian of its inputs."""
        solvers = {name: _Solver(modules[name], self._config) for name in names}
        for solver in solvers.values():
            solver.fallback = None
            solver.quantizer.configure(perchannel=True)
        leader = solvers[names[0]]

        def measure(_: str, module_input: torch.Tensor) -> None:
            leader.add_batch(module_input, module_input)
            raise _Enough

        with _hooked({names[0]: modules[names[0]]}, measure):
            for window in states.split(1):
                try:
                    list(self._model.run_layer(layer, window, call))
                except _Enough:
                    continue
        for solver in solvers.values():
            solver.adopt_hessian_from(leader)
        return solvers

    def _solved(self, name: str, module: torch.nn.Linear, solver: GPTQ) -> dict[str, torch.Tensor]:
        """Replace the module's weights by quantized ones; its packed tensors."""
        _, scale, zero, group_index, *_ = result = solver.quantize()
        weight = result[0]
        solver.free()
        # What is computed with from here on is what a reader of the 16-bit scales computes with.
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


@contextmanager
def _hooked(
    modules: dict[str, torch.nn.Linear], see: Callable[[str, torch.Tensor], None]
) -> Iterator[None]:
    """Call `see` with the name and the input of each module before it runs."""

    def hook_of(name: str) -> Callable[..., None]:
        def hook(_: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            see(name, args[0])

        return hook

    handles = [module.register_forward_pre_hook(hook_of(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
