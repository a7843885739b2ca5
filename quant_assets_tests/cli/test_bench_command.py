"""`quant-assets bench` and `collect`, on a data root with one real artifact."""

import csv
import datetime
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from quant_assets.artifacts.job import JobSpec
from quant_assets.artifacts.manifest import ArtifactFile, ArtifactManifest
from quant_assets.artifacts.store import ArtifactStore
from quant_assets.cli.app import app
from quant_assets.errors import CheckFailed, InputError
from quant_assets.settings import get_settings

SHORT = ["--runs", "2", "--warmups", "0", "--prompt-tokens", "8", "--generated-tokens", "2"]
VARIANTS = """
variants:
  f16: {format: gguf, level: F16}
  q4: {format: gguf, level: Q4_1}
  q4_KV: {format: gguf, level: Q4_1, cache_type_k: q4_0, cache_type_v: q4_0}
"""


@pytest.fixture
def home(smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A data root with a Q4_1 artifact and no F16."""
    variants = tmp_path / "variants.yaml"
    variants.write_text(VARIANTS, encoding="utf-8")
    models = tmp_path / "models.yaml"
    models.write_text("models: [{name: tiny, source: a/b}]", encoding="utf-8")
    monkeypatch.setenv("QUANT_ASSETS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("QUANT_ASSETS_VARIANTS_FILE", str(variants))
    monkeypatch.setenv("QUANT_ASSETS_MODELS_FILE", str(models))
    for name in ("VARIANTS", "BATCH_SIZES", "WARMUPS", "RUNS"):
        monkeypatch.delenv(name, raising=False)
    get_settings.cache_clear()
    _store("Q4_1", smollm2)
    yield tmp_path / "home"
    get_settings.cache_clear()


def _store(level: str, gguf: Path) -> None:
    store = ArtifactStore(get_settings().artifacts)
    job = JobSpec(
        model_name="tiny", source_identity="s", target_format="gguf", level=level,
        library_versions={},
    )  # fmt: skip
    with store.staging(job.job_id) as folder:
        (folder / "m.gguf").symlink_to(gguf)
        store.commit(
            folder,
            ArtifactManifest(
                job=job, job_id=job.job_id, status="valid", source_provenance="test",
                files=[
                    ArtifactFile(name="m.gguf", size_bytes=gguf.stat().st_size, sha256="0" * 64)
                ],
                n_parameters=1, bits_per_weight=5.0, tensor_types={}, engine={}, validation={},
                seconds=1.0, created_at=datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
            ),
        )  # fmt: skip


def _invoke(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_dry_run_prints_the_matrix_and_runs_nothing(home: Path) -> None:
    output = _invoke("bench", "--dry-run", "--batch-size", "2", "--batch-size", "4")
    assert output.count("skipped: no gguf artifact of level F16") == 2
    assert "6 cells, about" in output
    assert not (home / "results").exists()


def test_few_cells_are_those_that_tell_most_about_the_others(home: Path) -> None:
    sizes = [word for size in ("1", "2", "8") for word in ("--batch-size", size)]
    answer = json.loads(_invoke("bench", "--dry-run", "--cells", "4", *sizes, "--format", "json"))
    planned = {
        (cell["variant"], cell["batch_size"]) for cell in answer["cells"] if not cell["skipped"]
    }
    assert len(planned) == 4
    assert {batch for _, batch in planned} == {1, 2, 8}
    assert {variant for variant, _ in planned} == {"q4", "q4_KV"}
    reasons = [cell["skipped"] for cell in answer["cells"] if cell["skipped"]]
    assert sum("estimated" in reason for reason in reasons) == 2
    assert sum("no gguf artifact" in reason for reason in reasons) == 3


def test_cells_are_measured_skipped_checked_compared_and_collected(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCH_SIZES", "2")
    output = _invoke("bench", *SHORT)
    assert "f16 batch 2: skipped: no gguf artifact of level F16" in output
    assert len(list((home / "results").glob("q4_2*.json"))) == 1
    assert len(list((home / "results" / "samples").iterdir())) == 2

    limits = tmp_path / "limits.yaml"
    limits.write_text('models: {"*": {q4: {rss_max_mb: 1}}}', encoding="utf-8")
    checked = ["bench", "--dry-run", "--check", "--thresholds", str(limits)]
    with pytest.raises(CheckFailed, match="tiny q4 batch 2: rss_max_mb"):
        _invoke(*checked)
    limits.write_text('models: {"*": {q4: {rss_max_mb: 100000}}}', encoding="utf-8")
    _invoke(*checked)

    compared = _invoke("bench", "compare", "q4", "q4_KV")
    assert "tiny" in compared and " to " in compared

    summary = tmp_path / "summary.csv"
    for _ in range(2):
        assert f"2 records in {get_settings().warehouse}" in _invoke(
            "collect", "--output-csv", str(summary)
        )
    with summary.open(newline="") as stream:
        assert sorted(row["variant"] for row in csv.DictReader(stream)) == ["q4", "q4_KV"]


def test_variables_and_folders_choose_what_is_run_and_where_it_goes(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = {"VARIANTS": "q4", "BATCH_SIZES": "1 2", "WARMUPS": "0", "RUNS": "2"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    folder, summary = tmp_path / "elsewhere", tmp_path / "out" / "summary.csv"
    lengths = ["--prompt-tokens", "8", "--generated-tokens", "2"]
    _invoke("bench", "--results-dir", str(folder), *lengths)
    _invoke("collect", "--results-dir", str(folder), "--output-csv", str(summary))
    (file,) = folder.glob("*.json")
    assert file.name.startswith("q4_20") and not (home / "results").exists()
    with summary.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    settings = [(row["variant"], row["batch_size"], row["warmups"], row["runs"]) for row in rows]
    assert settings == [("q4", "1", "0", "2"), ("q4", "2", "0", "2")]
    for row in rows:
        assert float(row["command_duration_ms"]) > float(row["load_time_ms"]) > 0
        assert float(row["p95"]) >= float(row["p50"]) > 0
        assert int(row["peak_rss"]) > 0 and float(row["token_throughput"]) > 0
        assert row["obedience_pass_rate"] == ""


def test_a_failing_variant_stops_none_of_the_others_and_sets_the_exit_code(
    home: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(b"GGUF" + bytes(60))
    _store("F16", damaged)
    command = [sys.executable, "-m", "quant_assets.cli.app", "bench", "--batch-size", "1"]
    done = subprocess.run(
        [*command, *SHORT, "--variant", "f16", "--variant", "q4"],
        env=dict(os.environ), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == InputError.exit_code, done.stderr
    assert "f16 batch 1: failed: " in done.stdout and "error:" in done.stderr
    assert [path.name[:6] for path in (home / "results").glob("*.json")] == ["q4_202"]


def test_unknown_names_are_refused(home: Path) -> None:
    with pytest.raises(InputError, match="no model"):
        _invoke("bench", "--dry-run", "--model", "absent")
    with pytest.raises(InputError, match="no variant"):
        _invoke("bench", "--dry-run", "--variant", "absent")
    with pytest.raises(InputError, match="are invalid"):
        _invoke("bench", "--dry-run", "--runs", "0")
