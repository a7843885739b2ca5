import datetime
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from quant_assets.bench.record import SCHEMA_FILE_NAME, record_schema
from quant_assets.bench.results import ResultStore, newest_of_cells, read_records
from quant_assets.errors import InputError
from quant_assets.settings import PROJECT_ROOT

_WRITER = """
import sys
from pathlib import Path
from quant_assets.bench.results import ResultStore, read_records
template = read_records(Path(sys.argv[2]))[0]
for number in range(10):
    record_id = f"{sys.argv[3]}-{number}"
    ResultStore(Path(sys.argv[1])).append(template.model_copy(update={"record_id": record_id}))
"""


def test_a_record_lands_in_its_variants_file_of_the_day(tmp_path: Path, new_record: Any) -> None:
    moment = datetime.datetime(2026, 3, 4, 23, 30, tzinfo=datetime.UTC)
    record, samples = new_record([10.0, 12.0, 14.0], timestamp=moment)
    store = ResultStore(tmp_path)
    written = store.append(record, samples)
    content = json.loads((tmp_path / "q4_20260304.json").read_text())
    assert isinstance(content, list) and len(content) == 1
    assert content[0]["p50_ms"] == 12.0
    assert content[0]["peak_vram_bytes"] is None
    assert store.samples(written) == samples
    assert [path.name for path in store.files()] == ["q4_20260304.json"]


def test_every_element_has_the_specified_names(tmp_path: Path, new_record: Any) -> None:
    moment = datetime.datetime(2026, 3, 4, 23, 30, tzinfo=datetime.UTC)
    record, _ = new_record([10.0, 12.0, 14.0], batch_size=4, timestamp=moment)
    ResultStore(tmp_path).append(record)
    (element,) = json.loads((tmp_path / "q4_20260304.json").read_text())
    names = (
        "p50", "p95", "peak_rss", "load_time_ms", "obedience_pass_rate", "token_throughput",
        "variant", "batch_size", "warmups", "runs", "timestamp",
    )  # fmt: skip
    assert {name: element[name] for name in names} == {
        "p50": 12.0,
        "p95": element["p95_ms"],
        "peak_rss": 200_000_000,
        "load_time_ms": 50.0,
        "obedience_pass_rate": None,
        "token_throughput": element["decode_tokens_per_s"],
        "variant": "q4",
        "batch_size": 4,
        "warmups": 3,
        "runs": 20,
        "timestamp": "2026-03-04T23:30:00Z",
    }
    assert element["p95"] == pytest.approx(13.8)
    assert element["token_throughput"] == pytest.approx(4 * 4 / 0.008)
    properties = record_schema()["$defs"]["BenchmarkRecord"]["properties"]
    assert all(properties[name]["description"] for name in names if name != "obedience_pass_rate")


def test_records_from_before_the_specified_names_are_read_and_gain_them(
    tmp_path: Path, new_record: Any
) -> None:
    store = ResultStore(tmp_path)
    written = store.append(new_record([10.0, 12.0])[0])
    (file,) = store.files()
    (element,) = json.loads(file.read_text())
    for name in (
        "p50", "p95", "peak_rss", "token_throughput", "variant", "batch_size", "warmups", "runs",
        "timestamp", "command_duration_ms", "obedience_prompts",
    ):  # fmt: skip
        del element[name]
    file.write_text(json.dumps([element]))
    (old,) = read_records(file)
    assert old == written
    assert (old.p50, old.peak_rss, old.token_throughput) == (
        element["p50_ms"], element["peak_rss_bytes"], element["decode_tokens_per_s"],
    )  # fmt: skip
    assert old.command_duration_ms is None and old.obedience_prompts is None
    assert old.load_time_ms == 50.0
    store.append(new_record([10.0], timestamp=old.timestamp)[0])
    elements = json.loads(file.read_text())
    assert [item["p50"] for item in elements] == [11.0, 10.0]
    assert list(Draft202012Validator(record_schema()).iter_errors(elements)) == []


def test_the_same_record_is_not_written_twice(tmp_path: Path, new_record: Any) -> None:
    record, _ = new_record()
    store = ResultStore(tmp_path)
    store.append(record)
    store.append(record.model_copy(update={"obedience_pass_rate": 0.5}))
    assert [item.obedience_pass_rate for item in store.records()] == [0.5]


