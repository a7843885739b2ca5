"""Compares this project's AWQ search with AutoAWQ's own: seconds per layer and perplexity.

`PYTHONPATH=. .venvs/awq/bin/python benchmarks/awq_search.py MODEL CALIBRATION TEXT`. The first
layers of MODEL, a folder with safetensors, are quantized with each; the rest stays unchanged.
AutoAWQ's search restores weights from copies made here; on a CPU it would corrupt them otherwise.
"""

import argparse
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import awq.quantize.quantizer as autoawq
import torch
import transformers
from arguments import existing_file, model_folder, positive

from quant_assets.models.inspection import inspect_model
from quant_assets.quantize.groupwise.job import GroupwiseSettings, check_shape
from quant_assets.workers.groupwise.calibration import calibration_windows
from quant_assets.workers.groupwise.layer_quantizer import linears
from quant_assets.workers.groupwise.rounding import rounded_to_nearest
from quant_assets.workers.groupwise.streaming import StreamedModel

_COLLECT_GARBAGE = autoawq.clear_memory  # which the engine skips

from quant_assets.workers.groupwise.awq.autoawq_engine import AutoAwqEngine  # noqa: E402
from quant_assets.workers.groupwise.awq.quantizer import AwqQuantizer  # noqa: E402
from quant_assets.workers.groupwise.awq.scaling import Scaled  # noqa: E402


class _OwnSearch(autoawq.AwqQuantizer):  # type: ignore[misc]
    def init_quant(self, **_: Any) -> tuple[list[torch.nn.Module], dict[str, Any], None]:
        return [], {}, None

    def _compute_best_scale(self, x: Any, w: Any, x_mean: Any, inspected: Any, *rest: Any) -> Any:
        state = inspected.state_dict
        inspected.state_dict = lambda: {name: tensor.clone() for name, tensor in state().items()}
        try:
            return super()._compute_best_scale(x, w, x_mean, inspected, *rest)
        finally:
            del inspected.state_dict


class _OwnEngine(AutoAwqEngine):
    def __init__(self, model: StreamedModel, settings: GroupwiseSettings) -> None:
        super().__init__(model, settings)
        self._search = _OwnSearch(
            self._model, model.model, None, settings.bits, settings.group_size, zero_point=True,
            version="gemm", calib_data=None, split="", text_column="", duo_scaling=True,
        )  # fmt: skip

    def best_scales(self, layer: torch.nn.Module, group: dict[str, Any]) -> Scaled:
        with _collecting_garbage():
            return super().best_scales(layer, group)

    def clip(self, layer: torch.nn.Module, features: dict[str, torch.Tensor]) -> None:
        with _collecting_garbage():
            super().clip(layer, features)


@contextmanager
def _collecting_garbage() -> Iterator[None]:
    quiet, autoawq.clear_memory = autoawq.clear_memory, _COLLECT_GARBAGE
    try:
        yield
    finally:
        autoawq.clear_memory = quiet


def main() -> None:
    """Quantize with both searches and print their times and perplexities."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=model_folder)
    parser.add_argument("calibration", type=existing_file)
    parser.add_argument("text", type=existing_file)
    parser.add_argument("--layers", type=positive, default=2)
    parser.add_argument("--samples", type=positive, default=16)
    parser.add_argument("--sequence-length", type=positive, default=256)
    parser.add_argument("--group-size", type=positive, default=64)
    parser.add_argument("--threads", type=positive, default=2)
    arguments = parser.parse_args()
    shape = inspect_model(arguments.model)
    if arguments.layers > shape.n_layers:
        parser.error(f"--layers: the model has {shape.n_layers}")
    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    settings = GroupwiseSettings(
        format="awq", group_size=arguments.group_size, sym=False, engine="autoawq",
        samples=arguments.samples, sequence_length=arguments.sequence_length,
    )  # fmt: skip
    check_shape(shape, settings)
    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.model)
    windows = calibration_windows(
        tokenizer, arguments.calibration, settings.samples, settings.sequence_length
    )
    scored = calibration_windows(tokenizer, arguments.text, 8, 512)
    whole = transformers.AutoModelForCausalLM.from_pretrained(
        arguments.model, torch_dtype=torch.float32
    ).eval()
    print(f"{'search':16} {'s/layer':>10} {'perplexity':>11}")
    print(f"{'none (source)':16} {'':>10} {_perplexity(whole, scored):11.4f}")
    for name, engine in (
        ("AutoAWQ's own", _OwnEngine),
        ("here", AutoAwqEngine),
        ("rounding", None),
    ):
        seconds = _quantized(whole, arguments, settings, windows, engine)
        print(f"{name:16} {seconds:10.2f} {_perplexity(whole, scored):11.4f}", flush=True)


def _quantized(
    whole: Any,
    arguments: argparse.Namespace,
    settings: GroupwiseSettings,
    windows: torch.Tensor,
    engine: type[AutoAwqEngine] | None,
) -> float:
    """Replace layers of `whole` by quantized ones; return seconds per layer."""
    model = StreamedModel(arguments.model, "cpu", torch.float32)
    quantizer = AwqQuantizer(model, settings, engine(model, settings), print) if engine else None
    states, calls = model.first_inputs(windows, only_calls=False)
    layers = dict(whole.named_modules())[model.prefix]
    started = time.perf_counter()
    for index in range(arguments.layers):
        with model.layer(index) as layer:
            if quantizer:
                _, states = quantizer.quantize(layer, states, calls[index])
            for module in linears(layer).values():
                module.weight.data = rounded_to_nearest(
                    module.weight.data, settings.bits, settings.group_size, sym=False
                )
            layers[index].load_state_dict(layer.state_dict())
    return (time.perf_counter() - started) / int(arguments.layers)


def _perplexity(model: Any, windows: torch.Tensor) -> float:
    """Perplexity over the second half of each window."""
    losses = []
    for window in windows:
        half = len(window) // 2
        logits = model(input_ids=window[None]).logits[0, half:-1].log_softmax(-1)
        losses.append(-logits.gather(1, window[half + 1 :, None]).mean().item())
    return math.exp(sum(losses) / len(losses))


if __name__ == "__main__":
    main()
