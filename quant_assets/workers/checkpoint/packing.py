"""Packing small integers into 32-bit words, in the layouts of GPTQ and of AWQ's GEMM format.

GPTQ packs weights along the inputs and zero points along the outputs, as a bit stream that crosses
word boundaries (relevant at 3 bits). AWQ packs both along the outputs, eight 4-bit values per word
in the order 0 2 4 6 1 3 5 7. Sources: `pack` of gptqmodel's quantized linear modules, `WQLinear_GEMM`
of AutoAWQ.
"""

import torch

from quant_assets.formats.group_quantization import PER_CHANNEL

_WORD = 32
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_COLUMNS_AT_ONCE = 1024  # bounds the memory of the expanded bits


def pack_rows(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack `values` (rows x columns, integers below 2^bits) along the rows into int32 words."""
    parts = [_pack(part, bits) for part in values.split(_COLUMNS_AT_ONCE, dim=1)]
    return torch.cat(parts, dim=1).contiguous()


def _pack(values: torch.Tensor, bits: int) -> torch.Tensor:
    rows, columns = values.shape
    if rows * bits % _WORD:
        raise ValueError(f"{rows} values of {bits} bits do not fill whole words")
    shifts = torch.arange(bits, device=values.device, dtype=torch.int64)
    stream = ((values.to(torch.int64)[:, None, :] >> shifts[None, :, None]) & 1).reshape(
        rows * bits // _WORD, _WORD, columns
    )
    weights = torch.arange(_WORD, device=values.device, dtype=torch.int64)
    words = (stream << weights[None, :, None]).sum(dim=1)
    # Reinterpret the 32-bit pattern as signed.
    return torch.where(words >= 1 << (_WORD - 1), words - (1 << _WORD), words).to(torch.int32)


def pack_columns(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack along the columns."""
    return pack_rows(values.t(), bits).t().contiguous()


def pack_gptq(
    quantized: torch.Tensor, zeros: torch.Tensor, bits: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(qweight, qzeros) of outputs x inputs integers and outputs x groups zero points.

    The format stores zero points minus one, so they must be at least 1.
    """
    return pack_rows(quantized.t(), bits), pack_columns(zeros.t() - 1, bits)


def pack_awq(quantized: torch.Tensor, zeros: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(qweight, qzeros) of outputs x inputs 4-bit integers and outputs x groups zero points."""
    return pack_columns(_awq_order(quantized.t()), 4), pack_columns(_awq_order(zeros.t()), 4)


def _awq_order(values: torch.Tensor) -> torch.Tensor:
    rows, columns = values.shape
    return values.reshape(rows, -1, 8)[:, :, list(_AWQ_ORDER)].reshape(rows, columns)


def unpack_rows(words: torch.Tensor, bits: int) -> torch.Tensor:
    """The inverse of `pack_rows`."""
    parts = [_unpack(part, bits) for part in words.split(_COLUMNS_AT_ONCE, dim=1)]
    return torch.cat(parts, dim=1)


def _unpack(words: torch.Tensor, bits: int) -> torch.Tensor:
    positions = torch.arange(_WORD, device=words.device, dtype=torch.int64)
    stream = (words.to(torch.int64)[:, None, :] >> positions[None, :, None]) & 1
    stream = stream.reshape(-1, bits, words.shape[1])
    shifts = torch.arange(bits, device=words.device, dtype=torch.int64)
    return (stream << shifts[None, :, None]).sum(dim=1)


def unpack_columns(words: torch.Tensor, bits: int) -> torch.Tensor:
    """The inverse of `pack_columns`."""
    return unpack_rows(words.t(), bits).t()


def unpack_awq(words: torch.Tensor) -> torch.Tensor:
    """Rows x outputs integers of an AWQ tensor, `qweight` or `qzeros`."""
    values = unpack_columns(words, 4)
    rows, columns = values.shape
    inverse = sorted(range(8), key=_AWQ_ORDER.__getitem__)
    return values.reshape(rows, -1, 8)[:, :, inverse].reshape(rows, columns)


def packed_bytes(
    in_features: int, out_features: int, bits: int, group_size: int, *, with_index: bool
) -> int:
    """Bytes of one packed matrix: weights, zero points, 16-bit scales, and GPTQ's group index."""
    group = in_features if group_size == PER_CHANNEL else group_size
    groups = -(-in_features // group)
    weights = in_features * out_features * bits // 8
    zeros = groups * out_features * bits // 8
    return weights + zeros + groups * out_features * 2 + (4 * in_features if with_index else 0)
