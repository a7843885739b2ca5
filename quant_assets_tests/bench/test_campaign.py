"""A campaign on artifacts and measurements that a test makes up."""

from pathlib import Path
from typing import Any

import pytest

from quant_assets.bench import campaign as campaigns
from quant_assets.bench.artifact_finder import LocatedArtifact
from quant_assets.bench.campaign import (
    Campaign,
    ExtraMeasurements,
    measured_records,
    open_campaign,
)
from quant_assets.bench.matrix import CellOutcome, PlannedCell
from quant_assets.bench.results import ResultStore
from quant_assets.bench.settings import BenchSettings
from quant_assets.bench.subject import Subject
from quant_assets.bench.variants import Variant
from quant_assets.errors import InputError, WorkerError
from quant_assets.processes.protocol import Event, ProgressEvent
from quant_assets.processes.session import WorkerSession
from quant_assets.settings import Settings

SETTINGS = BenchSettings(batch_sizes=(1, 2))
VARIANTS = {
    name: Variant(name=name, format="gguf", level=level)
    for name, level in (("a", "Q8_0"), ("b", "Q4_0"))
}
F16 = LocatedArtifact(Path("F16.gguf"), "id-F16", 10**8)


def find(variant: Variant) -> LocatedArtifact | None:
    return LocatedArtifact(Path(f"{variant.level}.gguf"), f"id-{variant.level}", 10**8)


class Measured(list[tuple[str, str]]):
    """Record what would be measured, in order; variant b fails."""

    def __init__(self, new_record: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self._new_record = new_record
        for name in ("run_cell", "measure_quality", "measure_obedience"):
            monkeypatch.setattr(campaigns, name, getattr(self, name))
        monkeypatch.setattr(campaigns, "evaluation_text", lambda choice, _cache: choice)
        monkeypatch.setattr(campaigns, "load_prompts", lambda _folder: [])

    def run_cell(self, subject: Subject, batch_size: int, **_: Any) -> Any:
        self.append(("cell", f"{subject.variant.name} {batch_size}"))
        if subject.variant.name == "b":
            raise WorkerError("It died.", "It was killed.", "Try again.")
        record, samples = self._new_record(
            [2000.0] * 3,
            variant=subject.variant.name,
            batch_size=batch_size,
            model=subject.model_name,
            artifact_id=subject.artifact.artifact_id,
            settings=subject.settings,
        )
        return campaigns.MeasuredCell(record, samples)

    def measure_quality(
        self, _subject: Subject, baseline: LocatedArtifact, text: str, *_: Any, **options: Any
    ) -> None:
        self.append(("quality", f"{baseline.artifact_id} {text} {options['windows']}"))

    def measure_obedience(self, subject: Subject, *_: Any, **__: Any) -> None:
        self.append(("obedience", subject.variant.name))


@pytest.fixture
def measured(new_record: Any, monkeypatch: pytest.MonkeyPatch) -> Measured:
    return Measured(new_record, monkeypatch)


def campaign(tmp_path: Path, baseline: LocatedArtifact | None = F16) -> Campaign:
    return Campaign("m", VARIANTS, SETTINGS, ResultStore(tmp_path / "results"), find, baseline)


def test_speed_alone_unless_more_is_requested(tmp_path: Path, measured: Measured) -> None:
    settings = Settings(home=tmp_path)
    outcomes = campaign(tmp_path).run(ExtraMeasurements(), settings)
    assert measured == [("cell", "a 1"), ("cell", "a 2"), ("cell", "b 1"), ("cell", "b 2")]
    assert [item.record is not None for item in outcomes] == [True, True, False, False]
    with pytest.raises(WorkerError, match=r"That was b batch 1; also failed: b batch 2\."):
        measured_records(outcomes)


def test_quality_and_obedience_follow_each_cell(tmp_path: Path, measured: Measured) -> None:
    extras = ExtraMeasurements(text="wikitext-2", windows=7, obedience=True)
    campaign(tmp_path).run(extras, Settings(home=tmp_path))
    assert measured[:3] == [
        ("cell", "a 1"), ("quality", "id-F16 wikitext-2 7"), ("obedience", "a"),
    ]  # fmt: skip


def test_a_cell_whose_obedience_fails_keeps_its_record_and_runs_again(
    tmp_path: Path, measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise InputError("There is no chat template.", "The model is a base model.", "Leave it.")

    runs = campaign(tmp_path)
    extras = ExtraMeasurements(text="auto", obedience=True)
    with monkeypatch.context() as patch:
        patch.setattr(campaigns, "measure_obedience", fail)
        outcomes = runs.run(extras, Settings(home=tmp_path))
    assert [item.error is not None for item in outcomes] == [True] * 4
    (record,) = runs.results.find(variant="a", batch_size=1)
    assert record == (outcomes[0].record) and record.obedience_pass_rate is None
    with pytest.raises(InputError, match="no chat template"):
        measured_records(outcomes)
    measured.clear()
    runs.run(extras, Settings(home=tmp_path))
    assert measured[0] == ("cell", "a 1")


def test_without_a_baseline_quality_is_not_measured(tmp_path: Path, measured: Measured) -> None:
    extras = ExtraMeasurements(text="auto")
    campaign(tmp_path, baseline=None).run(extras, Settings(home=tmp_path))
    assert {kind for kind, _ in measured} == {"cell"}


def test_the_latest_record_of_each_cell(tmp_path: Path, measured: Measured) -> None:
    settings, runs = Settings(home=tmp_path), campaign(tmp_path)
    assert runs.latest_records() == []
    runs.run(ExtraMeasurements(), settings)
    second = runs.run(ExtraMeasurements(), settings, restart=True)
    assert runs.latest_records() == [item.record for item in second if item.record]


def test_records_in_the_order_of_cells() -> None:
    skipped = CellOutcome(PlannedCell(variant="a", batch_size=1, skipped="no artifact"), None)
    assert measured_records([skipped]) == []


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    settings, results = Settings(home=tmp_path), ResultStore(tmp_path)
    with pytest.raises(InputError, match="no model 'absent'"):
        open_campaign(settings, SETTINGS, results, model_name="absent")
    with pytest.raises(InputError, match="no variant absent"):
        open_campaign(settings, SETTINGS, results, variant_names=["absent"])


def test_cells_that_have_ended_are_reported_of_all(tmp_path: Path, measured: Measured) -> None:
    events: list[Event] = []
    campaign(tmp_path).run(
        ExtraMeasurements(), Settings(home=tmp_path), session=WorkerSession(events.append)
    )
    cells = [event for event in events if isinstance(event, ProgressEvent)]
    assert [(event.done, event.total) for event in cells] == [(done, 4) for done in range(5)]
    assert [event.job_fraction for event in cells] == [0, 0.25, 0.5, 0.75, 1]


def test_a_resumed_campaign_begins_after_its_finished_cells(
    tmp_path: Path, measured: Measured
) -> None:
    runs = campaign(tmp_path)
    runs.run(ExtraMeasurements(), Settings(home=tmp_path))  # both cells of b fail
    events: list[Event] = []
    runs.run(ExtraMeasurements(), Settings(home=tmp_path), session=WorkerSession(events.append))
    cells = [event for event in events if isinstance(event, ProgressEvent)]
    assert [event.done for event in cells] == [2, 3, 4]
