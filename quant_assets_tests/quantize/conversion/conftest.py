"""A tiny checkpoint, and the same packed by plain rounding."""

import json
from pathlib import Path
from typing import Any

import pytest

from quant_assets_tests.models.tiny_models import make_model, tokenizer_model


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "tiny"
    return make_model(
        folder, "llama", tokenizer_model(), dtype="float16", hidden_size=64, head_dim=16,
        intermediate_size=128, num_hidden_layers=2,
    )  # fmt: skip


@pytest.fixture(scope="session", params=["gptq-2", "gptq-3", "gptq-4", "gptq-8", "awq-4"])
def packed(
    request: pytest.FixtureRequest, plain: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """(a folder packed at groups of 32, the weights that it stands for)"""
    import torch
    from safetensors.torch import load_file, save_file

    from quant_assets.workers.checkpoint.assembly import copy_companions
    from quant_assets.workers.checkpoint.packing import pack_awq, pack_gptq
    from quant_assets.workers.groupwise.rounding import symmetric_integers, zero_point_integers

    method, bits = request.param.split("-")[0], int(request.param.split("-")[1])
    folder = tmp_path_factory.mktemp("packed") / request.param
    folder.mkdir()
    tensors, meant = {}, {}
    for name, weight in load_file(plain / "model.safetensors").items():
        if "_proj" not in name:
            tensors[name] = meant[name] = weight
            continue
        base = name.removesuffix(".weight")
        rounded = zero_point_integers if method == "awq" else symmetric_integers
        scales, zeros, integers = rounded(weight.float(), bits, 32)
        pack = pack_awq(integers, zeros) if method == "awq" else pack_gptq(integers, zeros, bits)
        tensors |= {f"{base}.qweight": pack[0], f"{base}.qzeros": pack[1]}
        tensors[f"{base}.scales"] = scales.t().contiguous()
        if method == "gptq":
            tensors[f"{base}.g_idx"] = torch.arange(weight.shape[1], dtype=torch.int32) // 32
        grouped = integers.reshape(len(integers), -1, 32) - zeros.unsqueeze(-1)
        restored = grouped * scales.float().unsqueeze(-1)
        meant[name] = restored.reshape(weight.shape).to(torch.float16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    copy_companions(
        plain, folder, "float16", {"quant_method": method, "bits": bits, "group_size": 32}
    )
    assert json.loads((folder / "config.json").read_text())["rope_theta"]
    return folder, meant
