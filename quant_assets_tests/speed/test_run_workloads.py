"""The workload of a published run: bytes, parameters, types and dates."""

import pytest

from quant_assets.gpus.registry import load_registry
from quant_assets.speed.run_workloads import RunWorkload, engine_name, engine_year, workload_of
from quant_assets.speed.runs import LeftOut, SpeedRun

GIB = 2**30


def run(**fields: object) -> SpeedRun:
    return SpeedRun.model_validate(
        {
            "row_id": "r",
            "gpu": "GeForce RTX 4090",
            "engine": "llama.cpp",
            "level": "Q4_K_M",
            "model": "Llama 3 8B",
            "test": "decode",
            "tokens_per_s": 100,
            **fields,
        }
    )


def work(gpu: str = "GeForce RTX 4090", **fields: object) -> RunWorkload:
    found = workload_of(run(**fields), load_registry().by_name[gpu])
    assert isinstance(found, RunWorkload), found
    return found


def test_decoding_reads_all_but_the_input_embedding() -> None:
    """Llama 3 8B F16: 14.96 GiB, of which the embedding is 6.5 %."""
    found = work(level="F16", size_gib=14.96, generated_tokens=128)
    assert found.workload.weight_bytes == pytest.approx(14.96 * GIB * 0.9346, rel=1e-3)
    assert found.workload.parameters == 8_030_261_248 - 128_256 * 4096 - 65 * 4096
    assert found.workload.kv_bytes == 64 * 32 * 2 * 8 * 128 * 2
    assert not found.computed_size


def test_a_tied_embedding_is_read_as_the_head() -> None:
    found = work(model="Gemma 3 4B", level="BF16")
    assert found.workload.weight_bytes == pytest.approx(3.88e9 * 2, rel=0.002)


@pytest.mark.parametrize(
    ("model", "level", "gib"),
    [
        ("Llama 2 7B", "Q4_0", 3.56),
        ("Llama 3 8B", "Q4_K_M", 4.58),
        ("Llama 3 70B", "Q4_K_M", 39.59),
        ("Mistral 7B", "Q4_0", 3.83),
        ("Phi-2", "Q4_0", 1.49),
        ("gpt-oss 20B", "MXFP4", 11.27),
        ("gpt-oss 120B", "MXFP4", 59.02),
        ("Qwen3 30B-A3B", "Q8_0", 30.25),
        ("Gemma 4 31B", "Q4_K_M", 17.04),
    ],
)
def test_computed_sizes_equal_published_files(model: str, level: str, gib: float) -> None:
    found = work(model=model, level=level)
    assert found.computed_size
    assert found.file_bytes / GIB == pytest.approx(gib, rel=0.06)


def test_a_mixture_reads_the_experts_that_its_tokens_choose() -> None:
    one = work(model="Qwen3 30B-A3B", level="Q8_0", batch=1).workload
    two = work(model="Qwen3 30B-A3B", level="Q8_0", batch=2).workload
    many = work(model="Qwen3 30B-A3B", level="Q8_0", batch=4096).workload
    assert one.sparse
    assert one.weight_bytes / 1e9 == pytest.approx(3.04 * 8.5 / 8, rel=0.02)
    experts = 48 * 128 * 3 * 2048 * 768 * 8.5 / 8
    assert two.weight_bytes - one.weight_bytes == pytest.approx(experts / 16 * 15 / 16, rel=0.01)
    assert many.weight_bytes / 1e9 == pytest.approx(30.22 * 8.5 / 8, rel=0.02)
    assert many.parameters == one.parameters


def test_gpt_oss_keeps_its_experts_type_at_every_level() -> None:
    assert (
        work(model="gpt-oss 20B", level="Q4_K_M", size_gib=10.803).workload.weight_type == "MXFP4"
    )


def test_hybrids_read_the_cache_of_their_attention_layers() -> None:
    shallow = work(model="Qwen3.5 27B", mean_depth_tokens=0).workload
    deep = work(model="Qwen3.5 27B", mean_depth_tokens=1000).workload
    assert deep.kv_bytes - shallow.kv_bytes == 1000 * 16 * 2 * 4 * 256 * 2
    assert shallow.kv_bytes == 2 * 4 * 48 * 48 * 128 * 128


def test_a_draft_layer_in_the_file_is_not_read() -> None:
    plain = work(model="Qwen3.6 27B", level="Q8_0", size_gib=26.64, params_b=26.9)
    drafting = work(model="Qwen3.6 27B", level="Q8_0", size_gib=27.06, params_b=27.32)
    assert drafting.workload.weight_bytes == pytest.approx(plain.workload.weight_bytes, rel=0.003)


