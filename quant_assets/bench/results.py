"""The result store: `<variant>_YYYYMMDD.json` files, each a JSON array of records."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import TypeAdapter

from quant_assets.atomic_files import path_inside
from quant_assets.bench.jobs import RunSample
from quant_assets.bench.record import BenchmarkRecord
from quant_assets.errors import InputError
from quant_assets.host.locks import exclusive_lock
from quant_assets.record_files import read_record, recency, write_record

_RECORDS: TypeAdapter[list[BenchmarkRecord]] = TypeAdapter(list[BenchmarkRecord])
_SAMPLES: TypeAdapter[list[RunSample]] = TypeAdapter(list[RunSample])
_SAMPLES_FOLDER = "samples"
_LOCK_NAME = ".results.lock"


def read_records(path: Path) -> list[BenchmarkRecord]:
    """The records of one result file; raise `InputError` when it is invalid.

    A damaged file is always an error: measurements cannot be repeated exactly, and a comparison or
    table that silently lacks some would be wrong.
    """
    return read_record(
        path,
        _RECORDS,
        "result file",
        "Move it out of the results folder, or restore it from a copy.",
    )


def newest_of_cells(records: Iterable[BenchmarkRecord]) -> list[BenchmarkRecord]:
    """The newest record, by `recency`, of each model, variant, batch size and processor."""
    ordered = sorted(records, key=lambda record: recency(record.metadata.timestamp))
    newest = {
        (run.model, run.variant, run.batch_size, run.device, run.processor): record
        for record in ordered
        for run in [record.metadata]
    }
    return list(newest.values())


class ResultStore:
    """The result files of one folder. Appending is atomic and safe with concurrent processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def append(
        self, record: BenchmarkRecord, samples: list[RunSample] | None = None
    ) -> BenchmarkRecord:
        """Add a record to the file of its variant and day (UTC), and its raw samples beside it.

        Returns the record as written: with `samples_file`, relative to the folder, when samples
        were given. A record with the same id is replaced. Raises `ResourceError` when the
        disk is full or the folder cannot be written, and `InputError` when the file is damaged.
        """
        day = record.metadata.timestamp.strftime("%Y%m%d")
        name = f"{record.metadata.variant}_{day}"
        path = path_inside(self.folder, f"{name}.json")
        if samples is not None:
            samples_file = f"{_SAMPLES_FOLDER}/{name}_{record.record_id}.json"
            text = _SAMPLES.dump_json(samples).decode()
            write_record(path_inside(self.folder, samples_file), text, "samples")
            record = record.model_copy(update={"samples_file": samples_file})
        with exclusive_lock(self.folder / _LOCK_NAME, "the benchmark results"):
            earlier = read_records(path) if path.exists() else []
            kept = [item for item in earlier if item.record_id != record.record_id]
            text = _RECORDS.dump_json([*kept, record], indent=2).decode()
            write_record(path, text + "\n", "result file")
        return record

    def files(self) -> list[Path]:
        """All result files, by name."""
        return sorted(self.folder.glob("*.json"))

    def records(self) -> Iterator[BenchmarkRecord]:
        """All records, by file, in the order they were written."""
        for path in self.files():
            yield from read_records(path)

    def find(
        self,
        *,
        variant: str | None = None,
        batch_size: int | None = None,
        model: str | None = None,
        artifact_id: str | None = None,
        record_id: str | None = None,
    ) -> list[BenchmarkRecord]:
        """The records that match all arguments given, by `recency`, the newest last."""
        wanted = {
            "variant": variant,
            "batch_size": batch_size,
            "model": model,
            "artifact_id": artifact_id,
        }
        found = [
            record
            for record in self.records()
            if (record_id is None or record.record_id == record_id)
            and all(
                value is None or getattr(record.metadata, field) == value
                for field, value in wanted.items()
            )
        ]
        return sorted(found, key=lambda record: recency(record.metadata.timestamp))

    def samples(self, record: BenchmarkRecord) -> list[RunSample]:
        """The raw samples of a record; raise `InputError` when they cannot be read."""
        next_step = "Run the cell again, or restore the file from a copy."
        if record.samples_file is None:
            raise InputError(
                f"The samples of record {record.record_id} cannot be read.",
                "The record has no samples file.",
                next_step,
            )
        path = path_inside(self.folder, record.samples_file)
        return read_record(path, _SAMPLES, f"samples of record {record.record_id}", next_step)
