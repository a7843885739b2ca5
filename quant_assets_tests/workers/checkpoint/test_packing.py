"""The bit layouts, compared with plain definitions."""

import pytest
import torch

from quant_assets.workers.checkpoint.packing import (
    pack_awq,
    pack_columns,
    pack_gptq,
    pack_rows,
    unpack_awq,
    unpack_columns,
    unpack_rows,
)


def values(bits: int, rows: int, columns: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(bits)
    return torch.randint(2**bits, (rows, columns), generator=generator)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_rows_are_one_stream_of_bits(bits: int) -> None:
    integers = values(bits, 64, 5)
    words = pack_rows(integers, bits)
    assert words.dtype == torch.int32 and words.shape == (64 * bits // 32, 5)
    for column in range(5):
        stream = sum(int(v) << (bits * n) for n, v in enumerate(integers[:, column]))
        expected = [(stream >> (32 * n)) & 0xFFFFFFFF for n in range(len(words))]
        assert [int(word) & 0xFFFFFFFF for word in words[:, column]] == expected
    assert torch.equal(unpack_rows(words, bits), integers)
    assert torch.equal(unpack_columns(pack_columns(integers.t(), bits), bits), integers.t())


def test_gptq_stores_zero_points_minus_one() -> None:
    integers, zeros = values(4, 32, 64), torch.full((32, 2), 8)
    qweight, qzeros = pack_gptq(integers, zeros, 4)
    assert qweight.shape == (8, 32) and qzeros.shape == (2, 4)
    assert int(qzeros[0, 0]) == 0x77777777


def test_awq_interleaves_eight_outputs() -> None:
    integers, zeros = values(4, 16, 64), values(4, 16, 2)
    qweight, qzeros = pack_awq(integers, zeros)
    assert qweight.shape == (64, 2) and qzeros.shape == (2, 2)
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    word = sum(int(integers[order[n], 5]) << (4 * n) for n in range(8))
    assert int(qweight[5, 0]) & 0xFFFFFFFF == word
    assert torch.equal(unpack_awq(qweight), integers.t())
    assert torch.equal(unpack_awq(qzeros), zeros.t())


def test_values_that_do_not_fill_words_are_rejected() -> None:
    with pytest.raises(ValueError, match="whole words"):
        pack_rows(values(3, 8, 4), 3)