def test_a_size_that_contradicts_the_level_is_not_used() -> None:
    found = work(level="Q4_K_M", size_gib=14.96)
    assert found.computed_size
    assert found.file_bytes / GIB == pytest.approx(4.58, rel=0.01)


@pytest.mark.parametrize(
    ("level", "kind"),
    [
        ("q4_k_m", "Q4_K"),
        ("UD-Q4_K_XL", "Q4_K"),
        ("UD-Q8_K_XL", "Q8_0"),
        ("IQ2_M", "IQ2_S"),
        ("Q3_K_L", "Q3_K"),
        ("MXFP4", "MXFP4"),
        ("IQ4_KS", "IQ4_KS"),
        ("gptq-4bit-g128", "gptq-4bit"),
        ("gptq-4bit", "gptq-4bit"),
        ("awq-4bit-g128", "awq-4bit"),
        ("exl2-4.25bpw", "exl2-4bit"),
        ("nvfp4", "nvfp4"),
    ],
)
def test_levels_name_the_type_of_most_weights(level: str, kind: str) -> None:
    assert work(level=level).workload.weight_type == kind


def test_prefill() -> None:
    found = work(test="prefill", prompt_tokens=2048, depth_tokens=4096, ubatch=1024).workload
    assert (found.tokens, found.tokens_per_pass, found.kv_bytes) == (2048, 1024, 0)
    assert found.parameters == 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    assert found.attention_flops == 2048 * 4 * 32 * 32 * 128 * (4096 + 1024)


def test_a_quantized_cache_is_read_at_its_own_size() -> None:
    full = work(mean_depth_tokens=1000).workload.kv_bytes
    assert work(mean_depth_tokens=1000, kv_type="q8_0").workload.kv_bytes == full * 34 / 64
    mixed = work(mean_depth_tokens=1000, kv_type="f16/q4_0").workload.kv_bytes
    assert mixed == full / 2 + full / 2 * 18 / 64


def test_backend_and_flash_attention_by_default() -> None:
    assert work(gpu="M2 Ultra 192GB").workload.backend == "Metal"
    assert work(gpu_backend="Vulkan").workload.backend == "Vulkan"
    assert not work(source_date="2024-05").workload.flash_attention
    assert work(source_date="2026-05").workload.flash_attention
    assert not work(source_date="2026-05", flash_attention="no").workload.flash_attention


@pytest.mark.parametrize(
    ("fields", "year"),
    [
        ({"engine_build_or_date": "b2824 (4426e298)", "source_date": "2024-05"}, 2024.35),
        ({"engine_build_or_date": "b2824"}, 2024.35),
        ({"engine_build_or_date": "b741 (1fd6dfe)", "source_date": "2026-06"}, 2026.46),
        ({"source_date": "2025"}, 2025.5),
        ({"engine": "llamafile (LocalScore)", "source_date": "2025-03"}, 2024.6),
        ({"engine_build_or_date": "PR 10581 (2024-11)"}, 2024.88),
    ],
)
def test_engine_year(fields: dict[str, str], year: float) -> None:
    assert engine_year(run(**fields)) == pytest.approx(year, abs=0.01)
    assert engine_year(run()) is None


def test_engine_names() -> None:
    assert engine_name("llamafile (LocalScore)") == "llamafile"
    assert engine_name("ollama or llama.cpp") == "ollama"
    assert engine_name("ik_llama.cpp") == "ik_llama.cpp"
    assert engine_name("vLLM") == "vllm"


def test_a_dense_model_of_unknown_shape_takes_one_of_its_size() -> None:
    found = work(model="Unheard-of 9B", level="Q8_0")
    assert found.model is None
    assert found.file_bytes == pytest.approx(9e9 * 8.5 / 8, rel=0.01)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"level": "Q99"}, "unknown_level"),
        ({"model": "Unheard-of"}, "unknown_model"),
        ({"model": "Unheard-of 30B", "model_kind": "moe_or_sparse"}, "unknown_model"),
        ({"kv_type": "Q2_K"}, "invalid_row"),
    ],
)
def test_other_rows_are_left_out(fields: dict[str, str], reason: str) -> None:
    found = workload_of(run(**fields), load_registry().by_name["GeForce RTX 4090"])
    assert isinstance(found, LeftOut)
    assert found.reason == reason
