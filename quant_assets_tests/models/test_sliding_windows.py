"""Windows and patterns that files leave to the runtime."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from quant_assets.models.sliding_windows import (
    GGUF_PERIODS,
    gguf_sliding_window,
    hf_sliding_window,
)
from quant_assets_tests.models.sliding_layers_probe import WINDOW


def test_patterns_are_those_of_llama_cpp() -> None:
    layers = dict.fromkeys((*GGUF_PERIODS, "phi3", "llama", "qwen2", "mistral3"), 10)
    layers["exaone4"] = 64
    del layers["deepseek4"]  # the loader checks its experts and compression first
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("sliding_layers_probe.py"))],
        input=json.dumps(layers),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    ours = {
        name: "".join(
            "L" if slides else "G"
            for slides in gguf_sliding_window(name, WINDOW, None, n_layers).layers
        )
        for name, n_layers in layers.items()
    }
    assert json.loads(done.stdout) == ours


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("gemma2", "LGLGLGLG"),
        ("gemma3", "LLLLLGLL"),
        ("gemma3n", "LLLLGLLL"),
        ("cohere2", "LLLGLLLG"),
        ("cohere2moe", "GLLLGLLL"),
        ("gpt-oss", "LGLGLGLG"),
        ("olmo2", "LLLGLLLG"),
        ("plamo3", "LLLLLLLG"),
        ("smallthinker", "GLLLGLLL"),
        ("lfm2", "LLLLLLLL"),
        ("llama", "GGGGGGGG"),
        ("qwen2", "GGGGGGGG"),
    ],
)
def test_patterns_of_gguf_architectures(architecture: str, expected: str) -> None:
    window = gguf_sliding_window(architecture, 1024, None, 8)
    assert "".join("L" if slides else "G" for slides in window.layers) == expected


@pytest.mark.parametrize(
    ("architecture", "declared", "pattern", "n_layers", "expected"),
    [
        ("gemma2", None, None, 4, (4096, 2)),  # Gemma 2 has a default
        ("gemma3", None, None, 6, (None, 0)),  # Gemma 3 has none
        ("gemma3", 0, None, 6, (None, 0)),
        ("gemma3", 512, 3, 6, (512, 4)),  # the file's own pattern wins
        ("gemma3", 512, (True, False, True), 3, (512, 2)),
        ("gemma3", 512, (True,), 3, (512, 1)),
        ("llama4", 4096, None, 8, (8192, 6)),  # chunks of a fixed size
        ("llama4", None, None, 8, (8192, 6)),
        ("llama4", 0, None, 8, (None, 0)),
        ("exaone4", 4096, None, 64, (4096, 48)),
        ("exaone4", 4096, None, 30, (None, 0)),  # only the model with 64 layers slides
        ("phi3", 2047, None, 32, (None, 0)),  # llama.cpp disregards it
        ("mistral3", 4096, None, 4, (4096, 0)),
        ("gemma3", "many", None, 6, (None, 0)),
        ("gemma3", True, None, 6, (None, 0)),
    ],
)
def test_windows_of_gguf_files(
    architecture: str,
    declared: object,
    pattern: object,
    n_layers: int,
    expected: tuple[int | None, int],
) -> None:
    window = gguf_sliding_window(architecture, declared, pattern, n_layers)
    assert (window.tokens, sum(window.layers)) == expected
    assert len(window.layers) == n_layers


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"model_type": "gemma3_text", "sliding_window": 1024}, (1024, "LLLLLGLL")),
        (
            {"model_type": "gemma3_text", "sliding_window": 512, "sliding_window_pattern": 2},
            (512, "LGLGLGLG"),
        ),
        ({"model_type": "gemma3_text"}, (4096, "LLLLLGLL")),
        ({"model_type": "gemma3_text", "sliding_window": None}, (None, "GGGGGGGG")),
        ({"model_type": "gemma2", "sliding_window": 4096}, (4096, "LGLGLGLG")),
        ({"model_type": "gpt_oss"}, (128, "LGLGLGLG")),
        ({"model_type": "cohere2", "sliding_window": 4096}, (4096, "LLLGLLLG")),
        (
            {"model_type": "exaone4", "sliding_window": 64, "sliding_window_pattern": "LLG"},
            (64, "LLGLLGLL"),
        ),
        ({"model_type": "mistral", "sliding_window": 4096}, (4096, "GGGGGGGG")),
        (
            {
                "model_type": "qwen2",
                "use_sliding_window": True,
                "sliding_window": 64,
                "max_window_layers": 6,
            },
            (64, "GGGGGGLL"),
        ),
        (
            {"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 64},
            (None, "GGGGGGGG"),
        ),
        ({"model_type": "gemma2", "sliding_window": -1}, (None, "GGGGGGGG")),
        (
            {
                "model_type": "llama4_text",
                "attention_chunk_size": 8192,
                "layer_types": ["chunked_attention"] * 7 + ["full_attention"],
            },
            (8192, "LLLLLLLG"),
        ),
    ],
)
def test_windows_of_configurations(
    fields: dict[str, Any], expected: tuple[int | None, str]
) -> None:
    window = hf_sliding_window(fields, 8)
    layers = "".join("L" if slides else "G" for slides in window.layers)
    assert (window.tokens, layers) == expected
