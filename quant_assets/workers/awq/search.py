"""The two searches of AWQ, as AutoAWQ defines them, shared by the engines.

AutoAWQ and gptqmodel both keep a backup of the weights that on a CPU (gptqmodel: with float32
weights) is the same memory, so that every candidate spoils the weights that the next one starts
from. Here candidates are new tensors. Two sums are computed in another order, with the same result
up to rounding: the error of a single matrix W with inputs X is the trace of dW (X^T X) dW^T, and
the error of a clipped group is the same with the group's block of X^T X.
"""

from collections.abc import Callable

import torch

from quant_assets.errors import InputError

GRID = 20
CLIP_GRID = 20
CLIP_CANDIDATES = 10
CLIP_TOKENS = 512
TOKENS_AT_ONCE = 8192
_ROWS_AT_ONCE = 2048

Rounded = Callable[[torch.Tensor], torch.Tensor]
"""Weights as they are after rounding to the format's grid."""


def best_scales(
    inputs: torch.Tensor,
    w_mean: torch.Tensor,
    x_mean: torch.Tensor,
    inspected: torch.nn.Module,
    linears: list[torch.nn.Linear],
    run: Callable[[], torch.Tensor],
    rounded: Rounded,
) -> tuple[torch.Tensor, float]:
    """(one factor a channel with the least error of `inspected`'s output, that error).

    `w_mean` and `x_mean` are AWQ's statistics of weights and inputs; `run` computes the output of
    `inspected` on `inputs` with the weights as they are. The weights are left as they were.
    """
    originals = [linear.weight.data for linear in linears]
    gram = reference = None
    if isinstance(inspected, torch.nn.Linear):
        gram = _gram(inputs, originals[0])
    else:
        reference = run()
    least, best = float("inf"), None
    try:
        for step in range(GRID):
            scales = _scales(x_mean, w_mean, step / GRID)
            for linear, original in zip(linears, originals, strict=True):
                linear.weight.data = rounded(original * scales).div_(scales)
            if gram is not None:
                delta = linears[0].weight.data - originals[0]
                error = float(((delta @ gram) * delta).sum())
            else:
                error = float((run() - reference).float().pow(2).sum())
            if error < least:
                least, best = error, scales
    finally:
        for linear, original in zip(linears, originals, strict=True):
            linear.weight.data = original
    if best is None:
        raise InputError(
            "The search for scales found none.",
            "The model's activations are not finite.",
            "Check that the model answers sensibly before it is quantized.",
        )
    return best.cpu(), least


def best_bounds(
    weight: torch.Tensor, inputs: torch.Tensor, group_size: int, rounded: Rounded
) -> torch.Tensor:
    """The clipping bound of every group with the least error, outputs x groups x 1."""
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
    """The candidate for one ratio, from inputs and weights."""
    x_mean, w_mean = x_mean.reshape(-1), w_mean.reshape(-1).to(x_mean.device)
    scales = (x_mean.pow(ratio) / (w_mean.pow(1 - ratio) + 1e-4)).clamp(min=1e-4)
    scales = scales / (scales.max() * scales.min()).sqrt()
    return torch.where(torch.isfinite(scales), scales, torch.ones_like(scales))
