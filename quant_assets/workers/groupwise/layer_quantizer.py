"""The interface between the layer loop and a method, implemented for GPTQ and for AWQ."""

import importlib.metadata
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from quant_assets.workers.groupwise.streaming import LayerCall, StreamedModel


class LayerQuantizer(Protocol):
    """Quantizes the layers of one model, in order."""

    def library_versions(self) -> dict[str, str]:
        """Versions of the libraries that determine the output's bytes."""

    def quantization_config(self) -> dict[str, Any]:
        """`quantization_config` of the artifact's config.json."""

    def quantize(
        self, layer: torch.nn.Module, states: torch.Tensor, call: LayerCall
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """(the layer's tensors by their names inside it, the next layer's inputs)."""


MakeQuantizer = Callable[[StreamedModel], LayerQuantizer]


def installed_versions(names: tuple[str, ...]) -> dict[str, str]:
    """Versions of installed distributions."""
    return {name: importlib.metadata.version(name) for name in names}


def linears(layer: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    """The linear modules of a layer, by name."""
    return {
        name: module
        for name, module in layer.named_modules()
        if isinstance(module, torch.nn.Linear)
    }


@contextmanager
def before_running(
    modules: Mapping[str, torch.nn.Module], callback: Callable[[str, torch.Tensor], None]
) -> Iterator[None]:
    """Call `callback` with the name and the input of each module before it runs."""

    def hook_of(name: str) -> Callable[..., None]:
        def hook(_: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            callback(name, args[0])

        return hook

    handles = [module.register_forward_pre_hook(hook_of(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
