"""A download from the hub reports its bytes."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from quant_assets.models.source import resolve_source
from quant_assets.processes.protocol import Event, ProgressEvent
from quant_assets.processes.session import WorkerSession
from quant_assets.settings import Settings
from quant_assets_tests.models.tiny_models import make_model, tokenizer_model

SIZE = 4_000_000


class Hub:
    """Stands in for the hub's client: the same bars in the same order, without a network."""

    def __init__(self, folder: Path, *, knows_sizes: bool) -> None:
        self._folder = folder
        self._knows_sizes = knows_sizes

    def snapshot_download(
        self, _repo: str, *, tqdm_class: Any, dry_run: bool = False, **_: Any
    ) -> Any:
        if dry_run:
            if not self._knows_sizes:
                raise OSError("offline")
            return [
                SimpleNamespace(file_size=SIZE, will_download=True),
                SimpleNamespace(file_size=SIZE, will_download=True),
                SimpleNamespace(file_size=123, will_download=False),
            ]
        files = tqdm_class(total=2, desc="Fetching 2 files")
        bar = tqdm_class(total=0, initial=0, unit="B", unit_scale=True, mininterval=0)
        for _file in range(2):
            bar.total += SIZE
            bar.refresh()
            for _part in range(4):
                bar.update(SIZE // 4)
                bar.refresh()
            files.update(1)
        bar.close()
        files.close()
        return str(self._folder)


def fetched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, knows_sizes: bool
) -> list[ProgressEvent]:
    folder = make_model(tmp_path / "revision", "llama", tokenizer_model())
    hub = Hub(folder, knows_sizes=knows_sizes)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    events: list[Event] = []
    source = resolve_source(
        "owner/tiny", Settings(home=tmp_path / "home"), session=WorkerSession(events.append)
    )
    assert source.path == folder
    return [event for event in events if isinstance(event, ProgressEvent)]


def test_the_bytes_of_a_download_are_its_progress(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    events = fetched(monkeypatch, tmp_path, knows_sizes=True)
    assert {(event.step, event.unit, event.total) for event in events} == {
        ("fetch owner/tiny", "bytes", 2 * SIZE)
    }
    done = [event.done for event in events]
    assert done == sorted(done) and done[-1] == 2 * SIZE
    assert events[-1].job_fraction == 1
    assert "Fetching" not in capfd.readouterr().err


def test_sizes_that_are_learned_on_the_way_are_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    events = fetched(monkeypatch, tmp_path, knows_sizes=False)
    assert (events[-1].done, events[-1].total) == (2 * SIZE, 2 * SIZE)
    assert all(event.done <= event.total for event in events)
