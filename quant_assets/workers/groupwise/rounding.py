"""Round-to-nearest by groups: the last step of AWQ, and the yardstick for every artifact."""

import torch

_SMALLEST_RANGE = 1e-5  # of a group of equal weights


def zero_point_integers(
    weight: torch.Tensor, bits: int, group_size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(scales, zero points, integers) of outputs x inputs weights, by AWQ's own formula.

    The integers are those of the float16 scales that are stored. A group size of -1 is a row.
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
    """The same with the zero point in the middle, by GPTQ's formula."""
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
    """The weights that a reader of plainly rounded ones computes with."""
    integers_of = symmetric_integers if sym else zero_point_integers
    scales, zeros, integers = integers_of(weight.float(), bits, group_size)
    grouped = _grouped(integers, group_size)
    restored = (grouped - zeros.unsqueeze(-1)) * scales.float().unsqueeze(-1)
    return restored.reshape(weight.shape).to(weight.dtype)


def _grouped(weight: torch.Tensor, group_size: int) -> torch.Tensor:
    return weight.reshape(weight.shape[0], -1, weight.shape[1] if group_size == -1 else group_size)
