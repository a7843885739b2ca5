"""Which published runs are predicted, in which table, and why the others are not."""

from pathlib import Path

import pytest

from quant_assets.gpus.registry import load_registry
from quant_assets.settings import PROJECT_ROOT
from quant_assets.speed.runs import RunFile, SpeedRun, read_runs
from quant_assets.speed.selection import Selection, select_runs
from quant_assets_tests.speed.test_runs import MINIMAL

PUBLISHED = PROJECT_ROOT / "data" / "published_speeds.csv"
PERMISSIVE = (
    "ggml-org/llama.cpp", "ikawrakow/ik_llama.cpp", "AlexsJones/llmfit",
    "geerlingguy/ai-benchmarks", "sudoingX/qwen38-mtp", "AUGMXNT/speed-benchmarking",
)  # fmt: skip


def select(**fields: object) -> Selection:
    run = SpeedRun.model_validate({"row_id": "r", **MINIMAL, **fields})
    return select_runs(RunFile((run,), ()), load_registry())


@pytest.mark.parametrize(
    ("fields", "table"),
    [
        ({}, "dense"),
        ({"engine": "llamafile (LocalScore)", "measure": "workload_mean"}, "dense"),
        ({"model": "gpt-oss 20B", "level": "MXFP4"}, "mixtures_of_experts"),
        ({"gpu_count": 2}, "several_gpus"),
        ({"gpu_count": 4, "model": "Llama 3 70B", "split": "layer"}, "several_gpus"),
        ({"engine": "ik_llama.cpp"}, "other_engines"),
        ({"engine": "vLLM", "level": "awq-4bit-g128"}, "other_engines"),
        ({"suspect": "variant_not_stated;gpu_inferred"}, "dense"),
        ({"measure": "community"}, "dense"),
    ],
)
def test_tables(fields: dict[str, object], table: str) -> None:
    selection = select(**fields)
    assert selection.left_out == ()
    assert selection.selected[0].table == table
    assert len(selection.fitted) == (table != "several_gpus")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"suspect": "throttled;variant_not_stated"}, "suspect"),
        ({"suspect": "a new doubt"}, "suspect"),
        ({"measure": "weak_host"}, "measure"),
        ({"measure": "incl_prefill"}, "measure"),
        ({"measure": "ubatch_1"}, "measure"),
        ({"gpu": "Abacus"}, "unknown_gpu"),
        ({"gpu_count": 2, "split": "tensor"}, "tensor_split"),
        ({"gpu_count": 2, "note": "Baseline column, tensor parallel"}, "tensor_split"),
        ({"gpu_count": 2, "engine": "vllm", "level": "F16"}, "tensor_split"),
        ({"model": "Llama 3 70B"}, "exceeds_memory"),
        ({"model": "Llama 3 8B", "depth_tokens": 500_000}, "exceeds_memory"),
        ({"level": "unstated"}, "unknown_level"),
    ],
)
def test_rows_left_out(fields: dict[str, object], reason: str) -> None:
    selection = select(**fields)
    assert selection.selected == ()
    assert [item.reason for item in selection.left_out] == [reason]


def test_rows_that_were_invalid_stay_left_out(tmp_path: Path) -> None:
    file = tmp_path / "runs.csv"
    file.write_text(
        "gpu,engine,model,level,test,tokens_per_s\nL4,llama.cpp,Llama 3 8B,Q4_0,pp,nan\n"
    )
    selection = select_runs(read_runs([file]), load_registry())
    assert [item.reason for item in selection.left_out] == ["invalid_row"]


def test_every_published_row_is_used_and_names_a_permissive_source() -> None:
    selection = select_runs(read_runs([PUBLISHED]), load_registry())
    assert selection.left_out == ()
    assert len(selection.selected) > 600
    assert len({item.gpu.canonical_name for item in selection.fitted}) >= 25
    for item in selection.selected:
        source = (item.run.source_url or "").removeprefix("https://github.com/")
        assert source.startswith(PERMISSIVE), item.run.row_id
        assert item.run.source_date, item.run.row_id
        assert item.work.model or "Qwen3.8" in item.run.model, item.run.row_id


def test_noisier_runs_weigh_less_in_a_fit() -> None:
    def weight(**fields: object) -> float:
        return select(**fields).selected[0].observation.weight

    assert weight() == 1
    assert weight(measure="community") == 0.6
    assert weight(measure="workload_mean") == 0.35
    assert weight(model="gpt-oss 20B", level="MXFP4") == 0.5
    assert weight(engine="ik_llama.cpp", measure="community") == 0.3


def test_a_source_is_its_address() -> None:
    (item,) = select(source_url="https://example.org/runs.md#table (row 3)").selected
    assert item.source == "https://example.org/runs.md"
    assert select().selected[0].source is None
