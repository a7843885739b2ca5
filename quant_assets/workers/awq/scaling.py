"""AWQ's scales moved from a layer's inputs into its weights, without changing what it computes.

Engines know architectures by tables, and a table can be wrong: gptqmodel 7.6.0 takes Gemma 3 for a
Llama, whose feed-forward block has another norm before it, and neither engine knows that Gemma 3's
norms multiply by one plus their weight. So the norms are found by running the layer, how they use
their weights by running them, and the scaled layer is compared with the unscaled one.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from quant_assets.errors import InputError

CHANGE_ALLOWED = 1e-3
"""Relative difference of a layer's outputs that rounding in float32 stays far below."""

Run = Callable[[], torch.Tensor]
"""Computes the layer's outputs for the window that it is checked with."""
Scaled = Sequence[Any]
"""(name of the operation before, names of the linear modules, scales, ...), as engines say it."""


def norms_before(layer: torch.nn.Module, run: Run) -> dict[str, torch.nn.Module]:
    """For each linear module whose input is a norm's output: the norm."""
    produced: list[tuple[torch.Tensor, torch.nn.Module]] = []
    found: dict[str, torch.nn.Module] = {}

    def keep(norm: torch.nn.Module, _: Any, output: torch.Tensor) -> None:
        produced.append((output, norm))

    def seer(name: str) -> Callable[..., None]:
        def see(_: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            for output, norm in produced:
                if output is args[0]:
                    found[name] = norm

        return see

    with ExitStack() as stack:
        for name, module in layer.named_modules():
            if _is_norm(module):
                stack.callback(module.register_forward_hook(keep).remove)
            elif isinstance(module, torch.nn.Linear):
                stack.callback(module.register_forward_pre_hook(seer(name)).remove)
        run()
    return found


def use_norm_before(
    layer: torch.nn.Module, group: dict[str, Any], norms: Mapping[str, torch.nn.Module]
) -> None:
    """Let a group of linear modules be scaled by the norm that they were seen to read from."""
    names = {id(module): name for name, module in layer.named_modules()}
    norm = norms.get(names[id(group["layers"][0])])
    if norm is not None:
        group["prev_op"] = norm


def apply_scales(
    layer: torch.nn.Module,
    found: Sequence[Scaled],
    features: dict[str, torch.Tensor],
    apply_others: Callable[[list[Scaled]], None],
) -> None:
    """Multiply the linear modules' weights, divide what comes before them and their `features`.

    `apply_others` is the engine's way for scales that no norm takes.
    """
    for scaled in found:
        before, names, scales = scaled[:3]
        norm = layer.get_submodule(before)
        if not _is_norm(norm):
            apply_others([scaled])
            continue
        offset = weight_offset(norm)
        scales = scales.to(norm.weight.device).reshape(-1)
        norm.weight.data = (norm.weight.data + offset) / scales - offset
        if getattr(norm, "bias", None) is not None:
            norm.bias.data = norm.bias.data / scales
        for name in names:
            layer.get_submodule(name).weight.data *= scales
            features[name] /= scales.to(features[name].device)


def weight_offset(norm: torch.nn.Module) -> float:
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


def check_unchanged(before: torch.Tensor, after: torch.Tensor, architecture: str) -> None:
    """Raise `InputError` when scaling changed a layer's outputs."""
    change = float((after - before).norm() / before.norm())
    # A change that is not a number compares false with everything, so the good case is asked.
    if not change <= CHANGE_ALLOWED:
        raise InputError(
            f"AWQ cannot scale the layers of {architecture}.",
            f"The engine's description of them does not fit: a layer's outputs change by "
            f"{100 * change:.2g}% before anything is rounded.",
            "Use the other --engine, --to gptq or --to gguf.",
        )


def _is_norm(module: torch.nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.Tensor) and weight.dim() == 1 and not list(module.children())
