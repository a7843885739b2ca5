"""Benchmark records made from given run times, without a model."""

import datetime
from collections.abc import Callable
from typing import Any

import pytest

from quant_assets.bench.jobs import CellMeasurement, RunSample
from quant_assets.bench.record import BenchmarkRecord, RecordOrigin, make_record
from quant_assets.bench.settings import BenchSettings
from quant_assets.bench.variants import Variant
from quant_assets.host.conditions import host_conditions


@pytest.fixture(scope="session")
def q4_variant() -> Variant:
    return Variant(name="q4", format="gguf", level="Q4_1")


def sample(total_ms: float, first_ms: float = 4.0, steps: int = 4) -> RunSample:
    step = (total_ms - first_ms) / steps
    return RunSample(time_to_first_token_ms=first_ms, token_ms=[step] * steps, total_ms=total_ms)


def measurement(totals: list[float], **fields: Any) -> CellMeasurement:
    conditions = host_conditions(
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
        machine: dict[str, Any] | None = None,
        **fields: Any,
    ) -> tuple[BenchmarkRecord, list[RunSample]]:
        measured = measurement(totals or [10.0] * 20)
        origin = RecordOrigin(
            model_name=model,
            variant_name=variant,
            variant=q4_variant,
            artifact_id=artifact_id,
            backend="llamacpp",
            threads=2,
        )
        record = make_record(
            measured,
            origin,
            settings or BenchSettings(prompt_tokens=8, generated_tokens=4),
            batch_size,
        )
        update = {"timestamp": timestamp} if timestamp is not None else {}
        metadata = record.metadata.model_copy(update={**update, **(machine or {})})
        record = record.model_copy(update={"metadata": metadata})
        return record.model_copy(update=fields), measured.samples

    return make
