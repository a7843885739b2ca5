"""Headers and shard names as they are written are what the reader expects."""

from pathlib import Path

import pytest

from quant_assets.formats.safetensors_header import (
    StoredTensor,
    encode_header,
    read_safetensors_header,
    shard_names,
    weight_files,
)


def test_an_encoded_header_is_read_back(tmp_path: Path) -> None:
    from safetensors import safe_open

    tensors = [StoredTensor("b", "F32", (2, 2), 0, 16), StoredTensor("a", "I8", (3,), 16, 19)]
    path = tmp_path / "model.safetensors"
    path.write_bytes(encode_header(tensors) + bytes(19))
    header = read_safetensors_header(path)
    assert list(header.tensors.values()) == tensors
    assert header.data_start % 8 == 0
    with safe_open(path, framework="np") as reader:
        assert reader.metadata() == {"format": "pt"}


@pytest.mark.parametrize("total", [1, 3])
def test_shard_names_are_found_again(total: int, tmp_path: Path) -> None:
    for name in shard_names(total):
        (tmp_path / name).touch()
    (tmp_path / "consolidated.safetensors").touch()
    assert [path.name for path in weight_files(tmp_path)] == shard_names(total)
