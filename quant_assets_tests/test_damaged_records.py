"""Records, results and manifests that are damaged or from a wrong clock: reported or rebuilt."""

import contextlib
import datetime
import json
import logging
import multiprocessing
import os
import re
import resource
import signal
import struct
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pytest
from hypothesis import given

from quant_assets.artifacts.job import JobSpec
from quant_assets.artifacts.manifest import ArtifactFile, ArtifactManifest, manifest_of
from quant_assets.artifacts.store import ArtifactStore
from quant_assets.bench.collect import collect_csv
from quant_assets.bench.compare import open_side
from quant_assets.bench.divergence import Baseline, baseline_writer
from quant_assets.bench.jobs import CellMeasurement, QualityMeasurement, RunSample
from quant_assets.bench.obedience.measurement import ObedienceResult, Transcript, obedience_results
from quant_assets.bench.quality import QualityResult, QualityStore
from quant_assets.bench.record import BenchmarkRecord, RecordOrigin, make_record
from quant_assets.bench.results import ResultStore, read_records
from quant_assets.bench.settings import BenchSettings
from quant_assets.bench.variants import Variant
from quant_assets.errors import CheckFailed, InputError, ResourceError, explained
from quant_assets.quantize.validation import validate_artifact
from quant_assets.record_files import recency
from quant_assets.speed.host_peaks import RecordedPeaks, recorded_peaks
from quant_assets.warehouse.connection import Warehouse
from quant_assets.warehouse.loads.artifacts import load_artifacts, load_models
from quant_assets.warehouse.loads.listings import load_listing_table
from quant_assets.warehouse.loads.measurements import (
    load_benchmarks,
    load_hosts,
    load_variant_quality,
)
from quant_assets_tests.mutation import bounded, fuzz_settings, mutated

PAST = datetime.datetime(2024, 5, 4, 12, tzinfo=datetime.UTC)
FUTURE = datetime.datetime(2999, 1, 1, tzinfo=datetime.UTC)
VARIANT = Variant(name="q8", format="gguf", level="Q8_0")
SAMPLES = [RunSample(time_to_first_token_ms=2, token_ms=[1, 1], total_ms=4)] * 3


def record(timestamp: datetime.datetime = PAST, record_id: str = "r") -> BenchmarkRecord:
    measured = CellMeasurement(
        load_time_ms=1, samples=SAMPLES, peak_rss_bytes=10, conditions=None, library_versions={},
        build_flags="", cpu_name="c", gpu_name=None, device="cpu",
    )  # fmt: skip
    origin = RecordOrigin(
        model_name="m", variant_name="q8", variant=VARIANT, artifact_id="a", backend="llamacpp",
        threads=2,
    )  # fmt: skip
    made = make_record(measured, origin, BenchSettings(), batch_size=1)
    metadata = made.metadata.model_copy(update={"timestamp": timestamp})
    return made.model_copy(update={"record_id": record_id, "metadata": metadata})


def quality(timestamp: datetime.datetime = PAST) -> QualityResult:
    measurement = QualityMeasurement(
        perplexity=20.2, perplexity_standard_error=0.3, scored_tokens=7650, windows=30, context=512,
        perplexity_ratio=1.01, seconds=9,
    )  # fmt: skip
    return QualityResult(
        variant="q8", model="m", artifact_id="a", baseline_artifact_id="b", text="t",
        text_sha256="0", timestamp=timestamp, measurement=measurement,
    )  # fmt: skip


def obedience() -> ObedienceResult:
    transcript = Transcript(id="1", category="c", prompt="p", answer="x", failure=None)
    return ObedienceResult(
        variant="q8", model="m", artifact_id="a", timestamp=PAST, pass_rate=1,
        pass_rate_by_category={"c": 1}, transcripts=[transcript],
    )  # fmt: skip


def peaks(measured_at: datetime.datetime = PAST) -> RecordedPeaks:
    return RecordedPeaks(
        cpu_name="c", threads=2, triad_gb_s=10, read_gb_s=12, matmul_gflop_s=100, contended=False,
        library_versions={}, measured_at=measured_at,
    )  # fmt: skip


JOB = JobSpec(
    model_name="m", source_identity="s", target_format="gguf", level="Q8_0", library_versions={}
)