def test_records_are_found_by_their_metadata(tmp_path: Path, new_record: Any) -> None:
    store = ResultStore(tmp_path)
    for variant, batch_size in (("q4", 1), ("q4", 4), ("q8", 1)):
        store.append(new_record(variant=variant, batch_size=batch_size)[0])
    assert [r.metadata.batch_size for r in store.find(variant="q4")] == [1, 4]
    (only,) = store.find(variant="q8", batch_size=1, model="tiny")
    assert store.find(record_id=only.record_id) == [only]
    assert store.find(artifact_id="other") == []


def test_the_newest_of_a_cell_is_that_of_each_processor(new_record: Any) -> None:
    moment = datetime.datetime(2026, 3, 4, tzinfo=datetime.UTC)
    later = moment + datetime.timedelta(hours=1)
    records = [
        new_record([time], timestamp=at, machine={"cpu_name": cpu})[0]
        for time, at, cpu in ((1.0, later, "a"), (2.0, moment, "a"), (3.0, moment, "b"))
    ]
    assert sorted(record.p50_ms for record in newest_of_cells(records)) == [1.0, 3.0]


def test_a_record_without_a_host_id_is_read(tmp_path: Path, new_record: Any) -> None:
    store = ResultStore(tmp_path)
    store.append(new_record(machine={"host_id": "0123456789ab"})[0])
    (file,) = store.files()
    (element,) = json.loads(file.read_text())
    assert element["metadata"]["host_id"] == "0123456789ab"
    del element["metadata"]["host_id"]
    file.write_text(json.dumps([element]))
    assert read_records(file)[0].metadata.host_id is None


def test_two_processes_lose_no_record(tmp_path: Path, new_record: Any) -> None:
    template = ResultStore(tmp_path / "template").append(new_record()[0])
    (file,) = ResultStore(tmp_path / "template").files()
    folder = tmp_path / "shared"
    writers = [
        subprocess.Popen([sys.executable, "-c", _WRITER, str(folder), str(file), name])
        for name in ("a", "b")
    ]
    assert [writer.wait() for writer in writers] == [0, 0]
    found = {record.record_id for record in ResultStore(folder).records()}
    assert found == {f"{name}-{number}" for name in "ab" for number in range(10)}
    assert template.record_id not in found


def test_a_damaged_file_is_named_and_never_overwritten(tmp_path: Path, new_record: Any) -> None:
    record, _ = new_record()
    store = ResultStore(tmp_path)
    store.append(record)
    (file,) = store.files()
    file.write_text('[{"record_id": "half')
    with pytest.raises(InputError, match=file.name):
        store.append(record)
    assert file.read_text() == '[{"record_id": "half'


def test_the_shipped_schema_is_that_of_the_code() -> None:
    shipped = json.loads((PROJECT_ROOT / "data" / SCHEMA_FILE_NAME).read_text())
    assert shipped == record_schema()


def test_written_files_match_the_schema_and_damaged_ones_do_not(
    tmp_path: Path, new_record: Any
) -> None:
    store = ResultStore(tmp_path)
    store.append(*new_record())
    (file,) = store.files()
    validator = Draft202012Validator(record_schema())
    content = json.loads(file.read_text())
    assert list(validator.iter_errors(content)) == []
    for damage in ({"p50_ms": "fast"}, {"surprise": 1}, {"obedience_pass_rate": 7}):
        assert list(validator.iter_errors([{**content[0], **damage}])) != []
    for name in ("p95_ms", "p50", "peak_rss", "token_throughput", "variant", "timestamp"):
        less = {key: value for key, value in content[0].items() if key != name}
        assert list(validator.iter_errors([less])) != []


def test_throughput_and_latency_follow_from_the_samples(new_record: Any) -> None:
    record, _ = new_record([12.0] * 20, batch_size=4)
    assert record.ttft_p50_ms == 4.0
    assert record.per_token_p50_ms == 2.0
    assert record.prefill_tokens_per_s == 8 * 4 / 0.004
    assert record.decode_tokens_per_s == pytest.approx(4 * 4 / 0.008)
    assert record.decode_tokens_per_s_per_sequence == pytest.approx(4 / 0.008)
    assert not record.p95_flagged


def test_a_p95_of_few_runs_is_flagged(new_record: Any) -> None:
    assert new_record([1.0] * 19)[0].p95_flagged


def test_a_flat_row_has_no_nested_values(new_record: Any) -> None:
    row = new_record()[0].flat()
    assert row["variant"] == "q4" and row["host_load_average_1m"] == 0.1
    assert not [name for name, value in row.items() if isinstance(value, dict | list)]


def test_read_records_refuses_anything_but_an_array(tmp_path: Path) -> None:
    path = tmp_path / "x_20260101.json"
    path.write_text("{}")
    with pytest.raises(InputError):
        read_records(path)
