"""Group-wise round-to-nearest: the last step of AWQ, and the baseline for every artifact.

Per group of weights: one float16 scale, and a zero point (AWQ: from minimum and maximum; GPTQ's
symmetric form: the middle of the range). Formulas: `pseudo_quantize_tensor` of AutoAWQ, `Quantizer`
of gptqmodel.
"""

import torch

_SMALLEST_RANGE = 1e-5  # for a group of equal weights


def zero_point_integers(
    weight: torch.Tensor, bits: int, group_size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(scales, zero points, integers) of outputs x inputs weights, by AWQ's formula.

    The integers are computed with the stored float16 scales. A group size of -1 means one group
    per row.
    """
    groups = _grouped(weight, group_size)
    largest = 2**bits - 1
    highest = groups.amax(dim=-1, keepdim=True)
    lowest = groups.amin(dim=-1, keepdim=True)
    scales = ((highest - lowest).clamp(min=_SMALLEST_RANGE) / largest).to(torch.float16)
    steps = scales.float()
    zeros = (-torch.round(lowest / steps)).clamp(0, largest)
    integers = (torch.round(groups / steps) + zeros).clamp(0, largest)
    return scales.squeeze(-1), zeros.squeeze(-1), integers.reshape(weight.shape)


def symmetric_integers(
    weight: torch.Tensor, bits: int, group_size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same with the zero point in the middle of the range, by GPTQ's formula."""
    groups = _grouped(weight, group_size)
    largest = 2**bits - 1
    bound = groups.abs().amax(dim=-1, keepdim=True).clamp(min=_SMALLEST_RANGE)
    scales = (2 * bound / largest).to(torch.float16)
    zeros = torch.full_like(bound, 2 ** (bits - 1))
    integers = (torch.round(groups / scales.float()) + zeros).clamp(0, largest)
    return scales.squeeze(-1), zeros.squeeze(-1), integers.reshape(weight.shape)


def rounded_to_nearest(
    weight: torch.Tensor, bits: int, group_size: int, *, sym: bool
) -> torch.Tensor:
    """The weights after rounding to nearest and dequantizing."""
    integers_of = symmetric_integers if sym else zero_point_integers
    scales, zeros, integers = integers_of(weight.float(), bits, group_size)
    grouped = _grouped(integers, group_size)
    restored = (grouped - zeros.unsqueeze(-1)) * scales.float().unsqueeze(-1)
    return restored.reshape(weight.shape).to(weight.dtype)


def _grouped(weight: torch.Tensor, group_size: int) -> torch.Tensor:
    return weight.reshape(weight.shape[0], -1, weight.shape[1] if group_size == -1 else group_size)
