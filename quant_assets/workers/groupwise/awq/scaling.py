"""Apply AWQ's scales: W diag(s) (diag(s)^-1 x) = W x, so the layer computes the same.

Paper: arXiv:2306.00978, section 3.2. The recipe, for every group of linear modules:

1. Find the operation that produces their input: a norm, or the previous linear module.
2. Multiply the columns of the weights by s, and divide that operation's output by s.
3. Run the layer, and revert the scales if its outputs changed.

Engines describe architectures by tables with errors: gptqmodel 7.6.0 treats Gemma 3 and OLMo 2 as
Llama, whose norms are elsewhere, and neither engine knows that Gemma 3's norms multiply by one plus
their weight. So norms and their weight offsets are found by running the layer. Life cycle: functions
without state, called once per layer between search and clipping.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch

CHANGE_ALLOWED = 1e-4
"""float32 rounding changed outputs by 1e-6 in measurements, misplaced scales by 1e-2 or more."""

Run = Callable[[], torch.Tensor]
"""Computes the layer's outputs for the test window."""
Change = Callable[[], float]
"""Relative change of the layer's outputs so far."""
Scaled = Sequence[Any]
"""(name of the preceding operation, names of the linear modules, scales, ...), as engines return."""


def norms_before(layer: torch.nn.Module, run: Run) -> dict[torch.nn.Module, torch.nn.Module]:
    """Each linear module that reads a norm's output, with that norm."""
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


def use_actual_norm(
    group: dict[str, Any], norms: Mapping[torch.nn.Module, torch.nn.Module]
) -> None:
    """Set a group's preceding operation to the norm that its modules were observed to read from."""
    group["prev_op"] = norms.get(group["layers"][0], group["prev_op"])


def change_since_now(run: Run, inputs: torch.Tensor) -> Change:
    """Measures how a layer's outputs change from now on, relative to what it adds to `inputs`.

    The residual stream is much larger than what later layers add, and a few tokens are much larger
    than the rest; hence the median over tokens, relative to the layer's own contribution.
    """

    def outputs() -> torch.Tensor:
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")  # TF32 is too coarse for this comparison
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
    """Multiply the modules' weights by the scales; divide the preceding operation and `features`.

    Returns whether that is possible and leaves the layer's outputs unchanged; if not, everything is
    reverted.
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
    # NaN compares false with everything, so test for the good case.
    unchanged = change() <= CHANGE_ALLOWED
    if unchanged:
        for name in names:
            features[name] /= scales.to(features[name].device)
    else:
        for parameter, data in parameters.items():
            parameter.data = data
    return unchanged


def _divide(before: torch.nn.Module, scales: torch.Tensor) -> None:
    """Divide the output of a norm, or of the last rows of a linear module."""
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
    """The constant that a norm adds to its weight: usually 0, 1 in the Gemma family."""
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
    """Whether a module multiplies each channel by a weight of its own."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.Tensor) and weight.dim() == 1 and not list(module.children())
