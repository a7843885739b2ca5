"""Folders whose tensors do not match their configuration."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from quant_assets.errors import CheckFailed
from quant_assets.quantize.groupwise.layout import check_layout


def test_damaged_layout_is_found(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "architectures": ["LlamaForCausalLM"],
                "quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 32},
            }
        )
    )
    tensors = {
        "a.qweight": np.zeros((64, 8), np.int32),
        "a.qzeros": np.zeros((2, 8), np.int32),
        "a.scales": np.zeros((2, 64), np.float16),
    }
    file = tmp_path / "model.safetensors"
    save_file(tensors, file)
    assert check_layout(tmp_path) == 1
    save_file({**tensors, "a.scales": np.zeros((1, 64), np.float16)}, file)
    with pytest.raises(CheckFailed, match=r"a\.scales"):
        check_layout(tmp_path)
    del tensors["a.qzeros"]
    save_file(tensors, file)
    with pytest.raises(CheckFailed, match="is missing"):
        check_layout(tmp_path)
