"""Tables of measured speeds: rows read, rows left out, GPUs found."""

import csv
from collections.abc import Mapping
from pathlib import Path

import pytest

from quant_assets.errors import InputError
from quant_assets.gpus.registry import Gpu, load_registry
from quant_assets.speed.runs import (
    MAX_FILE_BYTES,
    LeftOut,
    SpeedRun,
    gpu_of_run,
    read_runs,
)

MINIMAL: Mapping[str, object] = {
    "gpu": "GeForce RTX 4090", "engine": "llama.cpp", "model": "Llama 3 8B", "level": "Q4_K_M",
    "test": "decode", "tokens_per_s": 120,
}  # fmt: skip


def write(path: Path, *rows: Mapping[str, object]) -> Path:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return path


def run(**fields: object) -> SpeedRun:
    return SpeedRun.model_validate({"row_id": "r", **MINIMAL, **fields})


def test_required_columns_suffice(tmp_path: Path) -> None:
    found = read_runs([write(tmp_path / "runs.csv", MINIMAL)])
    (only,) = found.runs
    assert found.left_out == ()
    assert (only.row_id, only.batch, only.gpu_count, only.measure) == (
        "runs.csv:2", 1, 1, "single_test",
    )  # fmt: skip


def test_all_columns(tmp_path: Path) -> None:
    row = MINIMAL | {
        "row_id": "r1", "gpu_backend": "ROCm", "flash_attention": "unknown", "test": "pp",
        "suspect": "gpu_inferred;throttled", "kv_type": "q8_0/q4_0", "size_gib": "4.58",
        "a column of theirs": "x", "note": "  two\nlines  ",
    }  # fmt: skip
    (only,) = read_runs([write(tmp_path / "runs.csv", row)]).runs
    assert (only.gpu_backend, only.flash_attention, only.test) == ("HIP", None, "prefill")
    assert only.suspect == ("gpu_inferred", "throttled")
    assert only.size_gib == 4.58


@pytest.mark.parametrize(
    "wrong",
    [
        {"tokens_per_s": "nan"},
        {"tokens_per_s": "inf"},
        {"tokens_per_s": "-3"},
        {"tokens_per_s": "0"},
        {"tokens_per_s": "=1+1"},
        {"tokens_per_s": "1e999"},
        {"tokens_per_s": ""},
        {"gpu": ""},
        {"gpu": "x" * 10_000},
        {"batch": "0"},
        {"batch": "1.5"},
        {"batch": "9" * 5000},
        {"test": "training"},
        {"gpu_backend": "abacus"},
        {"measure": "guess"},
        {"depth_tokens": "-1"},
        {"size_gib": "nan"},
        {"params_b": "1e30"},
    ],
)
def test_an_invalid_row_is_left_out_alone(tmp_path: Path, wrong: Mapping[str, str]) -> None:
    found = read_runs([write(tmp_path / "runs.csv", MINIMAL | wrong, MINIMAL)])
    assert len(found.runs) == 1
    (left_out,) = found.left_out
    assert (left_out.row_id, left_out.reason) == ("runs.csv:2", "invalid_row")
    assert left_out.detail.startswith(next(iter(wrong)))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"gpu,engine\nA100,llama.cpp\n", "no column model"),
        (b"", "no column gpu"),
        (b"\xff\xfe\x00g", "UTF-8"),
        (b"gpu,engine,model,level,test,tokens_per_s\n" + b'"' + b"x" * 200_000, "field larger"),
    ],
)
def test_an_unusable_file_is_refused(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "runs.csv"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_runs([path])
    assert why in error.value.why


def test_a_huge_or_missing_file_is_refused(tmp_path: Path) -> None:
    huge = tmp_path / "huge.csv"
    with huge.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    for path in (huge, tmp_path / "none.csv", tmp_path):
        with pytest.raises(InputError):
            read_runs([path])


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"gpu": "NVIDIA A100-SXM4-80GB"}, "A100 SXM4 80GB"),
        ({"gpu": "A100", "bandwidth_gb_s": 1555}, "A100 PCIe 40GB"),
        ({"gpu": "Apple M2 Ultra (76-core GPU)"}, "M2 Ultra 192GB"),
        ({"gpu": "M1 Max 64GB", "gpu_variant": "24-core GPU"}, "M1 Max 24-core GPU 64GB"),
        ({"gpu": "M1 Max", "gpu_variant": "24-core GPU"}, "M1 Max 24-core GPU 64GB"),
        ({"gpu": "M1 Max (24-core GPU), 32 GB"}, "M1 Max 24-core GPU 32GB"),
        ({"gpu": "RTX 3060 12GB"}, "GeForce RTX 3060 12GB"),
        ({"gpu": "M4 Max", "bandwidth_gb_s": 410}, "M4 Max 36GB"),
    ],
)
def test_gpus_are_found(fields: Mapping[str, object], name: str) -> None:
    gpu = gpu_of_run(run(**fields), load_registry())
    assert isinstance(gpu, Gpu), gpu
    assert gpu.canonical_name == name


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"gpu": "A100"}, "ambiguous_gpu"),
        ({"gpu": "M4 Max"}, "ambiguous_gpu"),
        ({"gpu": "RTX 3070 Mobile refit", "gpu_group": "GeForce RTX 3070"}, "unknown_gpu"),
        ({"gpu": "RTX 4090 (modified)", "gpu_group": "RTX 4090"}, "unknown_gpu"),
        ({"gpu": "=HYPERLINK(1)"}, "unknown_gpu"),
        ({"gpu": "[bold]x[/bold]"}, "unknown_gpu"),
    ],
)
def test_other_gpus_are_left_out(fields: Mapping[str, object], reason: str) -> None:
    found = gpu_of_run(run(**fields), load_registry())
    assert isinstance(found, LeftOut)
    assert found.reason == reason
