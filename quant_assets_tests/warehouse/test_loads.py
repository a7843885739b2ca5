"""Loading records and artifacts into the raw tables."""

import datetime
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quant_assets.artifacts.job import JobSpec
from quant_assets.artifacts.manifest import ArtifactFile, ArtifactManifest
from quant_assets.artifacts.store import ArtifactStore
from quant_assets.bench.jobs import QualityMeasurement, WindowSums
from quant_assets.bench.kv_cache import KvCacheResult
from quant_assets.bench.obedience.measurement import ObedienceResult, Transcript
from quant_assets.bench.quality import QualityResult, QualityStore
from quant_assets.bench.results import ResultStore
from quant_assets.bench.variants import Variant
from quant_assets.gpus.registry import load_registry
from quant_assets.models.identity import sha256_of
from quant_assets.speed.needs import ServingGrid
from quant_assets.warehouse.connection import Warehouse
from quant_assets.warehouse.loads.artifacts import load_serving_needs
from quant_assets.warehouse.loads.measurements import (
    load_benchmarks,
    load_kv_cache_quality,
    load_variant_quality,
)
from quant_assets.warehouse.loads.placements import load_placements

MEASURED_AT = datetime.datetime(2026, 5, 4, tzinfo=datetime.UTC)
WEIGHTS = 134_515_008
"""Parameters of SmolLM2-135M, whose output head shares the embeddings."""
BITS = 5.0
VARIANTS = {
    "q4": Variant(name="q4", format="gguf", level="Q4_1"),
    "q4-q8-cache": Variant(
        name="q4-q8-cache", format="gguf", level="Q4_1", cache_type_k="q8_0", cache_type_v="q8_0"
    ),
    "not-made": Variant(name="not-made", format="gguf", level="Q8_0"),
}


@pytest.fixture
def warehouse(tmp_path: Path) -> Warehouse:
    return Warehouse(tmp_path / "w.duckdb")


@pytest.mark.parametrize(
    ("driver_name", "card"),
    [
        ("NVIDIA H100 80GB HBM3", "H100 SXM5 80GB"),
        ("NVIDIA H200", "H200 SXM 141GB"),
        ("NVIDIA A100-SXM4-80GB", "A100 SXM4 80GB"),
        ("NVIDIA GeForce RTX 4090", "GeForce RTX 4090"),
        ("NVIDIA GeForce RTX 3060", None),  # sold with 8 and with 12 GB
        ("something new", None),
        (None, None),
    ],
)
def test_the_drivers_gpu_name_is_mapped_to_the_registrys_card(
    tmp_path: Path,
    warehouse: Warehouse,
    new_record: Callable[..., Any],
    driver_name: str | None,
    card: str | None,
):
    record, samples = new_record()
    metadata = record.metadata.model_copy(update={"gpu_name": driver_name})
    results = ResultStore(tmp_path / "results")
    results.append(record.model_copy(update={"metadata": metadata}), samples)
    with warehouse.write() as connection:
        for _ in range(2):  # loading again replaces
            assert load_benchmarks(connection, results) == 1
    with warehouse.read() as connection:
        assert connection.execute("select gpu_name, gpu from raw.benchmark_runs").fetchall() == [
            (driver_name, card)
        ]


def test_old_records_and_old_tables_get_the_specified_names(
    tmp_path: Path, warehouse: Warehouse, new_record: Callable[..., Any]
):
    columns = ("p50", "p95", "peak_rss", "token_throughput", "command_duration_ms")
    results = ResultStore(tmp_path / "results")
    results.append(*new_record([10.0, 12.0]))
    (file,) = results.files()
    (element,) = json.loads(file.read_text())
    file.write_text(json.dumps([{key: element[key] for key in element if key not in columns}]))
    with warehouse.write() as connection:
        load_benchmarks(connection, results)
        for column in columns:  # as in a warehouse from before them
            connection.execute(f"alter table raw.benchmark_runs drop column {column}").fetchall()
    with warehouse.write() as connection:
        assert load_benchmarks(connection, results) == 1
    with warehouse.read() as connection:
        rows = connection.execute(
            f"select {', '.join(columns)}, p50_ms, p95_ms, peak_rss_bytes, decode_tokens_per_s "
            "from raw.benchmark_runs"
        ).fetchall()
    (row,) = rows
    assert row[:4] == row[5:] and row[0] == 11.0 and row[4] is None