def manifest() -> ArtifactManifest:
    return ArtifactManifest(
        job=JOB, job_id=JOB.job_id, status="valid", source_provenance="p",
        files=[ArtifactFile(name="m.gguf", size_bytes=4, sha256="0")], n_parameters=10,
        bits_per_weight=8.5, tensor_types={"Q8_0": 1}, engine={}, validation={}, seconds=1,
        created_at=PAST,
    )  # fmt: skip


NUMBER = re.compile(rb"(?<=[:\[ ])[0-9.]+(?=[,\]}\n])")


def cut(content: str) -> bytes:
    return content.encode()[:-20]


def not_utf8(content: str) -> bytes:
    return content.encode().replace(b'":', b'\xff":', 1)


def nested(_: str) -> bytes:
    return b"[" * 100_000


def not_a_number(content: str) -> bytes:
    return NUMBER.sub(b"NaN", content.encode(), count=1)


def infinite(content: str) -> bytes:
    return NUMBER.sub(b"1e999", content.encode(), count=1)


def lone_surrogate(content: str) -> bytes:
    return content.encode().replace(b'":', b'\\ud800":', 1)


def other(_: str) -> bytes:
    return b'{"name": "web app", "files": []}'


def empty(_: str) -> bytes:
    return b""


DAMAGES = [cut, not_utf8, nested, not_a_number, infinite, lone_surrogate, other, empty]


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def as_dangling_link(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("nowhere"))


def as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


REPLACED = [as_folder, as_dangling_link, as_pipe]


def damage(path: Path, how: Callable[[str], bytes] | Callable[[Path], None]) -> None:
    if how in REPLACED:
        how(path)
    else:
        path.write_bytes(how(path.read_text()))


@pytest.mark.parametrize("how", [*DAMAGES, *REPLACED])
def test_a_damaged_result_file_is_one_error_that_names_it(
    tmp_path: Path, how: Callable[[str], bytes]
):
    store = ResultStore(tmp_path)
    store.append(record())
    (file,) = store.files()
    damage(file, how)
    with pytest.raises(InputError, match=file.name) as refused:
        list(store.records())
    assert len(str(refused.value)) < 1500
    with pytest.raises(InputError, match=file.name):
        store.find(variant="q8")


@pytest.mark.parametrize("how", [*DAMAGES, *REPLACED])
def test_damaged_samples_are_one_error(tmp_path: Path, how: Callable[[str], bytes]):
    store = ResultStore(tmp_path)
    kept = store.append(record(), SAMPLES)
    assert kept.samples_file is not None
    damage(tmp_path / kept.samples_file, how)
    with pytest.raises(InputError, match="samples"):
        store.samples(kept)


@pytest.mark.parametrize("how", [*DAMAGES, *REPLACED])
def test_damaged_quality_and_obedience_are_ignored_with_a_warning(
    tmp_path: Path, how: Callable[[str], bytes], caplog: pytest.LogCaptureFixture
):
    store = QualityStore(tmp_path, tmp_path / "cache")
    store.save(VARIANT, "damaged", quality())
    store.save(VARIANT, "whole", quality())
    damage(store.path(VARIANT, "damaged"), how)
    (tmp_path / "obedience").mkdir()
    for name in ("damaged", "whole"):
        (tmp_path / "obedience" / f"{name}.json").write_text(obedience().model_dump_json())
    damage(tmp_path / "obedience" / "damaged.json", how)
    with caplog.at_level(logging.WARNING):
        assert store.all() == [quality()]
        assert store.find(VARIANT, "damaged") is None
        assert obedience_results(tmp_path) == [obedience()]
    assert "q8_damaged.json" in caplog.text and "obedience/damaged.json" in caplog.text
    if how not in REPLACED:
        store.save(VARIANT, "damaged", quality())
        assert store.find(VARIANT, "damaged") == quality()


@pytest.mark.parametrize("how", [*DAMAGES, *REPLACED])
def test_damaged_host_peaks_are_one_error(tmp_path: Path, how: Callable[[str], bytes]):
    (tmp_path / "hosts").mkdir()
    file = tmp_path / "hosts" / "c.json"
    file.write_text(peaks().model_dump_json())
    damage(file, how)
    with pytest.raises(InputError, match=r"c\.json"):
        recorded_peaks(tmp_path)


def stored(root: Path) -> tuple[ArtifactStore, Path]:
    store = ArtifactStore(root)
    folder = store.folder(JOB.job_id)
    folder.mkdir(parents=True)
    (folder / "m.gguf").write_bytes(b"GGUF")
    (folder / "manifest.json").write_text(manifest().model_dump_json())
    assert store.find(JOB.job_id) is not None
    return store, folder


