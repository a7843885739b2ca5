"""The tables of docs/intent.md are what the code answers."""

import json
import re
from pathlib import Path

import pytest

from quant_assets.errors import InputError
from quant_assets.gpus.registry import load_registry
from quant_assets.models.quantization_intent import BACKEND_METHODS, Backend
from quant_assets.serving.backend import BackendParams
from quant_assets.serving.intent import BACKENDS, UnifiedQuantizationConfig
from quant_assets.settings import PROJECT_ROOT

BACKEND_NAMES: tuple[Backend, ...] = tuple(BACKENDS)
REFUSED = "refused"


def table(first_heading: str) -> list[dict[str, str]]:
    """The rows of the table whose first column has this heading."""
    text = (PROJECT_ROOT / "docs" / "intent.md").read_text(encoding="utf-8")
    found = re.search(rf"^\| {first_heading} \|.*\n(?:\|.*\n)+", text, re.MULTILINE)
    assert found, f"docs/intent.md has no table of {first_heading}"
    heading, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in found[0].splitlines()
    ]
    return [dict(zip(heading, row, strict=True)) for row in rows]


def cell(config: UnifiedQuantizationConfig, backend: Backend, **subject: object) -> str:
    """The answer of a backend as the tables write it."""
    try:
        return label(config.to_backend_params(backend, **subject))
    except InputError:
        return REFUSED


def label(answer: BackendParams) -> str:
    params = answer.params
    if answer.backend == "tensorrt":
        return f"`{params['qformat']}`" + (", calibrated" if answer.calibrated else "")
    if answer.backend == "llamacpp":
        return f"`{params['level']}`"
    if answer.backend == "vllm":
        return f"`{params['quantization']}`" if "quantization" in params else "16 bits"
    if params == {"torch_dtype": "auto"}:
        return "as stored"
    loads = [name for name in params if name.startswith("load_in")]
    return f"`{loads[0]}`" if loads else "16 bits"


def test_the_translation_of_every_method_and_form() -> None:
    rows = table("method")
    stated = {"not stated": {}, "true": {"weight_only": True}, "false": {"weight_only": False}}
    for row in rows:
        config = UnifiedQuantizationConfig.model_validate(
            {"method": row["method"], **stated[row["weight_only"]]}
        )
        assert {name: row[name] for name in BACKEND_NAMES} == {
            name: cell(config, name) for name in BACKEND_NAMES
        }, (row["method"], row["weight_only"])
    # `none` with quantized activations contradicts itself and has no row.
    forms = {(row["method"], row["weight_only"]) for row in rows}
    quantized = {(method, form) for method in ("int8", "int4", "fp8") for form in stated}
    assert forms == {("none", "not stated"), *quantized}


def test_the_kernels_of_each_gpu() -> None:
    rows = table("GPU")
    assert len(rows) >= 6
    for row in rows:
        gpu = load_registry().variants(row["GPU"])[0]
        forms = {"fp8, weight_only true": {"method": "fp8", "weight_only": True}}
        for heading, expected in row.items():
            if heading != "GPU":
                config = UnifiedQuantizationConfig.model_validate(
                    forms.get(heading, {"method": heading})
                )
                assert cell(config, "vllm", gpu=gpu) == expected, (row["GPU"], heading)


STORED: dict[str, dict[str, object] | None] = {
    "16 bits": None,
    "GPTQ": {"quant_method": "gptq", "bits": 4},
    "AWQ": {"quant_method": "awq", "bits": 4},
    "fp8": {"quant_method": "fp8"},
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True},
}


def test_auto_for_every_stored_format(tmp_path: Path) -> None:
    rows = table("stored as")
    assert {row["stored as"] for row in rows} == set(STORED)
    for row in rows:
        quantization = STORED[row["stored as"]]
        config = {"model_type": "llama"} | (
            {"quantization_config": quantization} if quantization else {}
        )
        (tmp_path / "config.json").write_text(json.dumps(config))
        auto = UnifiedQuantizationConfig(method="auto")
        assert {name: row[name] for name in BACKEND_NAMES} == {
            name: cell(auto, name, model=tmp_path) for name in BACKEND_NAMES
        }, row["stored as"]


@pytest.mark.parametrize("backend", BACKEND_NAMES)
def test_each_backend_has_a_column_and_methods(backend: Backend) -> None:
    assert backend in table("method")[0]
    assert BACKEND_METHODS[backend]