def test_needs_cover_the_grid_and_every_measured_length(
    tmp_path: Path, warehouse: Warehouse, new_record: Callable[..., Any], smollm2: Path
):
    store = ArtifactStore(tmp_path / "artifacts")
    _store_artifact(store, smollm2)
    results = ResultStore(tmp_path / "results")
    results.append(*new_record(model="tiny", variant="q4", batch_size=3))  # 8 + 4 tokens
    grid = ServingGrid(contexts=(1024, 1_000_000), batches=(1, 2))
    with warehouse.write() as connection:
        # Two contexts (the second capped at the model's own) x two batches, and one run.
        assert load_serving_needs(connection, store, VARIANTS, results, grid) == 2 * 4 + 1
    with warehouse.read() as connection:
        rows = connection.execute(
            "select variant, source, context_tokens, batch_size, weights_bytes, kv_cache_bytes "
            "from raw.serving_needs order by all"
        ).fetchall()
    layers, kv_heads, head = 30, 3, 64
    token = 2 * layers * kv_heads * head  # elements of K and V
    f16, q8_0 = 2.0, 34 / 32
    weights = round(BITS * WEIGHTS / 8)
    expected: list[tuple[Any, ...]] = [
        (name, "grid", context, batch, weights, int(context * batch * token * size))
        for name, size in (("q4", f16), ("q4-q8-cache", q8_0))
        for context in (1024, 8192)
        for batch in (1, 2)
    ]
    in_grid = [row for row in rows if row[1] == "grid"]
    assert in_grid == expected
    (run,) = [row for row in rows if row[1] == "run"]
    assert run[0] == "q4" and run[3] == 3 and run[2] >= 12


def test_placements_cover_every_gpu_at_every_point(
    tmp_path: Path, warehouse: Warehouse, smollm2: Path
):
    store = ArtifactStore(tmp_path / "artifacts")
    _store_artifact(store, smollm2)
    grid, registry = ServingGrid(contexts=(1024, 8192), batches=(1, 256)), load_registry()
    with warehouse.write() as connection:
        load_serving_needs(connection, store, VARIANTS, ResultStore(tmp_path / "results"), grid)
        assert load_placements(connection, store, VARIANTS, registry) == 8 * len(registry.all)
    with warehouse.read() as connection:
        rows = connection.execute(
            "select variant, gpus_per_copy, copies_per_gpu, gpus_per_card, fullest_gpu_bytes, "
            "transfer_s from raw.placements "
            "where gpu = 'Tesla K80' and context_tokens = 8192 and batch_size = 256 order by 1"
        ).fetchall()
    # 256 sequences of 8192 tokens x 23,040 bytes in F16 are 48 GB, over GPUs of 12 GB.
    (f16, q8) = rows
    assert f16[:4] == ("q4", 5, 0, 2) and q8[:4] == ("q4-q8-cache", 3, 0, 2)
    assert 48e9 / 5 < f16[4] < 12 * 2**30 - 1e9
    assert f16[5] == pytest.approx(2 * q8[5])  # four transfers in place of two


