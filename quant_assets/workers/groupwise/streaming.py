"""A causal language model on disk, with one decoder layer in memory at a time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from accelerate.utils import set_module_tensor_to_device

from quant_assets.errors import InputError
from quant_assets.models.hf_config import read_config
from quant_assets.models.linked_model import linked_model
from quant_assets.workers.checkpoint.tensor_files import TensorFiles, renamed

_TUPLE_OUTPUT = int(transformers.__version__.split(".", 1)[0]) < 5
_BEFORE_ROPE_PARAMETERS = _TUPLE_OUTPUT


@dataclass(frozen=True)
class LayerCall:
    """Arguments that the model passes to one layer besides the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _LastLayerReached(Exception):
    """Stops the forward pass: all calls are recorded, and the rest of the model is not loaded."""


def _restore_rope(config: Any, folder: Path) -> None:
    """Copy the rotary settings of a transformers 5 config to where transformers 4 reads them.

    Version 4 would silently fall back to defaults.
    """
    raw = read_config(folder)
    rope = raw.get("rope_parameters")
    if not isinstance(rope, dict):
        return
    if "rope_theta" not in rope:
        raise InputError(
            f"transformers {transformers.__version__} cannot express the rotary embeddings of "
            f"{config.model_type}.",
            "They differ between layer types.",
            "Use --engine gptqmodel.",
        )
    config.rope_theta = rope["rope_theta"]
    if rope.get("rope_type", "default") != "default":
        config.rope_scaling = {key: value for key, value in rope.items() if key != "rope_theta"}


