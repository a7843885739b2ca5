"""The whole graph, run by its jobs on a tiny model."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import dagster as dg
import duckdb
import psutil
import pytest

from quant_assets.artifacts.store import ArtifactStore
from quant_assets.automation.checks import build_checks
from quant_assets.bench.results import ResultStore
from quant_assets.capacity.device_memory import placement_settings
from quant_assets.resources.run_processes import end_dead_runs
from quant_assets.resources.stores import DataRoot
from quant_assets.warehouse.connection import Warehouse
from quant_assets.warehouse.rebuild import rebuild_raw_tables
from quant_assets_tests.installation import QUALITY, Installation, cell
from quant_assets_tests.process_trees import below, command_line, survivors


def query(installation: Installation, sql: str) -> list[tuple[object, ...]]:
    with Warehouse(installation.settings.warehouse).read() as connection:
        return connection.execute(sql).fetchall()


def latest(installation: Installation, *key: str, partition: str) -> dict[str, object]:
    """Metadata of a partition's newest materialization."""
    records = installation.instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=dg.AssetKey(list(key)), asset_partitions=[partition]), 1
    ).records
    assert records, f"{key} {partition} was never materialized"
    event = records[0].asset_materialization
    assert event is not None
    return {name: value.value for name, value in event.metadata.items()}


def test_every_artifact_exists_with_its_manifest(full_run: Installation):
    manifests = ArtifactStore(full_run.settings.artifacts).all()
    made = {(found.job.model_name, found.job.level) for found in manifests}
    assert made == {("tiny", "F16"), ("tiny", "Q8_0"), ("tiny", "Q4_0"), ("tiny-2", "F16")}
    assert all(found.validation["loaded"] for found in manifests)
    by_level = {found.job.level: found for found in manifests if found.job.model_name == "tiny"}
    assert by_level["F16"].size_bytes > by_level["Q8_0"].size_bytes > by_level["Q4_0"].size_bytes
    for level in ("F16", "Q8_0", "Q4_0"):
        metadata = latest(full_run, "tiny", "gguf_artifacts", partition=level)
        assert metadata["bits per weight"] == by_level[level].bits_per_weight


def test_a_finished_job_reuses_its_artifacts(full_run: Installation):
    store = ArtifactStore(full_run.settings.artifacts)
    before = {found.job_id: found.created_at for found in store.all()}
    result = full_run.run("tiny_artifacts", "F16", "Q4_0")
    assert result.success
    log = [entry.user_message for entry in full_run.instance.all_logs(result.run_id)]
    assert log
    assert not [line for line in log if "[pipes]" in line]
    assert {found.job_id: found.created_at for found in store.all()} == before
    assert latest(full_run, "tiny", "gguf_artifacts", partition="Q8_0")["reused"] is True


def test_every_cell_has_its_record_in_json_and_duckdb(full_run: Installation):
    assert full_run.first is not None
    records, rows, _ = full_run.first
    cells = {(r.metadata.model, r.metadata.variant, r.metadata.batch_size) for r in records}
    assert cells == {
        ("tiny", "f16", 1),
        ("tiny", "f16", 4),
        ("tiny", "q8_0-kv-hybrid", 4),
        ("tiny-2", "f16", 1),
    }
    assert {row[:3] for row in rows} == cells
    assert {row[3] for row in rows} == {record.p50_ms for record in records}
    metadata = latest(full_run, "tiny", "benchmark_results", partition=cell("f16", 4))
    # Another test may have measured the cell again.
    found = ResultStore(full_run.settings.results).find(model="tiny", variant="f16", batch_size=4)
    measured = found[-1]
    assert metadata["p50 (ms)"] == measured.p50_ms