def without_files(content: str) -> bytes:
    return json.dumps({**json.loads(content), "files": []}).encode()


def with_a_path(content: str) -> bytes:
    return content.encode().replace(b"m.gguf", b"../x")


def of_another_job(content: str) -> bytes:
    return json.dumps({**json.loads(content), "job_id": "other"}).encode()


def with_huge_weights(content: str) -> bytes:
    return json.dumps({**json.loads(content), "bits_per_weight": 1e308}).encode()


@pytest.mark.parametrize(
    "how",
    [*DAMAGES, *REPLACED, without_files, with_a_path, of_another_job, with_huge_weights],
)
def test_an_artifact_with_a_damaged_manifest_is_not_found(
    tmp_path: Path, how: Callable[[str], bytes]
):
    store, folder = stored(tmp_path)
    damage(folder / "manifest.json", how)
    assert store.find(JOB.job_id) is None
    assert store.all() == []


@pytest.mark.parametrize("how", [*DAMAGES, *REPLACED[:1], without_files, with_a_path])
def test_validation_names_a_damaged_manifest(tmp_path: Path, how: Callable[[str], bytes]):
    _, folder = stored(tmp_path)
    damage(folder / "manifest.json", how)
    with pytest.raises(InputError, match=r"manifest\.json"):
        validate_artifact(folder)


def test_a_manifest_of_something_else_does_not_concern_a_model_beside_it(tmp_path: Path):
    model = tmp_path / "m.gguf"
    model.write_bytes(b"GGUF")
    (tmp_path / "manifest.json").write_bytes(other(""))
    assert manifest_of(model) is None
    (tmp_path / "manifest.json").write_text(manifest().model_dump_json())
    found = manifest_of(model)
    assert found is not None and found.job_id == JOB.job_id
    assert manifest_of(tmp_path / "n.gguf") is None
    (tmp_path / "manifest.json").write_bytes(cut(manifest().model_dump_json()))
    with pytest.raises(InputError, match="manifest"):
        manifest_of(model)
    with pytest.raises((InputError, CheckFailed)):
        validate_artifact(model)


