"""Quantization that a config.json declares, at the top or for the language model's part."""

import json
from pathlib import Path
from typing import Any

import pytest

from quant_assets.errors import InputError
from quant_assets.models.stored_quantization import (
    detect_quantization,
    groupwise_config,
    without_quantization,
)

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True}


def folder_with(folder: Path, config: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    "config",
    [{"quantization_config": GPTQ}, {"text_config": {"quantization_config": GPTQ}}],
    ids=["top", "text_config"],
)
def test_every_reader_finds_the_same_configuration(config: dict[str, Any], tmp_path: Path) -> None:
    folder = folder_with(tmp_path, config)
    assert detect_quantization(folder).model_dump() == {
        "format": "gptq",
        "method": "int4",
        "bits": 4,
    }
    checked = groupwise_config(folder)
    assert (checked.method, checked.bits, checked.group_size) == ("gptq", 4, 128)
    assert checked.symmetric
    assert checked.zero_points_offset == 1
    plain = without_quantization(config)
    assert detect_quantization(folder_with(tmp_path, plain)).format == "float"


@pytest.mark.parametrize(
    ("config", "offset"),
    [
        ({**GPTQ, "checkpoint_format": "gptq_v2"}, 0),
        ({**GPTQ, "quant_method": "awq"}, 0),
        ({**GPTQ, "checkpoint_format": "gptq"}, 1),
    ],
)
def test_zero_points_by_format(config: dict[str, Any], offset: int, tmp_path: Path) -> None:
    folder = folder_with(tmp_path, {"quantization_config": config})
    assert groupwise_config(folder).zero_points_offset == offset


@pytest.mark.parametrize(
    "changes",
    [{"bits": 5}, {"bits": "4"}, {"group_size": 0}, {"group_size": -2}, {"group_size": None}],
)
def test_impossible_groups_are_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    folder = folder_with(tmp_path, {"quantization_config": {**GPTQ, **changes}})
    with pytest.raises(InputError, match="not a valid GPTQ configuration"):
        groupwise_config(folder)


@pytest.mark.parametrize("config", [{}, {"quantization_config": {"quant_method": "fp8"}}])
def test_other_folders_are_not_groupwise(config: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a GPTQ or AWQ folder"):
        groupwise_config(folder_with(tmp_path, config))
