"""AWQ's scales moved from a layer's inputs into its weights, without changing what it computes.

Engines know architectures by tables, and tables are wrong in places: gptqmodel 7.6.0 takes Gemma 3 and
OLMo 2 for a Llama, whose norms are elsewhere, and neither engine knows that Gemma 3's norms multiply
by one plus their weight. So norms are found by running the layer, how they use their weights by
running them, and scales that change the layer's outputs are taken back.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch

CHANGE_ALLOWED = 1e-4
"""Rounding in float32 was seen to change 1e-6, scales in a wrong place 1e-2 and more."""

Run = Callable[[], torch.Tensor]
"""Computes the layer's outputs for the window that it is checked with."""
Change = Callable[[], float]
"""How much the layer's outputs have changed by now."""
Scaled = Sequence[Any]
"""(name of the operation before, names of the linear modules, scales, ...), as engines say it."""


def norms_before(layer: torch.nn.Module, run: Run) -> dict[torch.nn.Module, torch.nn.Module]:
    """For each linear module whose input is a norm's output: the norm."""
    produced: list[tuple[torch.Tensor, torch.nn.Module]] = []
    found: dict[torch.nn.Module, torch.nn.Module] = {}

    def keep(norm: torch.nn.Module, _: Any, output: torch.Tensor) -> None:
        produced.append((output, norm))

    def see(linear: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        for output, norm in produced:
            if output is args[0]:
                found[linear] = norm

    with ExitStack() as stack:
        for module in layer.modules():
            if is_norm(module):
                stack.callback(module.register_forward_hook(keep).remove)
            elif isinstance(module, torch.nn.Linear):
                stack.callback(module.register_forward_pre_hook(see).remove)
        run()
    return found


def use_norm_before(
    group: dict[str, Any], norms: Mapping[torch.nn.Module, torch.nn.Module]
) -> None:
    """Let a group of linear modules be scaled by the norm that they were seen to read from."""
    group["prev_op"] = norms.get(group["layers"][0], group["prev_op"])


def change_since_now(run: Run, inputs: torch.Tensor) -> Change:
    """The change of a layer's outputs from here on, relative to what it adds to its `inputs`.

    Inputs dwarf what later layers add, and a few tokens dwarf all others; so it is the median over
    tokens, relative to what is added.
    """

    def outputs() -> torch.Tensor:
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")  # TF32 rounds too much for this
        try:
            return run()
        finally:
            torch.set_float32_matmul_precision(precision)

    expected = outputs()
    added = (expected - inputs).norm(dim=-1)
    return lambda: float(((outputs() - expected).norm(dim=-1) / added).median())


def apply_scales(
    layer: torch.nn.Module, scaled: Scaled, features: dict[str, torch.Tensor], change: Change
) -> bool:
    """Multiply the linear modules' weights, divide what is before them and the modules' `features`.

    Whether that is possible and leaves the layer's outputs as they are; if not, nothing is done.
    """
    before, names, scales = layer.get_submodule(scaled[0]), scaled[1], scaled[2].reshape(-1)
    if len(scales) > len(before.weight):
        return False
    linears = [layer.get_submodule(name) for name in names]
    parameters = {
        parameter: parameter.data
        for module in (before, *linears)
        for parameter in module.parameters()
    }
    _divide(before, scales)
    for linear in linears:
        linear.weight.data = linear.weight.data * scales.to(linear.weight.device)
    # A change that is not a number compares false with everything, so the good case is asked.
    unchanged = change() <= CHANGE_ALLOWED
    if unchanged:
        for name in names:
            features[name] /= scales.to(features[name].device)
    else:
        for parameter, data in parameters.items():
            parameter.data = data
    return unchanged


def _divide(before: torch.nn.Module, scales: torch.Tensor) -> None:
    """Divide what a norm, or the last rows of a linear module, gives."""
    scales = scales.to(before.weight.device)
    if is_norm(before):
        offset = weight_offset(before)
        before.weight.data = (before.weight.data + offset) / scales - offset
    else:
        before.weight.data = _last_divided(before.weight.data, scales[:, None])
    if getattr(before, "bias", None) is not None:
        before.bias.data = _last_divided(before.bias.data, scales)


def _last_divided(tensor: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    kept = len(tensor) - len(scales)
    return torch.cat([tensor[:kept], tensor[kept:] / scales])


def weight_offset(norm: torch.nn.Module) -> int:
    """What a norm adds to its weight before it multiplies: 0 as a rule, 1 in Gemma's kin."""
    weight: torch.Tensor = norm.weight.data
    probe = torch.linspace(-1, 2, weight.numel(), device=weight.device, dtype=weight.dtype)
    answers = []
    for value in (0.0, 1.0):
        norm.weight.data = torch.full_like(weight, value)
        answers.append(norm(probe[None]))
    norm.weight.data = weight
    bias = getattr(norm, "bias", None)
    at_zero = answers[0] - (0 if bias is None else bias)
    normalized = answers[1] - answers[0]
    return round(float((at_zero * normalized).sum() / (normalized * normalized).sum()))


def is_norm(module: torch.nn.Module) -> bool:
    """Whether a module multiplies each channel by one weight."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.Tensor) and weight.dim() == 1 and not list(module.children())