def test_an_unreadable_model_does_not_stop_other_tables(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    store, _ = stored(tmp_path / "artifacts")
    with (
        caplog.at_level(logging.WARNING),
        Warehouse(tmp_path / "w.duckdb").write() as connection,
    ):
        assert load_artifacts(connection, store) == 1
        assert load_models(connection, store) == 0
    assert JOB.job_id in caplog.text


def test_a_future_time_is_older_than_any_other():
    now = datetime.datetime.now(datetime.UTC)
    tomorrow = now + datetime.timedelta(hours=14)
    times = [FUTURE, now, PAST, tomorrow]
    assert sorted(times, key=recency) == [FUTURE, PAST, now, tomorrow]


def test_the_newest_record_is_from_a_right_clock(tmp_path: Path):
    store = ResultStore(tmp_path)
    for at, name in ((PAST, "right"), (FUTURE, "wrong")):
        store.append(record(at, name))
    assert [found.record_id for found in store.find(variant="q8")] == ["wrong", "right"]
    (latest,) = open_side("q8", store).records.values()
    assert latest.record_id == "right"


def test_times_without_a_zone_are_utc(tmp_path: Path):
    store = ResultStore(tmp_path)
    store.append(record())
    (file,) = store.files()
    content = json.loads(file.read_text())
    naive = json.loads(json.dumps(content[0]))
    naive["metadata"]["timestamp"] = "2024-05-04T13:00:00"
    naive["record_id"] = "naive"
    file.write_text(json.dumps([naive, content[0]]))
    assert [item.record_id for item in store.find(variant="q8")] == ["r", "naive"]
    assert store.find(record_id="naive")[0].metadata.timestamp == PAST.replace(hour=13)
    (tmp_path / "hosts").mkdir()
    for name, at in (("a", "2024-05-04T13:00:00"), ("b", "2024-05-04T12:00:00Z")):
        text = json.dumps({**json.loads(peaks().model_dump_json()), "measured_at": at})
        (tmp_path / "hosts" / f"{name}.json").write_text(text)
    assert [item.measured_at.hour for item in recorded_peaks(tmp_path)] == [12, 13]


def test_a_time_beyond_the_calendar_is_damage(tmp_path: Path):
    (tmp_path / "hosts").mkdir()
    text = peaks().model_dump_json().replace("2024-05-04T12:00:00Z", "9999-12-31T23:00:00-14:00")
    (tmp_path / "hosts" / "c.json").write_text(text)
    with pytest.raises(InputError, match="outside the calendar"):
        recorded_peaks(tmp_path)


@pytest.mark.parametrize("at", [datetime.datetime.max, datetime.datetime.min])
def test_the_warehouse_accepts_every_calendar_time(tmp_path: Path, at: datetime.datetime):
    at = at.replace(tzinfo=datetime.UTC)
    ResultStore(tmp_path).append(record(at))
    store = QualityStore(tmp_path, tmp_path)
    store.save(VARIANT, "k", quality(at))
    (tmp_path / "hosts").mkdir()
    (tmp_path / "hosts" / "c.json").write_text(peaks(at).model_dump_json())
    with Warehouse(tmp_path / "w.duckdb").write() as connection:
        assert load_benchmarks(connection, ResultStore(tmp_path)) == 1
        assert load_variant_quality(connection, store, tmp_path) == 1
        assert load_hosts(connection, tmp_path) == 1


def test_a_damaged_listing_table_is_one_error_that_names_the_file(tmp_path: Path):
    file = tmp_path / "offers [1].parquet"
    duckdb.sql("select 'L4' as title").write_parquet(str(file))
    file.write_bytes(file.read_bytes()[:-20])
    with (
        Warehouse(tmp_path / "w.duckdb").write() as connection,
        pytest.raises(InputError, match=r"offers \[1\]\.parquet"),
    ):
        load_listing_table(connection, "raw_listings", file)


def whole_baseline(path: Path) -> bytes:
    windows = np.arange(32, dtype=np.int32).reshape(4, 8) % 10
    with baseline_writer(path, windows, 10) as writer:
        for _ in range(4):
            writer.append(np.zeros((3, 10), dtype=np.float32))
    return path.read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: data[:8] + struct.pack("<Iii", 2**31, 10, 2**31 - 1) + data[20:],
        lambda data: data[:8] + struct.pack("<Iii", 8, -10, 4) + data[20:],
        lambda data: data[:8] + struct.pack("<Iii", 8, 10, 0) + data[20:],
        lambda data: data[:20] + struct.pack("<i", 10) + data[24:],
        lambda _: b"",
    ],
)
def test_a_damaged_baseline_is_computed_again(
    tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    store = QualityStore(tmp_path, tmp_path)
    path = tmp_path / "x.kld"
    data = whole_baseline(path)
    assert store.has_valid_baseline(path) and path.exists()
    path.write_bytes(change(data))
    with bounded(), pytest.raises(InputError, match="not a valid file of baseline"):
        Baseline(path)
    assert not store.has_valid_baseline(path) and not path.exists()


def read_whole_baseline(path: Path) -> None:
    baseline = Baseline(path)
    for window in range(baseline.count):
        baseline.log_probabilities(window, slice(0, 3))


def read_manifest_of(path: Path) -> None:
    folder = path.with_name(JOB.job_id)
    folder.mkdir(exist_ok=True)
    path.replace(folder / "manifest.json")
    (folder / "m.gguf").write_bytes(b"GGUF")
    ArtifactStore(path.parent).all()
    manifest_of(folder / "m.gguf")


def read_as_quality(path: Path) -> None:
    store = QualityStore(path.parent, path.parent)
    store.folder.mkdir(exist_ok=True)
    path.replace(store.path(VARIANT, "k"))
    store.find(VARIANT, "k")
    store.all()


def read_as_obedience(path: Path) -> None:
    (path.parent / "obedience").mkdir(exist_ok=True)
    path.replace(path.parent / "obedience" / "x.json")
    obedience_results(path.parent)


def read_as_peaks(path: Path) -> None:
    (path.parent / "hosts").mkdir(exist_ok=True)
    path.replace(path.parent / "hosts" / "x.json")
    recorded_peaks(path.parent)


def read_as_samples(path: Path) -> None:
    ResultStore(path.parent).samples(record().model_copy(update={"samples_file": path.name}))


READERS: dict[str, tuple[bytes, Callable[[Path], object]]] = {
    "results": (f"[{record().model_dump_json(indent=1)}]".encode(), read_records),
    "samples": (
        json.dumps([sample.model_dump() for sample in SAMPLES]).encode(),
        read_as_samples,
    ),
    "quality": (quality().model_dump_json().encode(), read_as_quality),
    "obedience": (obedience().model_dump_json().encode(), read_as_obedience),
    "peaks": (peaks().model_dump_json().encode(), read_as_peaks),
    "manifest": (manifest().model_dump_json(indent=2).encode(), read_manifest_of),
    "baseline": (b"", read_whole_baseline),
}


@pytest.mark.fuzz
@pytest.mark.parametrize("kind", READERS)
def test_a_mutated_record_is_read_or_an_error(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    original, read = READERS[kind]
    original = original or whole_baseline(tmp_path / "whole.kld")
    caplog.set_level(logging.CRITICAL)

    @fuzz_settings()
    @given(mutated([original]))
    def check(content: bytes) -> None:
        path = tmp_path / "mutated"
        path.write_bytes(content)
        with bounded(), contextlib.suppress(InputError):
            read(path)

    check()


@pytest.mark.fuzz
def test_mutated_records_that_were_read_can_be_loaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.CRITICAL)
    results, store = ResultStore(tmp_path), QualityStore(tmp_path, tmp_path)
    artifacts = ArtifactStore(tmp_path / "artifacts")
    folder = artifacts.folder(JOB.job_id)
    for needed in (tmp_path / "hosts", store.folder, folder):
        needed.mkdir(parents=True)
    (folder / "m.gguf").write_bytes(b"GGUF")
    places = {
        "results": tmp_path / "q8_20240504.json",
        "quality": store.path(VARIANT, "k"),
        "peaks": tmp_path / "hosts" / "x.json",
        "manifest": folder / "manifest.json",
    }
    with Warehouse(tmp_path / "w.duckdb").write() as connection:
        loads: dict[str, Callable[[], int]] = {
            "results": lambda: load_benchmarks(connection, results),
            "quality": lambda: load_variant_quality(connection, store, tmp_path),
            "peaks": lambda: load_hosts(connection, tmp_path),
            "manifest": lambda: load_artifacts(connection, artifacts),
        }
        connection.commit()
        for kind, load in loads.items():
            fuzz_load(connection, READERS[kind][0], places[kind], load)
            places[kind].unlink()
        connection.begin()


def fuzz_load(
    connection: duckdb.DuckDBPyConnection, original: bytes, path: Path, load: Callable[[], int]
) -> None:
    @fuzz_settings(100)
    @given(mutated([original]))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        connection.begin()
        try:
            with contextlib.suppress(InputError):
                load()
        finally:
            connection.rollback()

    check()


def write_on_a_full_disk(results: Path, report: Path) -> None:
    """Limit the size of files below that of a measurement, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    store = QualityStore(results, results)
    for keep, name in (
        (lambda: ResultStore(results).append(record(record_id="new")), "q8_20240504.json"),
        (lambda: ResultStore(results).append(record(record_id="new"), SAMPLES), "samples"),
        (lambda: store.save(VARIANT, "k", quality()), "q8_k.json"),
    ):
        with pytest.raises(ResourceError, match="this measurement is not kept") as refused:
            keep()
        assert name in refused.value.what
    with pytest.raises(OSError) as full:  # noqa: PT011 - its content is checked below
        collect_csv(results, report)
    error = explained(full.value)
    assert isinstance(error, ResourceError) and report.name in error.what
    os._exit(42)


def test_a_full_disk_leaves_earlier_records_intact(tmp_path: Path):
    results, report = tmp_path / "results", tmp_path / "all.csv"
    ResultStore(results).append(record(), SAMPLES)
    QualityStore(results, results).save(VARIANT, "k", quality())
    report.write_text("before")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    process = multiprocessing.get_context("spawn").Process(
        target=write_on_a_full_disk, args=(results, report)
    )
    process.start()
    process.join()
    assert process.exitcode == 42
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


@pytest.mark.parametrize("name", ["results", "results/quality"])
def test_a_folder_that_cannot_be_created_is_named(tmp_path: Path, name: str):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("a file with the folder's name")
    store = QualityStore(tmp_path / "results", tmp_path)
    with pytest.raises(ResourceError, match=str(tmp_path / "results")):
        store.save(VARIANT, "k", quality())
    if name == "results":
        with pytest.raises(ResourceError, match="results"):
            ResultStore(tmp_path / "results").append(record(), SAMPLES)
