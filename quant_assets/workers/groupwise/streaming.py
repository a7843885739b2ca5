"""A causal language model on disk of which one decoder layer at a time is in memory."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from accelerate.utils import set_module_tensor_to_device
from safetensors import safe_open

from quant_assets.errors import InputError
from quant_assets.formats.safetensors_header import shard_index, tensors_of_folder
from quant_assets.models.hf_config import read_config
from quant_assets.models.linked_model import linked_model

_TUPLE_OUTPUT = int(transformers.__version__.split(".", 1)[0]) < 5
_BEFORE_ROPE_PARAMETERS = _BEFORE_RENAMING = _TUPLE_OUTPUT


@dataclass(frozen=True)
class LayerCall:
    """How the model calls one layer, besides with the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _LastLayerReached(Exception):
    """Everything has been seen; the rest of the model is not loaded."""


def _restore_rope(config: Any, folder: Path) -> None:
    """Give a config that transformers 5 wrote its rotary settings, which version 4 looks for
    elsewhere and, not finding them, silently replaces by defaults.
    """
    raw = read_config(folder)
    rope = raw.get("rope_parameters")
    if not isinstance(rope, dict):
        return
    if "rope_theta" not in rope:
        raise InputError(
            f"transformers {transformers.__version__} cannot express the rotary embeddings of "
            f"{config.model_type}.",
            "They differ between kinds of layers.",
            "Use --engine gptqmodel.",
        )
    config.rope_theta = rope["rope_theta"]
    if rope.get("rope_type", "default") != "default":
        config.rope_scaling = {key: value for key, value in rope.items() if key != "rope_theta"}


def renamed(model: Any, names: list[str]) -> dict[str, str]:
    """Parameters that transformers calls otherwise than the files do: their names in the files."""
    if _BEFORE_RENAMING:
        return {}
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    renamings = [
        change for change in get_model_conversion_mapping(model) if type(change) is WeightRenaming
    ]
    found = {}
    for name in names:
        now = name
        for renaming in renamings:
            now = renaming.rename_source_key(now)[0]
        if now != name:
            found[now] = name
    return found


class TensorFiles:
    """The tensors of a folder of safetensors files, by name.

    `stored_as` holds further names that tensors can be read by.
    """

    def __init__(self, folder: Path) -> None:
        self.stored_as: dict[str, str] = {}
        index = shard_index(folder)
        self._tensors = {
            name: found
            for name, found in tensors_of_folder(folder).items()
            if index is None or name in index
        }

    @property
    def names(self) -> list[str]:
        """All names in the files, sorted."""
        return sorted(self._tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors or name in self.stored_as

    def read(self, name: str) -> torch.Tensor:
        """One tensor, on the CPU."""
        stored = self.stored_as.get(name, name)
        path, _ = self._tensors[stored]
        with safe_open(path, framework="pt") as reader:
            tensor: torch.Tensor = reader.get_tensor(stored)
        return tensor

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor, without reading it."""
        return self._tensors[name][1].shape


class StreamedModel:
    """The skeleton of the model in `folder`; parameters are on the meta device until loaded.

    Raises `InputError` for a folder that transformers cannot read, and for a model whose files do
    not hold its layers' parameters under their own names (fused experts).
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
                f"transformers {transformers.__version__} said: {str(error).splitlines()[0]}",
                "Use a model of an architecture that this version knows, or --to gguf.",
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
            f"No list of {count} modules is part of the model.",
            "Use --to gguf.",
        )

    def _check_names(self, folder: Path) -> None:
        have = {*self.files.names, *self.files.stored_as}
        if getattr(self.config, "tie_word_embeddings", False):
            # The head is the embeddings once more; most files do not repeat it.
            have |= self._head_names()
        missing = [name for name, _ in self.model.named_parameters() if name not in have]
        if missing:
            raise InputError(
                f"The files in {folder} do not hold {len(missing)} parameters of the model.",
                f"The first is {missing[0]}; the architecture stores its weights in another way.",
                "Use --to gguf, or a model that stores every matrix under its own name.",
            )

    def layer_prefix(self, index: int) -> str:
        """What the names of a layer's tensors begin with."""
        return f"{self.prefix}.{index}."

    def outer_names(self) -> list[str]:
        """The names of all tensors in the files that belong to no layer."""
        return [name for name in self.files.names if not name.startswith(f"{self.prefix}.")]

    @contextmanager
    def layer(self, index: int) -> Iterator[torch.nn.Module]:
        """A layer with its parameters loaded, freed after the block."""
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
        """The first layer's hidden states for every window, and how each layer is called.

        The model runs with every layer replaced by one that records its call. All windows have
        the same length, so one call stands for all. With `only_calls` only one window is run.
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
        """The model's output for the last `keep` tokens of every window, layer by layer.

        `change` is done to each layer once it is loaded.
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
        """Load what belongs to no layer; the names of what was loaded."""
        passed_over = set() if with_head else self._head_names()
        outer = [
            name
            for name, _ in self.model.named_parameters()
            if not name.startswith(f"{self.prefix}.")
            and name not in passed_over
            and name in self.files
        ]
        self._load(outer)
        self._move_buffers()
        return outer

    def _head_names(self) -> set[str]:
        """The names of the output embeddings' parameters that the input embeddings are not."""
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