class StreamedModel:
    """The model in `folder` with its parameters on the meta device until they are loaded.

    Raises `InputError` for a folder that transformers cannot read, and for a model whose files
    lack its parameters under their own names (fused experts).
    """

    def __init__(self, folder: Path, device: str, dtype: torch.dtype) -> None:
        self.files = TensorFiles(folder)
        self.device = device
        self.dtype = dtype
        try:
            with linked_model(folder) as links:
                self.config = transformers.AutoConfig.from_pretrained(
                    links, trust_remote_code=False
                )
            if _BEFORE_ROPE_PARAMETERS:
                _restore_rope(self.config, folder)
            with init_empty_weights(include_buffers=False):
                self.model = transformers.AutoModelForCausalLM.from_config(
                    self.config, trust_remote_code=False
                ).eval()
        except (ValueError, OSError, KeyError, ImportError) as error:
            raise InputError(
                f"The model in {folder} cannot be built.",
                f"transformers {transformers.__version__} reports: {str(error).splitlines()[0]}",
                "Use a model whose architecture this version supports, or --to gguf.",
            ) from error
        self.prefix, self.layers = self._find_layers()
        self.files.stored_as = {
            name: stored
            for name, stored in renamed(self.model, self.files.names).items()
            if not name.startswith(f"{self.prefix}.")
        }
        self._check_names(folder)

    def _find_layers(self) -> tuple[str, torch.nn.ModuleList]:
        count = getattr(self.config, "num_hidden_layers", None)
        for name, module in self.model.named_modules():
            if isinstance(module, torch.nn.ModuleList) and len(module) == count:
                return name, module
        raise InputError(
            f"The decoder layers of {self.config.model_type} were not found.",
            f"The model contains no list of {count} modules.",
            "Use --to gguf.",
        )

    def _check_names(self, folder: Path) -> None:
        have = {*self.files.names, *self.files.stored_as}
        if getattr(self.config, "tie_word_embeddings", False):
            # The head shares its weights with the embeddings; most files do not repeat them.
            have |= self._head_names()
        missing = [name for name, _ in self.model.named_parameters() if name not in have]
        if missing:
            raise InputError(
                f"The files in {folder} do not hold {len(missing)} parameters of the model.",
                f"The first is {missing[0]}; the architecture stores its weights differently.",
                "Use --to gguf, or a model that stores every matrix under its own name.",
            )

    def layer_prefix(self, index: int) -> str:
        """The prefix of a layer's tensor names."""
        return f"{self.prefix}.{index}."

    def outer_names(self) -> list[str]:
        """Names of all tensors in the files that are outside the decoder layers."""
        return [name for name in self.files.names if not name.startswith(f"{self.prefix}.")]

    @contextmanager
    def layer(self, index: int) -> Iterator[torch.nn.Module]:
        """A layer with its parameters loaded; they are freed after the block."""
        module = self.layers[index]
        self._load([f"{self.prefix}.{index}.{name}" for name, _ in module.named_parameters()])
        yield module
        module.to("meta")

    def _load(self, names: list[str]) -> None:
        for name in names:
            set_module_tensor_to_device(
                self.model, name, self.device, value=self.files.read(name), dtype=self.dtype
            )

    def first_inputs(
        self, windows: torch.Tensor, *, only_calls: bool
    ) -> tuple[torch.Tensor, list[LayerCall]]:
        """Input hidden states of the first layer for every window, and each layer's call.

        The model runs with every layer replaced by a recorder. All windows have the same length,
        so one call serves them all. With `only_calls`, a single window is run.
        """
        outer = self._load_outer(with_head=False)
        states: list[torch.Tensor] = []
        calls: list[LayerCall] = []
        for index, layer in enumerate(self.layers):
            layer.forward = self._recorder(index, states, calls)
        try:
            for window in windows[:1] if only_calls else windows:
                try:
                    self.model.base_model(input_ids=window[None].to(self.device), use_cache=False)
                except _LastLayerReached:
                    continue
        finally:
            for layer in self.layers:
                del layer.forward
        self._free(outer)
        return torch.cat(states), calls[: len(self.layers)]

    def logits(
        self, windows: torch.Tensor, keep: int, change: Callable[[torch.nn.Module], None]
    ) -> Iterator[torch.Tensor]:
        """Logits of the last `keep` tokens of every window, computed layer by layer.

        `change` is applied to each layer after loading.
        """
        states, calls = self.first_inputs(windows, only_calls=False)
        for index, call in enumerate(calls):
            with self.layer(index) as layer:
                change(layer)
                states = torch.cat(list(self.run_layer(layer, states, call)))
        outer = self._load_outer(with_head=True)
        self.model.tie_weights()
        try:
            for window, state in zip(windows, states.split(1), strict=True):
                final = state.to(self.device)
                for layer in self.layers:
                    layer.forward = lambda *_, final=final, **__: (
                        (final,) if _TUPLE_OUTPUT else final
                    )
                output = self.model(
                    input_ids=window[None].to(self.device), use_cache=False, logits_to_keep=keep
                )
                yield output.logits[0]
        finally:
            for layer in self.layers:
                del layer.forward
        self._free(outer)

    def _load_outer(self, *, with_head: bool) -> list[str]:
        """Load the parameters outside the layers; returns their names."""
        skipped = set() if with_head else self._head_names()
        outer = [
            name
            for name, _ in self.model.named_parameters()
            if not name.startswith(f"{self.prefix}.") and name not in skipped and name in self.files
        ]
        self._load(outer)
        self._move_buffers()
        return outer

    def _head_names(self) -> set[str]:
        """Names of the output embeddings' parameters that are not shared with the input embeddings."""
        output = self.model.get_output_embeddings()
        heads = (
            {id(parameter) for parameter in output.parameters()} if output is not None else set()
        )
        embedding = self.model.get_input_embeddings().weight
        return {
            name
            for name, parameter in self.model.named_parameters()
            if id(parameter) in heads and parameter is not embedding
        }

    def _free(self, names: list[str]) -> None:
        for name in names:
            set_module_tensor_to_device(self.model, name, "meta")

    def _move_buffers(self) -> None:
        for name, buffer in list(self.model.named_buffers()):
            set_module_tensor_to_device(self.model, name, self.device, value=buffer)

    def _recorder(self, index: int, states: list[torch.Tensor], calls: list[LayerCall]) -> Any:
        last = index == len(self.layers) - 1

        def record(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if index == 0:
                states.append(hidden_states.detach().cpu())
            calls.append(LayerCall(args, kwargs))
            if last:
                raise _LastLayerReached
            return (hidden_states,) if _TUPLE_OUTPUT else hidden_states

        return record

    def run_layer(
        self, layer: torch.nn.Module, states: torch.Tensor, call: LayerCall
    ) -> Iterator[torch.Tensor]:
        """The layer's output for each window, on the CPU."""
        for window in states.split(1):
            output = layer(window.to(self.device), *call.args, **call.kwargs)
            yield (output[0] if isinstance(output, tuple) else output).cpu()