def test_quality_and_obedience_come_from_their_files(tmp_path: Path, warehouse: Warehouse):
    results = tmp_path / "results"
    store = QualityStore(results, tmp_path / "cache")
    variant = Variant(name="q8", format="gguf", level="Q8_0")
    measurement = QualityMeasurement(
        perplexity=20.2, perplexity_standard_error=0.3, scored_tokens=7650, windows=30, context=512,
        baseline_perplexity=20.0, perplexity_ratio=1.01, kl_divergence=0.002, top1_agreement=0.97,
        seconds=9,
    )  # fmt: skip
    quality = QualityResult(
        variant="q8", model="m", artifact_id="a", baseline_artifact_id="b", text="topics",
        text_sha256="0", timestamp=MEASURED_AT, measurement=measurement,
    )  # fmt: skip
    store.save(variant, "key", quality)
    passed = Transcript(id="1", category="c", prompt="p", answer="x", failure=None)
    obedience = ObedienceResult(
        variant="q8", model="m", artifact_id="a", timestamp=MEASURED_AT, pass_rate=0.5,
        pass_rate_by_category={"c": 0.5},
        transcripts=[passed, passed.model_copy(update={"failure": "it is not x"})],
    )  # fmt: skip
    (results / "obedience").mkdir()
    (results / "obedience" / "q8_key.json").write_text(obedience.model_dump_json())
    with warehouse.write() as connection:
        assert load_variant_quality(connection, store, results) == 2
    with warehouse.read() as connection:
        rows = connection.execute(
            "select kind, perplexity_ratio, top1_agreement, obedience_prompts, obedience_pass_rate "
            "from raw.variant_quality order by kind"
        ).fetchall()
    assert rows == [("obedience", None, None, 2, 0.5), ("perplexity", 1.01, 0.97, None, None)]


def test_kv_caches_have_a_row_per_context_with_intervals(tmp_path: Path, warehouse: Warehouse):
    base = [20.0, 22.0, 24.0]
    contexts = [
        QualityMeasurement(
            perplexity=12.0, perplexity_standard_error=0.3, scored_tokens=30, windows=3,
            context=context, baseline_perplexity=11.0, perplexity_ratio=1.05, kl_divergence=0.02,
            window_sums=WindowSums(
                nll=[nll + 10 * lost for nll in base], baseline_nll=base,
                kl_divergence=[0.1, 0.2, 0.3],
            ),
            seconds=9,
        )
        for context, lost in ((512, 0.01), (2048, 0.05))
    ]  # fmt: skip
    result = KvCacheResult(
        variant="q4-q8-cache", model="m", artifact_id="a", cache_type_k="q8_0", cache_type_v="q8_0",
        text="topics", text_sha256="0", timestamp=MEASURED_AT, contexts=contexts,
    )  # fmt: skip
    folder = tmp_path / "results" / "kv_cache_quality"
    folder.mkdir(parents=True)
    (folder / "whole.json").write_text(result.model_dump_json())
    (folder / "damaged.json").write_text(result.model_dump_json()[:-9])
    with warehouse.write() as connection:
        assert load_kv_cache_quality(connection, tmp_path / "results") == 2
    with warehouse.read() as connection:
        rows = connection.execute(
            "select context_tokens, cache_type_k, f16_cache_perplexity, perplexity_ratio_low, "
            "perplexity_ratio_high, kl_divergence_low < 0.02, kl_divergence_high > 0.02 "
            "from raw.kv_cache_quality order by all"
        ).fetchall()
    assert rows == [
        (context, "q8_0", 11.0, *(pytest.approx(math.exp(lost)),) * 2, True, True)
        for context, lost in ((512, 0.01), (2048, 0.05))
    ]


def _store_artifact(store: ArtifactStore, gguf: Path) -> None:
    job = JobSpec(
        model_name="tiny", source_identity="s", target_format="gguf", level="Q4_1",
        library_versions={},
    )  # fmt: skip
    with store.staging(job.job_id) as folder:
        os.link(gguf, folder / "m.gguf")
        file = ArtifactFile(name="m.gguf", size_bytes=gguf.stat().st_size, sha256=sha256_of(gguf))
        manifest = ArtifactManifest(
            job=job, job_id=job.job_id, status="valid", source_provenance="a package",
            files=[file], n_parameters=WEIGHTS, bits_per_weight=BITS, tensor_types={}, engine={},
            validation={}, seconds=1.0,
            created_at=datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
        )  # fmt: skip
        store.commit(folder, manifest)