def test_a_missing_artifact_skips_its_cells_with_a_reason(full_run: Installation):
    count = len(list(ResultStore(full_run.settings.results).records()))
    result = full_run.run("tiny_benchmarks", cell("q4_K_M", 1), cell("q4_K_M", 4))
    assert result.success
    assert len(list(ResultStore(full_run.settings.results).records())) == count
    observed = [
        event.asset_observation_data.asset_observation
        for event in result.all_events
        if event.event_type_value == "ASSET_OBSERVATION"
    ]
    assert {item.partition for item in observed} == {cell("q4_K_M", 1), cell("q4_K_M", 4)}
    for item in observed:
        assert "no gguf artifact of level Q4_K_M" in str(item.metadata["skipped"].value)
    never = full_run.instance.get_materialized_partitions(
        dg.AssetKey(["tiny", "benchmark_results"])
    )
    assert not {key for key in never if "q4_K_M" in key}


@pytest.mark.parametrize(
    ("job", "present", "missing"),
    [
        ("tiny_benchmarks", cell("f16", 1), cell("q4_K_M", 1)),
        ("tiny_quality", "f16", "q4_K_M"),
    ],
)
def test_a_missing_artifact_does_not_fail_the_run_of_the_others(
    full_run: Installation, job: str, present: str, missing: str
):
    config = {"run_config": QUALITY} if job == "tiny_quality" else {}
    result = full_run.run(job, present, missing, **config)
    assert result.success
    materialized = {
        event.partition
        for event in result.all_events
        if event.event_type_value == "ASSET_MATERIALIZATION"
    }
    assert present in materialized
    assert missing not in materialized


def test_rows_are_conserved_and_quarantined_with_reasons(full_run: Installation):
    assert query(full_run, "select count(*) from raw.raw_listings") == [(6,)]
    enriched = query(
        full_run,
        "select canonical_name, collapsed_duplicates from raw.enriched_listings order by 1",
    )
    assert enriched == [("H100 PCIe 80GB", 0), ("L4", 0), ("Tesla P40", 1)]
    quarantined = query(full_run, "select title, reason from raw.quarantined_listings")
    assert {title for title, _ in quarantined} == {"heat sink for A100", "quantum flux capacitor"}
    assert all(reason for _, reason in quarantined)


def test_capacity_and_cost_in_the_marts_can_be_recomputed(full_run: Installation):
    capacity = query(
        full_run,
        "select gpu, capacity_7b, capacity_13b, capacity_70b from marts.listing_capacity "
        "where vram_gb = 80",
    )
    assert capacity == [("H100 PCIe 80GB", 22, 12, 2)]
    options = query(
        full_run,
        "select gpu, gpu_memory_gb, price_usd, copy_gb, copies, usd_per_slot "
        "from marts.deployment_options where model = 'tiny' and variant = 'f16' and batch_size = 1 "
        "qualify context_tokens = min(context_tokens) over ()",
    )
    assert len(options) == 3
    reserve_gb = placement_settings().reserve_gb
    for _, memory_gb, price_usd, copy_gb, copies, usd_per_slot in options:
        assert copies == int(memory_gb / (copy_gb + reserve_gb))
        assert usd_per_slot == price_usd / copies
    assert full_run.first is not None
    assert full_run.first.variant_summary == [
        ("f16", 2, True, True),
        ("q8_0-kv-hybrid", 1, False, True),
    ]


def test_all_checks_pass(full_run: Installation):
    for job in ("refresh_listings", "tiny_artifacts", "tiny_benchmarks"):
        keys = {"tiny_artifacts": ("F16",), "tiny_benchmarks": (cell("f16", 1),)}.get(job, ())
        result = full_run.run(job, *keys)
        evaluations = result.get_asset_check_evaluations()
        assert evaluations, f"{job} ran no check"
        failed = [item.check_name for item in evaluations if not item.passed]
        assert not failed, f"{job}: {failed}"
        for speeds in (item for item in evaluations if item.check_name == "speeds_are_true"):
            assert speeds.metadata["published runs, decode, n"].value > 100
            # The runs of this installation are on a processor, of which the speed model says nothing.
            assert speeds.metadata["own runs, decode, n"].value == 0


