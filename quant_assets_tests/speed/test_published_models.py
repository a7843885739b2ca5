"""Shapes of published models: their arithmetic, and the names that find them."""

import pytest

from quant_assets.capacity.memory import Serving
from quant_assets.speed.needs import attention_flops, kv_read_bytes
from quant_assets.speed.published_models import (
    PublishedModel,
    find_published_model,
    published_models,
    size_in_name,
)

MODELS = list(published_models().values())


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_parameters_equal_the_published_count(model: PublishedModel) -> None:
    assert model.n_parameters / 1e9 == pytest.approx(model.parameters_b, rel=0.01)


@pytest.mark.parametrize(
    "model", [model for model in MODELS if model.active_b], ids=lambda model: model.name
)
def test_active_parameters_equal_the_published_count(model: PublishedModel) -> None:
    """Makers count the input embedding or leave it out, and round."""
    assert model.active_b is not None
    low = model.active_parameters
    high = low + (0 if model.tied_embeddings else model.embedding_parameters)
    assert low * 0.93 <= model.active_b * 1e9 <= high * 1.06


@pytest.mark.parametrize(
    ("name", "active_b"),
    [("DeepSeek V3 671B", 37), ("Qwen3 30B-A3B", 3.3), ("gpt-oss 120B", 5.1)],
)
def test_well_known_mixtures(name: str, active_b: float) -> None:
    model = published_models()[name]
    counted = model.active_parameters + (
        0 if name.startswith("gpt") else model.embedding_parameters
    )
    assert counted / 1e9 == pytest.approx(active_b, rel=0.02)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("Llama 3.1 8B (Nemotron Nano 8B v1)", "Llama 3 8B"),
        ("meta-llama/Meta-Llama-3-8B-Instruct-GGUF", "Llama 3 8B"),
        ("Qwen Qwen3.5-27B", "Qwen3.5 27B"),
        ("DeepSeek-R1-Distill-Qwen-1.5B", "Qwen2.5 1.5B"),
        ("DeepSeek-R1-0528-Qwen3-8B", "Qwen3 8B"),
        ("DeepSeek-R1-0528", "DeepSeek V3 671B"),
        ("Qwen3-Coder-30B-A3B-Instruct", "Qwen3 30B-A3B"),
        ("Phi-3-mini-4k-instruct", "Phi-3 mini 3.8B"),
        ("Phi-4-mini-instruct", "Phi-4 mini 3.8B"),
        ("Falcon3-7B-Instruct", "Falcon3 7B"),
        ("falcon-7b", "Falcon 7B"),
        ("Llama2-7b-chat", "Llama 1 7B"),
        ("gemma-3-27b-it", "Gemma 3 27B"),
        ("Qwopus3.5-27B-v3", "Qwen3.5 27B"),
        ("DeepSeek-V4-Flash", None),
        ("Llama-3.3-Nemotron-Super-49B-v1", None),
        ("a model", None),
        ("", None),
    ],
)
def test_names_find_their_model(name: str, found: str | None) -> None:
    model = find_published_model(name)
    assert (model.name if model else None) == found


def test_a_stated_size_rules_out_another_model() -> None:
    assert find_published_model("Llama 3 8B", 8.03) is not None
    assert find_published_model("Llama 3 8B", 70.0) is None


def test_size_in_name() -> None:
    assert size_in_name("granite-9.1-8b-instruct") == 8e9
    assert size_in_name("Some-135M") == 135e6
    assert size_in_name("phi") is None


def test_sliding_and_global_layers_read_what_their_caches_hold() -> None:
    """Gemma 4 31B: 50 layers of 16 heads of 256 see 1024 tokens, 10 of 4 heads of 512 see all."""
    shape = published_models()["Gemma 4 31B"].shape
    expected = 2 * 2 * (50 * 1024 * 16 * 256 + 10 * 32768 * 4 * 512)
    assert kv_read_bytes(shape, Serving(), 32768) == expected


def test_latent_attention_reads_one_row_per_token() -> None:
    shape = published_models()["DeepSeek V3 671B"].shape
    assert kv_read_bytes(shape, Serving(), 1000) == 61 * 1000 * 576 * 2


def test_attention_computes_with_the_heads_of_each_layer() -> None:
    """Gemma 4 31B: 32 query heads, of 256 numbers in 50 sliding layers and of 512 in 10."""
    shape = published_models()["Gemma 4 31B"].shape
    expected = 2 * 32 * (50 * 1024 * 2 * 256 + 10 * 32768 * 2 * 512)
    assert attention_flops(shape, 32768) == expected
