"""AWQ's two searches, shared by the engines: per-channel scales and clipping bounds.

Paper: Lin et al., arXiv:2306.00978; the grids and statistics are those of AutoAWQ 0.2.9
(`_compute_best_scale`, `_compute_best_clip`). The recipe:

1. Scales: s = mean|x|^r / mean|w|^(1 - r), normalized, for 20 ratios r in [0, 1).
2. Keep the ratio with the least squared error of the inspected module's output after rounding.
3. Bounds: per weight group, the fraction of its maximum (1 down to 0.55) with the least error.

Life cycle: functions without state; weights are temporarily replaced and always restored.

AutoAWQ and gptqmodel both keep a backup of the weights that on a CPU (gptqmodel: with float32
weights) aliases them, so every candidate corrupts the weights that the next one starts from. Here
candidates are new tensors. Two sums are reordered, with the same result up to rounding: the error of
a single matrix W with inputs X is the trace of dW (X^T X) dW^T, and that of a clipped group uses the
group's block of X^T X.
"""

import math
from collections.abc import Callable

import torch

from quant_assets.errors import InputError

GRID = 20
FIRST_WINDOWS = 4
FINALISTS = 3
CLIP_GRID = 20
CLIP_CANDIDATES = 10
CLIP_TOKENS = 512
TOKENS_AT_ONCE = 8192
_ROWS_AT_ONCE = 2048

Rounded = Callable[[torch.Tensor], torch.Tensor]
"""Rounds weights to the format's grid."""


def best_scales(
    inputs: torch.Tensor,
    w_mean: torch.Tensor,
    x_mean: torch.Tensor,
    inspected: torch.nn.Module,
    linears: list[torch.nn.Linear],
    outputs: torch.Tensor,
    run: Callable[[torch.Tensor], torch.Tensor],
    rounded: Rounded,
) -> tuple[torch.Tensor, float]:
    """(per-channel scales with the least error of `inspected`'s output, that error).

    `w_mean` and `x_mean` are AWQ's statistics of weights and inputs; `outputs` are the outputs of
    `inspected`, which `run` computes for windows of inputs. All candidates are compared on some of
    the windows, the finalists on all. The weights are restored.
    """
    originals = [linear.weight.data for linear in linears]
    candidates = [_scales(x_mean, w_mean, step / GRID) for step in range(GRID)]

    def errors_of(chosen: list[torch.Tensor], step: int) -> list[float]:
        windows, reference = inputs[::step], outputs[::step]
        errors = []
        for scales in chosen:
            for linear, original in zip(linears, originals, strict=True):
                linear.weight.data = rounded(original * scales).div_(scales)
            output = run(windows).to(reference.device)
            errors.append(float((output - reference).float().pow_(2).sum()))
            _restore(linears, originals)
        return errors

    try:
        if isinstance(inspected, torch.nn.Linear):
            gram = _gram(inputs, originals[0])
            deltas = (
                rounded(originals[0] * scales) / scales - originals[0] for scales in candidates
            )
            errors = [float(((delta @ gram) * delta).sum()) for delta in deltas]
        else:
            if len(inputs) > FIRST_WINDOWS:
                order = _finite_order(errors_of(candidates, -(-len(inputs) // FIRST_WINDOWS)))
                candidates = [candidates[index] for index in order[:FINALISTS]]
            errors = errors_of(candidates, 1)
    finally:
        _restore(linears, originals)
    best = _finite_order(errors)
    if not best:
        raise InputError(
            "The search for AWQ scales failed.",
            "No candidate has a finite error: the model's activations are infinite or NaN.",
            "Check that the unquantized model generates sensible text.",
        )
    return candidates[best[0]].cpu(), errors[best[0]]


def _restore(linears: list[torch.nn.Linear], originals: list[torch.Tensor]) -> None:
    for linear, original in zip(linears, originals, strict=True):
        linear.weight.data = original


def _finite_order(errors: list[float]) -> list[int]:
    """Indices of the finite errors, least first."""
    finite = [index for index, error in enumerate(errors) if math.isfinite(error)]
    return sorted(finite, key=errors.__getitem__)


def best_bounds(
    weight: torch.Tensor, inputs: torch.Tensor, group_size: int, rounded: Rounded
) -> torch.Tensor:
    """The clipping bound of least error for every group, outputs x groups x 1."""
    tokens = inputs.reshape(-1, inputs.shape[-1])
    tokens = tokens[:: max(1, len(tokens) // CLIP_TOKENS)].to(weight.device).float()
    grouped = tokens.reshape(len(tokens), -1, group_size).transpose(0, 1)
    gram = grouped.transpose(1, 2) @ grouped  # groups x channels x channels
    bounds = []
    for rows in weight.float().split(_ROWS_AT_ONCE):
        weights = rows.reshape(len(rows), -1, group_size)
        largest = weights.abs().amax(dim=-1, keepdim=True)
        best = largest.clone()
        least = torch.full_like(largest, float("inf"))
        for step in range(CLIP_CANDIDATES):
            bound = largest * (1 - step / CLIP_GRID)
            clipped = torch.clamp(weights, -bound, bound)
            delta = (rounded(clipped) - weights).transpose(0, 1)
            error = ((delta @ gram) * delta).sum(dim=-1).t().unsqueeze(-1)
            better = error < least
            least = torch.where(better, error, least)
            best = torch.where(better, bound, best)
        bounds.append(best)
    return torch.cat(bounds).to(weight.dtype)


def _gram(inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """X^T X over all tokens, in float32."""
    channels = inputs.shape[-1]
    total = torch.zeros(channels, channels, device=weight.device)
    for part in inputs.reshape(-1, channels).split(TOKENS_AT_ONCE):
        rows = part.to(weight.device).float()
        total += rows.t() @ rows
    return total


def _scales(x_mean: torch.Tensor, w_mean: torch.Tensor, ratio: float) -> torch.Tensor:
    """The candidate scales for one ratio."""
    x_mean, w_mean = x_mean.reshape(-1), w_mean.reshape(-1).to(x_mean.device)
    scales = (x_mean.pow(ratio) / (w_mean.pow(1 - ratio) + 1e-4)).clamp(min=1e-4)
    scales = scales / (scales.max() * scales.min()).sqrt()
    return torch.where(torch.isfinite(scales), scales, torch.ones_like(scales))