def test_losing_the_duckdb_file_loses_nothing(full_run: Installation):
    tables = (
        "artifacts", "benchmark_runs", "enriched_listings", "quarantined_listings", "gpus",
        "serving_needs", "speed_predictions",
    )  # fmt: skip
    before = {table: query(full_run, f"select count(*) from raw.{table}") for table in tables}
    warehouse = Warehouse(full_run.settings.warehouse)
    warehouse.path.unlink()
    rebuild_raw_tables(full_run.settings)
    assert {
        table: query(full_run, f"select count(*) from raw.{table}") for table in tables
    } == before
    assert full_run.run("refresh_marts").success


def test_a_killed_worker_fails_its_step_clearly_and_the_next_run_succeeds(full_run: Installation):
    config = {"ops": {"tiny__benchmark_results": {"config": {"runs": 100_000}}}}
    killed: list[int] = []

    def kill_the_worker() -> None:
        while not killed:
            for child in psutil.Process().children(recursive=True):
                if "quant_assets.workers.llama_cpp.bench" in " ".join(child.cmdline()):
                    time.sleep(3)
                    os.kill(child.pid, signal.SIGKILL)
                    killed.append(child.pid)
            time.sleep(0.05)

    killer = threading.Thread(target=kill_the_worker, daemon=True)
    killer.start()
    result = full_run.run("tiny_benchmarks", cell("f16", 1), run_config=config)
    killer.join(timeout=10)
    assert killed
    assert not result.success
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    data = failure.step_failure_data.user_failure_data
    assert data is not None
    assert "was ended by SIGKILL" in str(data.metadata["what"].value)
    assert "out-of-memory" in str(data.metadata["what to do next"].value)
    assert full_run.run("tiny_benchmarks", cell("f16", 1)).success


MARTS = """
import os
from quant_assets.definitions import defs
from quant_assets.resources.executor import execute_here
from quant_assets.resources.instance import dagster_instance
from quant_assets.settings import get_settings
with dagster_instance(get_settings()) as instance:
    execute_here(defs.resolve_job_def("refresh_marts"), instance)
"""


def test_dbt_ends_with_a_killed_parent_and_the_next_run_builds_the_marts(full_run: Installation):
    parent = subprocess.Popen(
        [sys.executable, "-c", MARTS], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while True:
        assert parent.poll() is None, "it ended before dbt started"
        assert time.monotonic() < deadline, "dbt did not start"
        started = below(parent.pid)
        lines = [command_line(process) for process in started]
        if any("bin/dbt build" in line and "guard.py" not in line for line in lines):
            break
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    assert not survivors(started)
    (ended,) = end_dead_runs(full_run.instance)
    assert ended.job_name == "refresh_marts"
    assert full_run.run("refresh_marts").success


def test_a_damaged_artifact_fails_its_check(full_run: Installation, tmp_path: Path):
    store = ArtifactStore(full_run.settings.artifacts)
    manifest = next(found for found in store.all() if found.job.model_name == "tiny-2")
    model = store.folder(manifest.job_id) / manifest.files[0].name
    content = model.read_bytes()
    model.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        result = full_run.run("tiny_2_artifacts", "F16")
        (evaluation,) = result.get_asset_check_evaluations()
        assert not evaluation.passed
        assert manifest.job_id in str(evaluation.metadata["damaged"].value)
    finally:
        model.write_bytes(content)


def test_a_lost_row_fails_the_conservation_check(full_run: Installation):
    parquet = full_run.settings.listings / "normalized" / "quarantined.parquet"
    content = parquet.read_bytes()
    try:
        duckdb.execute(
            f"copy (from '{parquet}' limit 1) to '{parquet}.less' (format parquet)"
        ).fetchall()
        Path(f"{parquet}.less").replace(parquet)
        check = next(item for item in build_checks([]) if item.node_def.name.endswith("conserved"))
        settings = full_run.settings
        evaluation = check(DataRoot(home=str(settings.home), data=str(settings.data)))
        assert not evaluation.passed
    finally:
        parquet.write_bytes(content)
